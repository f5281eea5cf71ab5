# SPDX-License-Identifier: Apache-2.0
"""A GELU on integer kernels: from the model to what onnxruntime runs, and when it stays float."""

import numpy as np
import pytest

from qhyvit_onnx.compiler import compile_model
from qhyvit_onnx.config import CompileConfig, Effort, Guard, Verification
from qhyvit_onnx.kinds import Kind
from qhyvit_onnx.runtime import Options, View, optimized
from tests.conftest import build_model

OFF = Guard(samples=0)
SPELLED = "d = Div (a, root) e = Erf (d) f = Add (e, one) m = Mul (a, f) h = Mul (m, half)"
FORMS = {
    "spelled out": (17, SPELLED),
    "with a shared start": (17, SPELLED.replace("Mul (m, half)", "Mul (half, m)")),
    "op": (20, "h = Gelu (a)"),
    "moved": (17, SPELLED.replace("h =", "i =") + " h = Transpose <perm = [0, 1, 3, 2]> (i)"),
}
NUMBERS = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}


def model(form="spelled out", end="y = Conv (h, q)", start="a = Conv (x, p)", outputs="y"):
    opset, body = FORMS[form]
    rng = np.random.default_rng(1)
    p, q = (rng.normal(0, 1 / 8, (64, 64, 1, 1)).astype(np.float32) for _ in range(2))
    return build_model(
        f"""<ir_version: 9, opset_import: ["": {opset}]>
        g (float[1, 64, 24, 24] x) => (float[1, 64, 24, 24] {outputs})
        {{ {start} {body} {end} }}""",
        **NUMBERS, p=p, q=q, low=np.full(64, -6.0, np.float32),
    )  # fmt: skip


def feeds(count=4):
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(0, 1.4, (1, 64, 24, 24)).astype(np.float32)} for _ in range(count)]


def compiled(target="arm64", precision="w8a8", *, loose=False, **more):
    config = CompileConfig(
        target=target, guard=OFF, effort=Effort.FAST, precision=precision,
        approximate_gelu=loose, verification=Verification(samples=2, rounds=0, replay=2),
    )  # fmt: skip
    return compile_model(model(**more), feeds(), config)


def gelu_of(report):
    (unit,) = (unit for unit in report.units if unit.kind == Kind.GELU)
    return unit


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("target", ["arm64", "x64-vnni"])
def test_a_gelu_between_integer_layers_runs_on_integers(form, target):
    found = compiled(target, form=form)
    assert gelu_of(found.report).int8
    for view in View:
        running = [n.op_type for n in optimized(found.model, Options(view=view)).graph.node]
        assert running.count("QLinearSigmoid") == running.count("QLinearMul") == 1
        assert not {"Erf", "Gelu", "FastGelu", "Sigmoid"} & set(running)
    (close,) = found.report.outputs
    assert close.sqnr_db > 33
    assert found.report.replay.differing == []  # every integer node as its reference computes it


@pytest.mark.parametrize("precision", ["w6a6", "w4a4"])
def test_fewer_bits_take_it_too(precision):
    found = compiled(precision=precision)
    assert gelu_of(found.report).int8
    assert found.report.replay.differing == []


def test_it_costs_less_accuracy_than_rounding_itself():
    with_it, without = compiled(), compile_model(
        model(), feeds(),
        CompileConfig(target="arm64", guard=OFF, effort=Effort.FAST, exclude=("Mul_5",)),
    )  # fmt: skip
    assert not gelu_of(without.report).int8
    lost = without.report.outputs[0].sqnr_db - with_it.report.outputs[0].sqnr_db
    assert 0 < lost < 2


def test_values_on_which_its_error_shows_stay_float():
    found = compiled(start="a = Conv (x, p, low)", outputs="y, float[1, 64, 24, 24] a")
    unit = gelu_of(found.report)
    assert (unit.int8, "err by more" in unit.reason) == (False, True)


def test_they_may_run_int8_if_that_is_asked_for_and_the_error_is_told():
    found = compiled(start="a = Conv (x, p, low)", outputs="y, float[1, 64, 24, 24] a", loose=True)
    assert gelu_of(found.report).int8
    (note,) = (item.note for item in found.report.passes if item.name == "insert-qdq")
    steps = float(note.split("1 GELU as x * sigmoid, ")[1].split(" steps off")[0])
    assert steps > 12**-0.5


def test_between_float_layers_it_stays_float():
    found = compiled("x64-vnni", start="a = Exp (x)", end="y = Exp (h)")
    assert not gelu_of(found.report).int8
