# SPDX-License-Identifier: Apache-2.0
"""Numbers only: arrays in, arrays out; no graphs, no files."""

import os

# Read when torch is loaded. By default its threads wait spinning: where another program takes a
# core, the waiting thread burns the time its sibling needs. On two cores, beside a program that
# kept one busy, the runs back of ``weigh`` had not ended after thirty times their usual time.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
