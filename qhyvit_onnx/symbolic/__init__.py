# SPDX-License-Identifier: Apache-2.0
"""Symbolic shapes: dims as expressions of the free input dims, and the arithmetic done on them."""
