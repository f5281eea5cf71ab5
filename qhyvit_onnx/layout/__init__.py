# SPDX-License-Identifier: Apache-2.0
"""Index maps: where data movement takes every element, proven by mixed-radix digits."""
