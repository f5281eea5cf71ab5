# SPDX-License-Identifier: Apache-2.0
"""How published methods pick their grids, on the statistics and evidence of this compiler."""
