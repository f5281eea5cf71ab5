# SPDX-License-Identifier: Apache-2.0
"""Numbers only: arrays in, arrays out; no graphs, no files."""
