# SPDX-License-Identifier: Apache-2.0
"""One crossing between local and global mixing, as sets of nodes."""

from dataclasses import dataclass

from qhyvit_onnx.passes._bridges.attentions import Crossing


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One crossing."""

    direction: Crossing
    size: str
    between_streams: bool
    """Whether it is an attention between tokens and features."""
    anchor: int
    """The attention's last product for a way in, the local anchor for a way out."""
    first: int
    """Last layers before it."""
    final: int
    """First layers after it."""
    nodes: int
    """Both, and everything between."""
