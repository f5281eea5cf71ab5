# SPDX-License-Identifier: Apache-2.0
"""The executor: whole nets against onnxruntime, parts of them, gradients, hooks, training."""

import dataclasses
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the executor runs in torch, an extra")

from qhyvit_onnx.errors import ConfigError, ModelError  # noqa: E402
from qhyvit_onnx.kernels.executor import Executor  # noqa: E402
from qhyvit_onnx.kernels.fake_quant import fake_quantize  # noqa: E402
from qhyvit_onnx.programs import opaque_runner, program_of  # noqa: E402
from tests.blocks import FAMILIES, mobilevit_v1  # noqa: E402

CHAIN = (
    "g (float[2, 3] x) => (float[2, 3] y) "
    "{ a = Mul (x, w) b = Relu (a) c = Add (b, x) y = Exp (c) }"
)
RECURRENT = (
    "g (float[4, 2, 3] x) => (float[1, 2, 5] y) { a = Mul (x, k) s, y, c = LSTM <hidden_size = 5> "
    "(a, w, r) }"
)
WEIGHTS = {"w": (1, 20, 3), "r": (1, 20, 5), "k": (3,)}


def images(batch=2, dtype=np.float32):
    return np.random.default_rng(1).standard_normal((batch, 3, 16, 16)).astype(dtype)


def fed(model, batch=2):
    """Return normal numbers for every input of a family's net."""
    rng = np.random.default_rng(1)
    feeds = {}
    for port in model.graph.input:
        sizes = [dim.dim_value or batch for dim in port.type.tensor_type.shape.dim]
        feeds[port.name] = rng.standard_normal(sizes).astype(np.float32)
    return feeds


def chain(build):
    return Executor(program_of(build(CHAIN, w=(3,))))


def close(found, want):
    """Hold to 1e-5 of the range: float32 sums in another order, layer after layer."""
    assert tuple(found.shape) == want.shape
    np.testing.assert_allclose(found.detach().numpy(), want, rtol=0, atol=1e-5 * np.ptp(want))


