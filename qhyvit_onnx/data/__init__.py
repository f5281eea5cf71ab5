# SPDX-License-Identifier: Apache-2.0
"""Calibration and evaluation data.

Nothing heavier than numpy is imported here; images, recipes and their libraries load when data is
opened.
"""

from qhyvit_onnx.data.feeds import Deployable, Feeds, Kind, Origin, Source, describe_first
from qhyvit_onnx.data.input_spec import Feed, InputSpec
from qhyvit_onnx.data.opening import open_feeds

__all__ = [
    "Deployable",
    "Feed",
    "Feeds",
    "InputSpec",
    "Kind",
    "Origin",
    "Source",
    "describe_first",
    "open_feeds",
]
