# SPDX-License-Identifier: Apache-2.0
"""What the compiler knows about a model, found without emitting anything."""

from qhyvit_onnx.inspection.inspector import inspect_model
from qhyvit_onnx.inspection.records import (
    BridgeView,
    Inspection,
    LayoutView,
    NormView,
    Observed,
    OneSided,
    PassView,
    Port,
    RegionView,
    Spread,
    UnitView,
)

__all__ = [
    "BridgeView",
    "Inspection",
    "LayoutView",
    "NormView",
    "Observed",
    "OneSided",
    "PassView",
    "Port",
    "RegionView",
    "Spread",
    "UnitView",
    "inspect_model",
]
