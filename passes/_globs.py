# SPDX-License-Identifier: Apache-2.0
"""Patterns on node names that users give."""

from collections.abc import Sequence
from fnmatch import fnmatchcase


def unmatched(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the patterns that match none of ``names``: a typing error the user should hear of."""
    return [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]
