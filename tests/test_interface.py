# SPDX-License-Identifier: Apache-2.0
"""Models that take pixels or bytes compute what the float model does with the same pictures."""

import json

import numpy as np
import onnx
import pytest

from qhyvit_onnx.cli import main
from qhyvit_onnx.compiler import compile_model
from qhyvit_onnx.config import CompileConfig, Effort, Guard, Io, Verification
from qhyvit_onnx.data import InputSpec
from qhyvit_onnx.data.preprocess import Layout, Recipe
from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.grid import Grid
from qhyvit_onnx.interface import BYTES, Coded, Interface, Pixels
from qhyvit_onnx.runtime import Options, Session, View, optimized
from qhyvit_onnx.sweep import Bound
from tests.conftest import build_model

CONV = "Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]>"
SHIFTED = Recipe(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
PLAIN = Recipe(std=(0.25, 0.25, 0.25))


def net(end="y = Gemm <transB = 1> (f, wy)"):
    rng = np.random.default_rng(0)

    def weight(*shape):
        return (rng.normal(0, 1, shape) * (2 / np.prod(shape[1:])) ** 0.5).astype(np.float32)

    return build_model(
        f"""g (float[n, 3, 24, 24] x) => (float[n, c] y) {{
            [stem] a0 = {CONV} (x, wa) a = Relu (a0) b0 = {CONV} (a, wb) b = Relu (b0)
            p = GlobalAveragePool (b) f = Flatten (p) [head] {end}
        }}""",
        wa=weight(32, 3, 3, 3), wb=weight(32, 32, 3, 3), wy=weight(10, 32),
    )  # fmt: skip


def pictures(count=12, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 24, 24)).astype(np.float32)


def values(pixels, recipe):
    """Return what the float model reads of ``pixels``."""
    mean, std = (np.reshape(part, (1, 3, 1, 1)) for part in (recipe.mean, recipe.std))
    return ((pixels * recipe.scale - mean) / std).astype(np.float32)


def compiled(recipe=SHIFTED, io=Io.FLOAT, *, embed=True, force=("stem", "head"), model=None):
    config = CompileConfig(
        target="arm64", effort=Effort.FAST, guard=Guard(samples=0), io=io, embed_preprocess=embed,
        force_int8=force, verification=Verification(samples=2, rounds=1, replay=2),
    )  # fmt: skip
    feeds = [{"x": item[None]} for item in values(pictures(), recipe)]
    return compile_model(model or net(), feeds, config, preprocess=recipe)


def sqnr(want, got):
    return 10 * np.log10(np.square(want).sum() / np.square(want - got).sum())


def types(model):
    ends = (*model.graph.input, *model.graph.output)
    return {info.name: info.type.tensor_type.elem_type for info in ends}


FLOAT, BYTE = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8


@pytest.mark.parametrize("recipe", [SHIFTED, PLAIN])
@pytest.mark.parametrize("io", Io)
@pytest.mark.parametrize("force", [(), ("stem", "head")])
def test_pixels_go_in(recipe, io, force):
    found = compiled(recipe, io, force=force)
    pixels = pictures(4, seed=5)
    session, interface = Session(found.model), Interface.of(found.model)
    fed = pixels if io is Io.FLOAT else pixels.astype(np.uint8)
    got = interface.decode(session.run({"x": fed}))["y"]
    want = Session(net()).run({"x": values(pixels, recipe)})["y"]
    assert sqnr(want, got) > 25
    assert types(found.model)["x"] == (FLOAT if io is Io.FLOAT else BYTE)
    assert found.report.replay.differing == []
    assert "pixels" in found.report.interface["x"]


def test_a_plain_scale_goes_into_the_first_layer_and_bytes_reach_its_kernel():
    found = compiled(PLAIN, Io.UINT8)
    running = [n.op_type for n in optimized(found.model, Options(view=View.ARM)).graph.node]
    assert "QuantizeLinear" not in running
    assert not {"Mul", "Sub", "Add"} & set(running)
    assert Interface.of(found.model).inputs == {"x": BYTES}


def test_bytes_without_pixels_are_on_the_grid_that_is_told():
    found = compiled(io=Io.UINT8, embed=False)
    told = Interface.of(found.model)
    assert told.pixels is None
    assert types(found.model) == {"x": BYTE, "y": BYTE}
    x = values(pictures(4, seed=5), SHIFTED)
    codes = np.rint(x / told.inputs["x"].scale) + told.inputs["x"].zero_point
    out = Session(found.model).run({"x": codes.clip(0, 255).astype(np.uint8)})["y"]
    grid = told.outputs["y"]
    got = (out.astype(np.float32) - grid.zero_point) * np.float32(grid.scale)
    assert sqnr(Session(net()).run({"x": x})["y"], got) > 25
    assert found.report.interface["y"].startswith("uint8: value = ")


