# SPDX-License-Identifier: Apache-2.0
"""Every grid against its formula, value by value, in numpy and in torch."""

import numpy as np
import pytest

from qhyvit_onnx.errors import PassError
from qhyvit_onnx.grid import Grid
from qhyvit_onnx.simulated import ChannelGrid, ColumnGrid, LogGrid, TwinGrid

torch = pytest.importorskip("torch")

from qhyvit_onnx.kernels.quantizers import constant, quantizer  # noqa: E402


def values(shape=(4, 3, 5), scale=1.0):
    return (scale * np.random.default_rng(5).standard_normal(shape)).astype(np.float32)


def by_torch(grid, x):
    return quantizer(grid)(torch.from_numpy(x)).numpy()


def channels(zeros=(0, 128, 300), axis=1, bits=8):
    return ChannelGrid(np.float32([0.1, 0.02, 0.5]), np.float32(zeros), axis, bits)


GRIDS = {
    "per tensor": Grid(0.03, 100),
    "few bits": Grid(0.3, 7, 4),
    "channels": channels(),
    "heads": channels(axis=-2),
    "log2": LogGrid(1.0, 1, 4),
    "log sqrt2": LogGrid(0.7, 2, 4),
    "log of 8 bits": LogGrid(0.9, 2, 8),
    "twin about zero": TwinGrid(0.001, 0.1, 0.0, 6),
    "twin about a split": TwinGrid(0.001, 1 / 31, 0.031, 6),
}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_torch_and_numpy_agree(grid):
    x = values()
    # the same float32 operations: only an ulp of log2 or exp2 may differ
    np.testing.assert_allclose(by_torch(grid, x), grid.fake(x), rtol=1e-6, atol=0)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_what_was_rounded_stays(grid):
    once = by_torch(grid, values())
    np.testing.assert_allclose(by_torch(grid, once), once, rtol=1e-6, atol=0)


def test_a_channel_grid_is_a_grid_for_each_channel():
    x, grid = values(scale=20.0), channels(zeros=(0, 128, 255))
    for index in range(3):
        alone = Grid(float(grid.scales[index]), int(grid.zero_points[index]))
        np.testing.assert_array_equal(grid.fake(x)[:, index], alone.fake(x[:, index]))


def test_a_zero_point_outside_of_the_codes_shifts_the_range():
    grid = ChannelGrid(np.float32([0.1]), np.float32([-200]), -1)
    # codes 0 to 255 stand for 0.1 (0 + 200) to 0.1 (255 + 200)
    got = grid.fake(np.float32([19.0, 20.04, 33.31, 50.0]))
    np.testing.assert_allclose(got, [20.0, 20.0, 33.3, 45.5], rtol=1e-6)


@pytest.mark.parametrize(("octave", "base"), [(1, 2.0), (2, 2.0**0.5)])
def test_logarithms_by_their_formula(octave, base):
    scale, bits, x = 0.8, 4, np.float32([0.8, 1.0, 0.37, 0.021, 0.004, 3e-5, 0.0])
    with np.errstate(divide="ignore"):
        codes = np.maximum(np.rint(-np.log(x / scale) / np.log(base)), 0)
    want = np.where(codes < 16, scale * base**-codes, 0.0)
    np.testing.assert_allclose(LogGrid(scale, octave, bits).fake(x), want, rtol=1e-6)
    assert want[-1] == 0.0
    assert want[0] == pytest.approx(scale)


def test_twin_ranges_by_their_formula():
    grid = TwinGrid(below=0.25 / 7, above=1 / 7, split=0.25, bits=4)
    x = np.float32([0.0, 0.05, 0.24, 0.25, 0.6, 1.0, 1.5])
    # below the split in steps of 1/28, above in steps of 1/7, seven of each at most
    want = [0.0, 1 / 28, 7 / 28, 2 / 7, 4 / 7, 1.0, 1.0]
    np.testing.assert_allclose(grid.fake(x), want, rtol=1e-6)


def test_columns_are_multiplied_before_they_are_rounded():
    weight = values((6, 3))
    factors = np.float32([[0.5, 1.0, 4.0]])
    inner = ChannelGrid(np.full(6, 0.05, np.float32), np.full(6, 100, np.float32), 0)
    want = (np.clip(np.rint(weight * factors / 0.05) + 100, 0, 255) - 100) * 0.05 / factors
    np.testing.assert_allclose(ColumnGrid(inner, factors).fake(weight), want, rtol=1e-5)


def test_a_constant_stands_in():
    array = values((2, 2))
    np.testing.assert_array_equal(constant(array)(torch.zeros(9)).numpy(), array)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ChannelGrid(np.float32([0.0]), np.float32([0]), 0),
        lambda: ChannelGrid(np.float32([1.0]), np.float32([0.5]), 0),
        lambda: ChannelGrid(np.float32([1.0, 1.0]), np.float32([0]), 0),
        lambda: LogGrid(float("nan")),
        lambda: TwinGrid(0.1, -1.0, 0.0),
    ],
)
def test_what_rounds_nothing_cannot_be_made(make):
    with pytest.raises(PassError):
        make()
