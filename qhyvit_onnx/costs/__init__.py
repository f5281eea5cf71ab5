# SPDX-License-Identifier: Apache-2.0
"""What running a fusion unit costs, in float and in int8: tables, and how they are measured."""
