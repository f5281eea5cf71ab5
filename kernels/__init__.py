# SPDX-License-Identifier: Apache-2.0
"""Numbers only: arrays in, arrays out; no graphs, no files."""

import os

# Read when torch is loaded: how often a thread of GNU's OpenMP looks again before it sleeps. Where
# another program has a core, a looking thread burns the time its sibling needs. Two cores, seconds
# to compile mobilevit_xxs alone, and beside a program that kept one core busy:
#     0: 75 and 71    1,000: 57 and 100    10,000: 47 and 213    (one run each)
# Its default, far more, kept ``weigh`` alone from ending in 280 s there.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
