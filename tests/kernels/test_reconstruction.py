# SPDX-License-Identifier: Apache-2.0
"""A lesson on one layer: codes, scale and bias move where that lowers the error, and only there."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="learning runs in torch, an extra")

from qhyvit_onnx.grid import Grid, WeightGrid  # noqa: E402
from qhyvit_onnx.kernels.block_runs import Block, costs_of, drawn, fill, parts  # noqa: E402
from qhyvit_onnx.kernels.executor import Executor  # noqa: E402
from qhyvit_onnx.kernels.program import Program, Step  # noqa: E402
from qhyvit_onnx.kernels.reconstruction import Channels, Learnables, Lesson, Schedule  # noqa: E402
from qhyvit_onnx.kernels.rounding import BiasShift, LearnedScale, SoftRounding  # noqa: E402
from qhyvit_onnx.kernels.sample_store import Memory, SampleStore  # noqa: E402

COUNT, WIDTH, OUT = 32, 12, 6
FAST = Schedule(steps=150, batch=16, dropped=0.0, rounding_rate=0.1)  # one small layer can take it


@pytest.fixture
def layer(tmp_path):
    """Return a function: weight bits, bias shift, input error -> (lesson, learnables).

    What the layer reads has strongly correlated channels, so that nearest codes are far from best.
    """

    def make(bits=3, shift=0.0, moved=0.0, schedule=FAST):
        rng = np.random.default_rng(0)
        weight = rng.standard_normal((WIDTH, OUT)).astype(np.float32)
        bias = rng.standard_normal(OUT).astype(np.float32)
        x = rng.standard_normal((COUNT, 5, 2)) @ rng.standard_normal((2, WIDTH)) + 0.05
        program = Program(
            steps=(
                Step(name="m", op="MatMul", inputs=("x", "w"), outputs=("p",)),
                Step(name="a", op="Add", inputs=("p", "b"), outputs=("y",)),
            ),
            constants={"w": weight, "b": bias},
            inputs=("x",),
            outputs=("y",),
            opset=17,
        )
        limit = (1 << (bits - 1)) - 1
        grid = WeightGrid(np.abs(weight).max(0) / limit, 1, limit)
        codes = np.rint(weight / grid.spread(2)).astype(np.int8)
        rounding = SoftRounding(weight, grid, codes, "cpu")
        scale = LearnedScale(Grid(float(np.abs(x).max()) / 120, 128), "cpu")
        offset = BiasShift(bias, np.full(OUT, shift, np.float32), None, "cpu")
        learnables = Learnables(
            {("m", 1): rounding, "x": scale, ("a", 1): offset},
            {"m": rounding}, {"x": scale}, {"m": offset}, {"m": Channels("y", -1)},
        )  # fmt: skip
        memory, executor = Memory(1 << 20, tmp_path), Executor(program)
        floats, rounded, targets = (SampleStore(memory) for _ in range(3))
        for sample in x.astype(np.float32):
            floats.append_array(sample[None])
            rounded.append_array(sample[None] + np.float32(moved))
        block = Block(
            outputs=("y",), floats={"x": floats}, rounded={"x": rounded},
            targets={"y": targets}, costs={}, fixed={}, axes={"y": 2}, together=True,
        )  # fmt: skip
        batches = parts(range(COUNT), 8)
        energy = fill(executor, block, block.floats, block.targets, hooks={}, batches=batches)
        block.costs.update(costs_of(energy, {}))
        return Lesson(executor, block, learnables, schedule), learnables

    return make


TRAIN, HELD = list(range(28)), list(range(28, COUNT))


def test_learning_finds_codes_that_rounding_to_nearest_does_not(layer):
    lesson, learnables = layer()
    nearest, before = learnables.roundings["m"].codes(), lesson.error(HELD)
    after = lesson.learn(TRAIN, HELD, 0, before)
    assert after < 0.85 * before
    assert after == pytest.approx(lesson.error(HELD))  # what is kept is what was judged
    moved = learnables.roundings["m"].codes().astype(int) - nearest
    assert np.abs(moved).sum() > 0
    assert np.abs(moved).max() == 1


def test_biases_take_up_a_mean_error(layer):
    lesson, learnables = layer(bits=8, shift=0.7)
    before = lesson.error(HELD)
    after = lesson.correct(TRAIN, HELD, before)
    assert after < 0.02 * before
    offset = learnables.biases["m"]
    left = np.abs(offset.learned.detach().numpy()).max() * offset.step
    assert left < 0.1  # of the shift of 0.7


def test_an_error_from_before_the_layer_is_corrected_too(layer):
    lesson, _ = layer(bits=8, moved=0.3)
    before = lesson.error(HELD)
    assert lesson.correct(TRAIN, HELD, before) < 0.05 * before


def test_biases_are_corrected_on_the_samples_at_hand_again_and_again(layer):
    """What channels hold in float is kept from one correction to the next, for each choice."""
    twice, once = layer(bits=8, moved=0.3), layer(bits=8, moved=0.3)
    some = TRAIN[:5]
    twice[0].correct(TRAIN, HELD, 0.0)  # nothing is better than no error: undone
    twice[0].correct(some, HELD, np.inf)
    once[0].correct(some, HELD, np.inf)
    found, wanted = (learnables.biases["m"].bias() for _, learnables in (twice, once))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert np.abs(wanted).max() > 0.01


def test_the_error_is_the_geometric_mean_over_samples(layer):
    lesson, _ = layer()  # 3 bits: errors go with what a sample holds
    alone = np.array([lesson.error([sample]) for sample in HELD])
    np.testing.assert_allclose(lesson.log_errors(HELD).numpy(), np.log(alone), rtol=1e-4)
    assert lesson.error(HELD) == pytest.approx(np.exp(np.log(alone).mean()), rel=1e-4)
    assert lesson.error(HELD) < 0.999 * alone.mean()  # which the largest would rule


def test_what_does_not_help_is_undone(layer):
    lesson, learnables = layer(shift=0.7)
    state = [item.clone() for item in learnables.state()]
    assert lesson.learn(TRAIN, HELD, 0, 0.0) == 0.0  # nothing is better than no error
    assert all(torch.equal(a, b) for a, b in zip(state, learnables.state(), strict=True))
    bias = learnables.biases["m"].bias()
    assert lesson.correct(TRAIN, HELD, 0.0) == 0.0
    np.testing.assert_allclose(learnables.biases["m"].bias(), bias, rtol=1e-6)


def test_the_same_seed_learns_the_same(layer):
    found = []
    for seed in (1, 1, 2):
        lesson, learnables = layer(schedule=Schedule(steps=10, batch=8))
        lesson.learn(TRAIN, HELD, seed, np.inf)
        found.append(torch.cat([item.reshape(-1) for item in learnables.state()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_costs_count_errors_as_large_as_the_signal_as_one():
    energy = {"a": torch.tensor([[4.0, 1.0]]), "b": torch.tensor(9.0)}
    plain = costs_of(energy, {})
    assert float(sum((plain[n] * energy[n]).mean() for n in energy)) == pytest.approx(1)
    gains = costs_of(energy, {"a": np.float32([3.0, 0.0]), "b": np.float32([1.0, 1.0])})
    assert gains["a"][0, 1] == 0  # nobody minds errors there
    assert gains["b"] > 0  # gains of another shape are not used


def test_samples_are_drawn_in_the_order_asked_for(tmp_path):
    store = SampleStore(Memory(1 << 20, tmp_path))
    for value in range(4):
        store.append_array(np.full((1, 2), value, np.float32))
    assert drawn({"x": store}, [2, 0])["x"][:, 0].tolist() == [2.0, 0.0]
    assert [list(part) for part in parts(range(5), 2)] == [[0, 1], [2, 3], [4]]
