# SPDX-License-Identifier: Apache-2.0
"""Shape arithmetic, element by element: rules for sums, quotients, comparisons."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import sympy

from qhyvit_onnx.symbolic.call import Call, Element, Rule, Unsure, Value, whole


def _elementwise(
    native: Callable[..., Value], symbolic: Callable[..., Element], arity: int
) -> Rule:
    """Return a rule that computes natively where it can, and element by element elsewhere."""
    lifted = np.frompyfunc(symbolic, arity, 1)

    def rule(call: Call) -> Value:
        args = [call.arg(index) for index in range(arity)]
        if all(arg.dtype != object for arg in args):
            return native(*args)
        return np.asarray(lifted(*args), dtype=object)

    return rule


def _ratio(a: Element, b: Element) -> Element:
    a, b = whole(a), whole(b)
    if not (sympy.sympify(a).is_nonnegative and sympy.sympify(b).is_positive):
        raise Unsure
    return sympy.cancel(sympy.sympify(a) / b)


def _native_div(a: Value, b: Value) -> Value:
    if not np.issubdtype(a.dtype, np.integer):
        return np.divide(a, b)
    return np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)))


def _div(call: Call) -> Value:
    """Divide; integers truncate. The quotient of two floats is kept exact, for Floor and Ceil."""
    integer = call.elem in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    exact = (lambda a, b: sympy.floor(_ratio(a, b))) if integer else _ratio
    return _elementwise(_native_div, exact, 2)(call)


def _difference(a: Element, b: Element) -> Element:
    return sympy.expand(sympy.sympify(whole(a)) - whole(b))


def _decided(difference: Element, test: str) -> bool:
    """Return what sympy knows of the sign of a difference."""
    answer = getattr(difference, test)
    if answer is None:
        raise Unsure
    return bool(answer)


def _larger(a: Element, b: Element) -> Element:
    return a if _decided(_difference(a, b), "is_nonnegative") else b


def _compare(native: Callable[..., Value], test: str) -> Rule:
    return _elementwise(native, lambda a, b: _decided(_difference(a, b), test), 2)


def _extremum(call: Call) -> Value:
    """Min or Max of any number of inputs."""
    largest = call.node.op == "Max"
    native = np.maximum if largest else np.minimum
    pick = np.frompyfunc(_larger if largest else lambda a, b: b if _larger(a, b) is a else a, 2, 1)
    result = call.arg(0)
    for index in range(1, len(call.args)):
        other = call.arg(index)
        known = result.dtype != object and other.dtype != object
        result = native(result, other) if known else np.asarray(pick(result, other), dtype=object)
    return result


def _mod(call: Call) -> Value:
    if call.attr("fmod", 0):
        raise Unsure
    return _elementwise(np.mod, lambda a, b: a - b * sympy.floor(_ratio(a, b)), 2)(call)


def _cast(call: Call) -> Value:
    array = call.arg(0)
    kind = onnx.helper.tensor_dtype_to_np_dtype(call.elem)
    if array.dtype != object:
        return array.astype(kind)
    if np.issubdtype(kind, np.integer):
        return np.asarray(np.frompyfunc(_truncated, 1, 1)(array), dtype=object)
    if kind not in (np.float32, np.float64):
        raise Unsure
    return array


def _truncated(value: Element) -> Element:
    if not sympy.sympify(value).is_nonnegative:
        return whole(value)
    return sympy.floor(value)


ARITHMETIC: Mapping[str, Rule] = {
    "Cast": _cast,
    "Add": _elementwise(np.add, lambda a, b: whole(a) + whole(b), 2),
    "Sub": _elementwise(np.subtract, lambda a, b: whole(a) - whole(b), 2),
    "Mul": _elementwise(np.multiply, lambda a, b: whole(a) * whole(b), 2),
    "Neg": _elementwise(np.negative, lambda a: -whole(a), 1),
    "Div": _div,
    "Mod": _mod,
    "Floor": _elementwise(np.floor, sympy.floor, 1),
    "Ceil": _elementwise(np.ceil, sympy.ceiling, 1),
    "Min": _extremum,
    "Max": _extremum,
    "Equal": _compare(np.equal, "is_zero"),
    "Greater": _compare(np.greater, "is_positive"),
    "Less": _compare(np.less, "is_negative"),
    "GreaterOrEqual": _compare(np.greater_equal, "is_nonnegative"),
    "LessOrEqual": _compare(np.less_equal, "is_nonpositive"),
    "Not": _elementwise(np.logical_not, lambda a: not a, 1),
    "And": _elementwise(np.logical_and, lambda a, b: a and b, 2),
    "Or": _elementwise(np.logical_or, lambda a, b: a or b, 2),
}
