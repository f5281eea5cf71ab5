# SPDX-License-Identifier: Apache-2.0
"""The index map as a value: composing, asking, pulling. Small sizes, checked by hand."""

import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from qhyvit_onnx.layout.index_map import IndexMap, coordinates
from qhyvit_onnx.layout.pulling import LARGEST
from qhyvit_onnx.layout.roles import Role, RoleKind
from qhyvit_onnx.layout.steps import Permute, Pick, Regroup, Repeat, Take, Widen

N = sympy.Symbol("n", positive=True, integer=True)
SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


def test_identity():
    found = IndexMap.identity((N, 3, 1))
    assert found.source_of_output() == (*coordinates("o", 2), 0)
    assert found.is_permutation
    assert [found.role(axis).kind for axis in range(3)] == [
        RoleKind.WHOLE, RoleKind.WHOLE, RoleKind.GONE,
    ]  # fmt: skip
    assert found.role(-2) == Role(RoleKind.WHOLE, (1,))


@given(SHAPES, st.data())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_then_is_one_after_the_other(shape, data):
    """Pulling through the composed map is pulling through one map, then through the next."""
    order = tuple(data.draw(st.permutations(range(len(shape)))))
    turned = tuple(shape[axis] for axis in order)
    first = IndexMap.of(shape, [Permute(order), Regroup((int(np.prod(shape)),))], (np.prod(shape),))
    second = IndexMap.of(first.shape, [Regroup(turned), Repeat(0, 2)], (2 * turned[0], *turned[1:]))
    values = np.arange(np.prod(shape)).reshape(shape)
    both = first.then(second)
    np.testing.assert_array_equal(both.pull(values, -1), second.pull(first.pull(values, -1), -1))
    assert (both.source, both.shape) == (shape, second.shape)


def test_maps_that_do_not_meet():
    with pytest.raises(ValueError, match="cannot go on from"):
        IndexMap.identity((2, 3)).then(IndexMap.identity((3, 2)))


@pytest.mark.parametrize(
    ("steps", "shape"),
    [
        ([Take(1, 0, 1, 4)], (3, 4)),
        ([Take(1, 5, -1, 5)], (3, 5)),
        ([Widen(0, 1, 5)], (5, 6)),
        ([Repeat(1, 2)], (3, 12)),
        ([Pick(1, (0, 1, 2, 3, 3, 5))], (3, 6)),
        ([Pick(1, (0, 1, 2))], (3, 3)),
    ],
    ids=["part", "part backwards", "padded", "repeated", "one index twice", "short table"],
)
def test_no_permutation(steps, shape):
    assert not IndexMap.of((3, 6), steps, shape).is_permutation


@pytest.mark.parametrize(
    ("steps", "shape"),
    [
        ([Take(1, 5, -1, 6)], (3, 6)),
        ([Pick(1, (5, 0, 1, 2, 4, 3))], (3, 6)),
        ([Regroup((2, 9))], (2, 9)),
        ([Regroup((2, 9)), Take(1, 8, -1, 9), Permute((1, 0))], (9, 2)),
        ([Widen(1, 2, 9), Take(1, 2, 1, 6)], (3, 6)),
    ],
    ids=["backwards", "table", "mixed", "mixed, backwards", "padded and cut"],
)
def test_permutation(steps, shape):
    found = IndexMap.of((3, 6), steps, shape)
    assert found.is_permutation
    values = np.arange(18).reshape(3, 6)
    assert sorted(found.pull(values, -1).reshape(-1)) == list(range(18))


def test_several_places_have_no_inverse():
    assert IndexMap.of((3, 6), [Repeat(1, 2)], (3, 12)).output_of_source() is None


