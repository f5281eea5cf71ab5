# SPDX-License-Identifier: Apache-2.0
"""How this project's own recipe searches grids: one concern a module."""
