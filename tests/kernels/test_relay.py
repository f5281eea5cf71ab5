# SPDX-License-Identifier: Apache-2.0
"""What a relay gives is what a run from the start would give, hooks as they are by then."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="blocks run in torch, an extra")

from qhyvit_onnx.kernels.block_runs import Block  # noqa: E402
from qhyvit_onnx.kernels.executor import Executor  # noqa: E402
from qhyvit_onnx.kernels.program import Program, Step  # noqa: E402
from qhyvit_onnx.kernels.relay import Relay  # noqa: E402
from qhyvit_onnx.kernels.sample_store import Memory, SampleStore  # noqa: E402

COUNT, WIDTH, STOPS = 6, 3, ["s1", "s2", "s3"]


def steps(number, source):
    """Return layer ``number``, which reads ``source`` and writes ``s`` with its number."""
    p = f"p{number}"
    return (
        Step(name=f"m{number}", op="MatMul", inputs=(source, "w"), outputs=(p,)),
        Step(name=f"a{number}", op="Add", inputs=(p, "b"), outputs=(f"s{number}",)),
    )


PROGRAM = Program(
    steps=(
        *steps(1, "x"),
        Step(name="relu", op="Relu", inputs=("s1",), outputs=("r",)),
        *steps(2, "r"),
        Step(name="skip", op="Add", inputs=("s2", "s1"), outputs=("t",)),
        Step(name="gate", op="Mul", inputs=("t", "g"), outputs=("u",)),
        *steps(3, "u"),
    ),
    constants={
        "w": np.random.default_rng(0).normal(size=(WIDTH, WIDTH)).astype(np.float32),
        "b": np.zeros(WIDTH, np.float32),
    },
    inputs=("x", "g"),
    outputs=("s3",),
    opset=17,
)


@pytest.fixture
def block(tmp_path):
    """Return a function: whether samples run together -> (the block, x of all samples)."""

    def make(together):
        x = np.random.default_rng(1).normal(size=(COUNT, 4, WIDTH)).astype(np.float32)
        store = SampleStore(Memory(1 << 20, tmp_path))
        for sample in x:
            store.append_array(sample[None])
        made = Block(
            outputs=("s3",), floats={"x": store}, rounded={}, targets={}, costs={},
            fixed={"g": torch.full((1, 1, WIDTH), 0.5)}, axes={}, together=together,
        )  # fmt: skip
        return made, x

    return make


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("batch", [1, 4])
def test_what_is_changed_on_the_way_is_seen_from_there_on(block, together, batch):
    made, x = block(together)
    executor, shifts, calls = Executor(PROGRAM), dict.fromkeys("123", 0.0), []
    hooks = {(f"a{n}", 1): lambda bias, n=n: bias + shifts[n] for n in shifts}
    hooks |= {"x": lambda t: t * 2, "r": lambda t: t + 1}  # twice would show
    counting = {("m1", 0): lambda t: (calls.append(t), t)[1]}
    samples = [5, 0, 3, 1, 2]
    relay = Relay(
        executor, made, made.floats, hooks | counting, samples=samples, batch=batch, stops=STOPS
    )
    for number, stop in zip(shifts, STOPS, strict=True):
        for _ in range(2):  # before the layer is changed, and after
            got = torch.cat(list(relay.reach(stop)))
            want = executor.run({"x": x[samples], **made.fixed}, [stop], hooks=hooks)[stop]
            torch.testing.assert_close(got, want)
            shifts[number] += 1.0
    batches = len(samples) if not together else -(-len(samples) // batch)
    assert len(calls) == batches  # what comes before a layer runs once


def test_one_tensor_a_sample(block):
    made, _ = block(together=True)
    executor = Executor(PROGRAM)
    relay = Relay(executor, made, made.floats, {}, samples=range(COUNT), batch=4, stops=STOPS)
    assert [tuple(t.shape) for t in relay.reach("s2")] == [(1, 4, WIDTH)] * COUNT


def test_there_is_no_way_back(block):
    made, _ = block(together=True)
    relay = Relay(
        Executor(PROGRAM), made, made.floats, {}, samples=range(COUNT), batch=4, stops=STOPS
    )
    assert len(list(relay.reach("s3"))) == COUNT
    with pytest.raises(KeyError, match="s2"):
        list(relay.reach("s2"))
