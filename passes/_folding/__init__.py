# SPDX-License-Identifier: Apache-2.0
"""Range folding: whose channels must agree, what is best for them, and how it is written."""
