# SPDX-License-Identifier: Apache-2.0
"""Draws an inspected network as a strip of regions, in one SVG without scripts or fonts."""

from qhyvit_onnx.drawing.page import draw

__all__ = ["draw"]