def test_what_floats_compute_stays_float():
    found = compiled(io=Io.UINT8, embed=False, force=(), model=net("y = Exp (f)"))
    assert types(found.model) == {"x": BYTE, "y": FLOAT}
    assert "y" not in found.report.interface


def test_the_emitted_bytes_are_those_of_the_model_with_floats():
    floats, codes = compiled(embed=False), compiled(io=Io.UINT8, embed=False)
    x = {"x": values(pictures(4, seed=5), SHIFTED)}
    got = Coded(Session(codes.model), Interface.of(codes.model)).run(x)["y"]
    grid = Interface.of(codes.model).outputs["y"]
    want = Session(floats.model).run(x)["y"].clip(grid.low, grid.high)
    assert np.abs(got - want).max() <= 0.51 * grid.scale


def test_a_bound_is_measured_on_pixels_too(tmp_path):
    np.save(tmp_path / "x.npy", values(pictures(20, seed=3), SHIFTED))
    config = CompileConfig(
        target="arm64", effort=Effort.FAST, io=Io.UINT8, embed_preprocess=True,
        verification=Verification(samples=2, rounds=0),
    )  # fmt: skip
    feeds = [{"x": item[None]} for item in values(pictures(), SHIFTED)]
    bound = Bound(max_drop=60, data=tmp_path / "x.npy")
    report = compile_model(net(), feeds, config, preprocess=SHIFTED, bound=bound).report
    assert report.front[-1].drop < 30


def spec(*shape, dtype=np.float32, name="x"):
    return InputSpec(name, shape, np.dtype(dtype))


@pytest.mark.parametrize(
    ("layout", "shape", "where"),
    [(Layout.NCHW, (None, 3, 8, 8), (1, 3, 1, 1)), (Layout.NHWC, (1, 8, 8, 3), (1, 1, 1, 3))],
)
def test_gains_and_shifts_are_by_channel(layout, shape, where):
    recipe = Recipe(mean=SHIFTED.mean, std=SHIFTED.std, layout=layout, scale=0.5, size=(8, 8))
    found = Pixels.of([spec(*shape)], recipe)
    assert found.shape == where
    assert found.gain == pytest.approx((2.5, 2.0, 0.5 / 0.3))
    assert found.shift == pytest.approx((2.5, 1.6, 1.0))


def test_gray_takes_the_mean_of_the_three():
    found = Pixels.of([spec(1, 1, 8, 8)], Recipe(mean=(0.1, 0.2, 0.6), std=(1.0, 2.0, 3.0)))
    assert (found.shape, found.gain) == ((1, 1, 1, 1), pytest.approx((1 / 255 / 2,)))
    assert found.shift == pytest.approx((0.15,))


@pytest.mark.parametrize("specs", [[spec(1, 8)], [spec(1, 3, 8, 8), spec(1, 3, 8, 8, name="z")]])
def test_one_image_input_is_needed(specs):
    with pytest.raises(ConfigError, match="needs one image input"):
        Pixels.of(specs, SHIFTED)


def test_values_become_pixels_again():
    pixels = pictures()
    found = Pixels.of([spec(1, 3, 24, 24)], SHIFTED).pixels_in({"x": values(pixels, SHIFTED)})
    np.testing.assert_array_equal(found["x"], pixels)


def test_the_interface_survives_the_metadata():
    pixels = Pixels("x", (1.0, 2.0), (0.5, 0.25), (1, 2, 1, 1))
    told = Interface(pixels, {"x": BYTES}, {"y": Grid(0.1, 7)})
    model = net()
    model.metadata_props.add(key="qhyvit_onnx.io", value=told.metadata())
    assert Interface.of(model) == told
    assert Interface.of(net()) == Interface()


def test_from_the_command_line_to_an_evaluation(tmp_path, capsys):
    onnx.save(net(), tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", values(pictures(20), SHIFTED))
    lines = ["scale = 0.00392156862745098", "mean = [0.5, 0.4, 0.3]", "std = [0.2, 0.25, 0.3]"]
    (tmp_path / "p.toml").write_text("\n".join(lines))
    files = {name: str(tmp_path / name) for name in ("net.onnx", "q.onnx", "x.npy", "p.toml")}
    assert main([
        "compile", files["net.onnx"], "-o", files["q.onnx"], "--calib", files["x.npy"],
        "--preprocess", files["p.toml"], "--effort", "fast", "-q", "--target", "arm64",
        "--io", "uint8", "--embed-preprocess", "--emit", "ort",
    ]) == 0  # fmt: skip
    assert "takes, gives  x: uint8: pixels" in capsys.readouterr().out
    assert main([
        "eval", files["net.onnx"], files["q.onnx"], "--data", files["x.npy"], "--json", "-",
    ]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["outputs"]["y"]["sqnr_db"] > 20
