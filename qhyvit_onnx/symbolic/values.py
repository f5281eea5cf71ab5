# SPDX-License-Identifier: Apache-2.0
"""The values of integer shape arithmetic, with free dims as symbols."""

from collections.abc import Mapping

import numpy as np
import onnx

from qhyvit_onnx.symbolic.arithmetic import ARITHMETIC
from qhyvit_onnx.symbolic.call import LARGEST, Call, Rule, Unsure, Value
from qhyvit_onnx.symbolic.dims import is_number, plain
from qhyvit_onnx.symbolic.placing import PLACING

RULES: Mapping[str, Rule] = {**ARITHMETIC, **PLACING}


def evaluate(call: Call) -> Value | None:
    """Return the value of the first output of a node, None when it cannot be said."""
    rule = RULES.get(call.node.op)
    if rule is None:
        return None
    try:
        found = np.asarray(rule(call))
    except (Unsure, ValueError, IndexError, ZeroDivisionError, OverflowError):
        return None
    return _settled(found, call.elem) if found.size <= LARGEST else None


def _settled(array: Value, elem: int) -> Value:
    """Return ``array`` in its native dtype when it holds numbers only."""
    if array.dtype == object:
        array = np.asarray(np.frompyfunc(plain, 1, 1)(array), dtype=object)
        if not all(map(is_number, array.reshape(-1))):
            return array
    return array.astype(onnx.helper.tensor_dtype_to_np_dtype(elem))