def doubled(program):
    """Return a program that computes in float64."""
    constants = {
        name: array.astype(np.float64) if array.dtype == np.float32 else array
        for name, array in program.constants.items()
    }
    return dataclasses.replace(program, constants=constants)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_equals_onnxruntime(family, run_model):
    model = family()
    executor, feeds = Executor(program_of(model)), fed(model)
    found = executor.run(feeds, executor.program.outputs)
    assert executor.opaque_ops == ()
    for tensor, want in zip(found.values(), run_model(model, feeds), strict=True):
        close(tensor, want)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_part_equals_the_whole(family):
    model = family()
    executor, feeds = Executor(program_of(model)), fed(model)
    outputs = executor.program.outputs
    middle = [step.outputs[0] for step in executor.program.steps][len(executor.program.steps) // 2]
    whole = executor.run(feeds, [middle, *outputs])
    part = executor.run({**feeds, middle: whole[middle]}, outputs)
    assert list(whole) == [middle, *outputs]
    for name in outputs:
        assert torch.equal(part[name], whole[name])


def test_a_cut_computes_only_what_lies_between(build):
    part = program_of(build(CHAIN, w=(3,))).between(["a", "x"], ["c"])
    assert [step.op for step in part.steps] == ["Relu", "Add"]
    assert (part.inputs, part.outputs, dict(part.constants)) == (("a", "x"), ("c",), {})


def test_a_cut_names_what_is_missing(build):
    with pytest.raises(ConfigError, match="'x' is needed"):
        program_of(build(CHAIN, w=(3,))).between(["b"], ["y"])
    with pytest.raises(ConfigError, match="named 'nothing'"):
        program_of(build(CHAIN, w=(3,))).between(["x"], ["nothing"])


def test_inputs_and_constants_may_be_asked_for(build):
    executor, x = chain(build), torch.ones(2, 3)
    found = executor.run({"x": x}, ["w", "x"])
    assert found["x"] is x
    np.testing.assert_array_equal(found["w"].numpy(), executor.program.constants["w"])


def test_a_parameter_stands_in_for_a_constant(build):
    weight = torch.full((3,), 2.0, requires_grad=True)
    found = chain(build).run({"x": np.ones((2, 3), np.float32)}, ["a"], parameters={"w": weight})
    found["a"].sum().backward()
    assert found["a"].tolist() == [[2.0] * 3] * 2
    assert weight.grad.tolist() == [2.0] * 3


def test_hooks_change_what_readers_see(build):
    executor, x = chain(build), torch.tensor([[1.0, -2.0, 3.0]])
    one = {"w": torch.ones(3)}

    def run(hooks):
        return executor.run({"x": x}, ["a", "b", "c"], parameters=one, hooks=hooks)

    double = {name: lambda tensor: tensor * 2 for name in ("a",)}
    assert run(double)["a"].tolist() == [[2, -4, 6]]
    assert run(double)["c"].tolist() == [[3, -2, 9]]
    assert run({"x": torch.neg})["c"].tolist() == [[-1, 4, -3]]
    assert run({"w": torch.neg})["a"].tolist() == [[-1, 2, -3]]
    reader = executor.program.steps[2].name
    assert run({(reader, 1): torch.neg})["c"].tolist() == [[0, 2, 0]]
    assert run({(reader, 1): torch.neg})["a"].tolist() == x.tolist()


@pytest.mark.parametrize(
    "given",
    [
        {"parameters": {"x": torch.ones(3)}},
        {"hooks": {"nothing": torch.neg}},
        {"hooks": {("nothing", 0): torch.neg}},
    ],
)
def test_a_name_that_would_do_nothing_is_refused(given, build):
    with pytest.raises(ConfigError):
        chain(build).run({"x": torch.ones(2, 3)}, ["y"], **given)


def test_a_tensor_is_freed_after_its_last_reader(build):
    seen, alive = [], []

    def watch(tensor):
        alive.append([ref() is not None for ref in seen])
        result = tensor.clone()
        seen.append(weakref.ref(result))
        return result

    with torch.no_grad():
        chain(build).run({"x": torch.ones(2, 3)}, ["y"], hooks=dict.fromkeys("abcy", watch))
    # when b comes, a still stands beside it, for its step is not over; then each in its turn
    assert alive == [[], [True], [False, True], [False, False, True]]


def test_gradient_is_the_slope_of_a_hybrid():
    """Central differences in float64 along a random direction: error of order 1e-12 / step."""
    executor = Executor(doubled(program_of(mobilevit_v1())))
    constants = executor.program.constants
    names = [n for n, array in constants.items() if array.dtype == np.float64 and array.ndim > 1]
    generator = torch.Generator().manual_seed(0)
    start = {name: torch.from_numpy(constants[name].copy()) for name in names}
    start["x"] = torch.from_numpy(images(dtype=np.float64))
    along = {
        name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        for name, tensor in start.items()
    }

    def loss(distance):
        at = {name: tensor + distance * along[name] for name, tensor in start.items()}
        x = at.pop("x")
        output = executor.program.outputs[0]
        return executor.run({"x": x}, [output], parameters=at)[output].square().sum()

    distance = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(distance), distance)
    step = 1e-6
    with torch.no_grad():
        difference = (loss(step) - loss(-step)) / (2 * step)
    assert abs(slope) > 1
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [2, 3])
def test_weights_train_through_their_own_rounding(bits):
    """A net with rounded weights learns the answers of the same net without."""
    executor = Executor(program_of(mobilevit_v1()))
    (output,), constants = executor.program.outputs, executor.program.constants
    rounded = [step.inputs[1] for step in executor.program.steps if step.op in {"Conv", "Gemm"}]
    feeds = {"x": images(8)}
    with torch.no_grad():
        target = executor.run(feeds, [output])[output]
    weights = {n: torch.from_numpy(constants[n].copy()).requires_grad_() for n in rounded}
    high = 2 ** (bits - 1) - 1
    scales = {
        name: (weight.detach().abs().mean() * 2 / high**0.5).requires_grad_()
        for name, weight in weights.items()
    }
    hooks = {
        name: lambda w, s=scale: fake_quantize(w, s, 0, -high - 1, high)
        for name, scale in scales.items()
    }
    optimizer = torch.optim.Adam([*weights.values(), *scales.values()], lr=1e-3)
    losses = []
    for _ in range(30):
        found = executor.run(feeds, [output], parameters=weights, hooks=hooks)[output]
        losses.append((found - target).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 5
    assert all(scale.grad is not None and scale.grad != 0 for scale in scales.values())


def test_an_op_without_a_kernel_runs_in_onnxruntime(build, run_model):
    model = build(RECURRENT, **WEIGHTS)
    program = program_of(model)
    executor = Executor(program, opaque=opaque_runner(program))
    assert executor.opaque_ops == ("LSTM",)
    x = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
    tensor = torch.from_numpy(x).requires_grad_()
    found = executor.run({"x": tensor}, ["y", "a"])
    close(found["y"], run_model(model, {"x": x})[0])
    assert found["a"].requires_grad
    assert not found["y"].requires_grad


def test_an_op_without_a_kernel_needs_a_runner(build):
    with pytest.raises(ModelError, match="no kernel for LSTM at opset 17"):
        Executor(program_of(build(RECURRENT, **WEIGHTS)))


@pytest.mark.parametrize(
    "statement",
    ["y = Relu <consumed_inputs = [0]> (x)", "y = com.microsoft.QuickGelu <alpha = 1.0> (x)"],
    ids=["unknown attribute", "other domain"],
)
def test_what_a_kernel_does_not_know_is_left_to_onnxruntime(statement, build):
    text = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>\n'
    program = program_of(build(f"{text}g (float[3] x) => (float[3] y) {{ {statement} }}"))
    assert len(Executor(program, opaque=opaque_runner(program)).opaque_ops) == 1


def test_a_branch_runs_in_onnxruntime(build):
    program = program_of(build(
        """g (float[3] x, bool c) => (float[3] y) {
            h = Neg (x)
            z = If (c) < then_branch = t () => (float[3] a) { a = Add (h, w) },
                         else_branch = e () => (float[3] b) { b = Identity (h) } >
            y = Neg (z)
        }""",
        w=(3,),
    ))  # fmt: skip
    executor = Executor(program, opaque=opaque_runner(program))
    x = np.float32([1, 2, 3])
    for condition in (True, False):
        found = executor.run({"x": x, "c": np.asarray(condition)}, ["y"])["y"]
        np.testing.assert_array_equal(found, x - program.constants["w"] if condition else x)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("y = Add (x, w)", "Add cannot run: The size"),
        ("y = Add (x, )", "Add cannot run: "),
        ("y = Cast <to = 17> (x)", "element type 17"),
    ],
    ids=["torch refuses", "input missing", "kernel refuses"],
)
def test_a_failing_step_is_named(statement, message, build):
    program = program_of(build(f"g (float[3] x) => (float[3] y) {{ {statement} }}", w=(4,)))
    with pytest.raises(ModelError, match=message) as caught:
        Executor(program).run({"x": torch.ones(3)}, ["y"])
    assert caught.value.node == program.steps[0].name


def test_an_output_that_a_kernel_does_not_give_is_an_error(build):
    text = "g (float[3] x) => (float[3] y) { y, z = Relu (x) }"
    with pytest.raises(ModelError, match="gives 1 of 2 outputs"):
        Executor(program_of(build(text))).run({"x": torch.ones(3)}, ["y"])


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_numbers_stay_on_the_host(family):
    """On torch's device without memory nothing can be read back: shape arithmetic must not try."""
    model = family()
    executor, feeds = Executor(program_of(model), device="meta"), fed(model)
    found = executor.run(feeds, executor.program.outputs)
    on_cpu = Executor(program_of(model)).run(feeds, executor.program.outputs)
    for name, tensor in found.items():
        assert tensor.device.type == "meta"
        assert tensor.shape == on_cpu[name].shape