def test_a_mixed_reshape_is_exact():
    found = IndexMap.of((2, 3), [Regroup((3, 2))], (3, 2))
    assert found.role(0) == Role(RoleKind.MIXED, (0, 1))
    o0, o1 = coordinates("o", 2)
    at = [(i, j) for i in range(3) for j in range(2)]
    places = [tuple(part.subs({o0: i, o1: j}) for part in found.source_of_output()) for i, j in at]
    assert places == [divmod(2 * i + j, 3) for i, j in at]


def test_a_table_stays_exact_as_an_expression():
    found = IndexMap.of((4,), [Pick(0, (3, 1, 1, 0, 2))], (5,))
    (place,) = found.source_of_output()
    (o0,) = coordinates("o", 1)
    assert [place.subs(o0, k) for k in range(5)] == [3, 1, 1, 0, 2]
    assert found.role(0) == Role(RoleKind.MIXED, (0,))


def test_pull_knows_what_does_not_vary():
    """A free batch is no obstacle as long as nothing varies along it."""
    found = IndexMap.of((N, 6, 4), [Permute((0, 2, 1)), Regroup((4 * N, 2, 3))], (4 * N, 2, 3))
    scales = np.arange(6.0, dtype=np.float32).reshape(1, 6, 1)
    pulled = found.pull(scales, np.nan)
    np.testing.assert_array_equal(pulled, np.arange(6).reshape(1, 2, 3))
    assert pulled.dtype == np.float32
    assert found.pull(np.ones((1, 1, 4)), 0.0) is None  # those four share an axis with the batch
    np.testing.assert_array_equal(found.pull(np.float32([[[5]]]), 0.0), [[[5]]])


def test_pull_through_a_reshape_by_a_free_dim():
    """Element e of the first row of (n, 4) lies in row e // n of (4, n)."""
    found = IndexMap.of((4, N), [Regroup((N, 4)), Take(0, 0, 1, 1)], (1, 4))
    assert found.pull(np.arange(4).reshape(4, 1), -1) is None
    assert found.pull(np.int64([[3]]), -1) == 3


def test_pull_fills_what_is_outside():
    found = IndexMap.of((2, N), [Widen(1, 1, N + 3), Widen(0, 1, 3)], (3, N + 3))
    assert found.pull(np.float32([[1], [2]]), 0.0) is None  # where the padding ends depends on n
    single = IndexMap.of((2, 4), [Widen(1, 1, 7), Widen(0, 1, 3)], (3, 7))
    np.testing.assert_array_equal(
        single.pull(np.int64([[1], [2]]), -1),
        [[-1] * 7, [-1, 1, 1, 1, 1, -1, -1], [-1, 2, 2, 2, 2, -1, -1]],
    )
    np.testing.assert_array_equal(found.pull(np.int64([[7]]), 7), [[7]])  # all alike, fill too


def test_pull_has_a_limit():
    side = int(LARGEST**0.5)
    shape = (side, side)
    values = [np.zeros((1, side), np.int8), np.zeros((side, 1), np.int8)]
    flat = IndexMap.of(shape, [Regroup((side * side,))], (side * side,))
    assert flat.pull(values[0], 0).shape == (LARGEST,)
    longer = IndexMap.of((side, side + 1), [Regroup((side * (side + 1),))], (side * (side + 1),))
    assert longer.pull(np.zeros((1, side + 1), np.int8), 0) is None
    assert longer.pull(np.zeros((1, 1), np.int8), 0).shape == (1,)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (3, 3), (2, 1, 1)])
def test_pull_of_another_shape(shape):
    with pytest.raises(ValueError, match="do not fit"):
        IndexMap.identity((2, 3)).pull(np.zeros(shape), 0)


def test_an_empty_map():
    """What a slice takes of the padding alone comes from nowhere."""
    found = IndexMap.of((4,), [Widen(0, 2, 8), Take(0, 6, 1, 2)], (2,))
    assert found.is_empty
    np.testing.assert_array_equal(found.pull(np.arange(4), -1), [-1, -1])
    assert not IndexMap.of((4,), [Widen(0, 2, 8), Take(0, 5, 1, 2)], (2,)).is_empty
