# SPDX-License-Identifier: Apache-2.0
"""Random chains of movement: what the maps say is what onnxruntime does, element by element.

The source holds 1, 2, 3, ...; padding and other parts of a Concat hold 0. Integers this small are
exact in float32, so everything is compared for equality.
"""

from itertools import pairwise

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import sympy
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st

from qhyvit_onnx.graph import import_graph
from qhyvit_onnx.layout.chains import analyse
from qhyvit_onnx.layout.index_map import coordinates
from qhyvit_onnx.layout.roles import RoleKind
from qhyvit_onnx.symbolic.dims import is_number
from tests.layout.random_moves import BATCH, PLAIN, chains

QUICK = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


def unoptimised(model, x):
    """Run node by node: onnxruntime 1.31 cannot move a Transpose through a Pad that has axes."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    data = model.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


class Run:
    """A chain that onnxruntime ran: ``origin`` is where each output element is from, -1 outside."""

    def __init__(self, model):
        found = [c for c in analyse(import_graph(model)).chains if (c.source, c.end) == ("s", "y")]
        assume(found)
        (self.chain,) = found
        self.map = self.chain.map
        dims = [d.dim_value or BATCH for d in model.graph.input[0].type.tensor_type.shape.dim]
        self.source = tuple(dims)
        x = -np.arange(1, 1 + np.prod(dims), dtype=np.float32).reshape(dims)
        (y,) = unoptimised(model, x)
        self.origin = y.astype(np.int64) - 1
        self.inside = self.origin >= 0
        self.places = np.argwhere(self.inside).T
        """Output coordinates of the elements inside, one row an axis."""
        self.came_from = np.array(np.unravel_index(self.origin[self.inside], dims))

    def numbers(self, expressions, letter, at):
        """Return the expressions worked out at the points ``at``, one row an axis."""
        symbols = coordinates(letter, len(at))
        free = {s for e in expressions for s in e.free_symbols} - set(symbols)
        assert {str(symbol) for symbol in free} <= {"n"}
        ready = [e.subs(dict.fromkeys(free, BATCH)) for e in expressions]
        exact = {  # fractions here are multiples of 1 / size, so a rounding error is no quotient
            "floor": lambda ratio: np.floor(ratio + 1e-6),
            "TableEntry": lambda k, *table: np.take(table, np.asarray(k, int)),
        }
        function = sympy.lambdify(symbols, ready, [exact, "numpy"])
        rows = [np.broadcast_to(row, at.shape[1:]) for row in function(*at)]
        return np.array(rows).reshape(len(expressions), -1)


@pytest.mark.parametrize("free", [False, True], ids=["static", "free"])
def test_maps_say_what_onnxruntime_does(free):
    @QUICK
    @given(chains(free=free), st.data())
    def check(model, data):
        note(onnx.printer.to_text(model.graph))
        run = Run(model)
        assert len(run.map.shape) == run.origin.ndim
        holds_forward(run)
        holds_backward(run)
        holds_roles(run)
        holds_pulled(run, data)
        if run.map.is_permutation:
            assert sorted(run.origin.reshape(-1)) == list(range(np.prod(run.source)))

    check()


def holds_forward(run):
    found = run.numbers(run.map.source_of_output(), "o", run.places)
    np.testing.assert_array_equal(found, run.came_from)
    everywhere = np.indices(run.origin.shape).reshape(run.origin.ndim, -1)
    (inside,) = run.numbers([run.map.inside()], "o", everywhere)
    np.testing.assert_array_equal(inside, run.inside.reshape(-1))


def holds_backward(run):
    expressions = run.map.output_of_source()
    if expressions is not None:
        found = run.numbers(expressions, "i", run.came_from)
        np.testing.assert_array_equal(found, run.places)


def holds_roles(run):
    for axis, size in enumerate(run.source):
        role = run.map.role(axis)
        at = run.came_from[axis]
        if role.kind is RoleKind.GONE:
            assert len(set(at)) <= 1
            assert role.axes == ()
        elif role.kind is RoleKind.WHOLE:
            np.testing.assert_array_equal(at, run.places[role.axes[0]])
            assert run.origin.shape[role.axes[0]] == size
        elif role.kind is RoleKind.PART:
            assert is_affine(run.places[role.axes[0]], at)
        elif role.kind is RoleKind.SPLIT:
            assert in_order(run.places[list(role.axes)], at)
        if role.kind in {RoleKind.WHOLE, RoleKind.PART, RoleKind.SPLIT}:
            assert alone(run, axis, role.axes)
        assert depends_only_on(run, at, role.axes)


def is_affine(index, at):
    """Tell whether ``at`` is offset + stride * ``index``."""
    pairs = dict(zip(index.tolist(), at.tolist(), strict=True))
    steps = {(b - a) / (j - i) for (i, a), (j, b) in pairwise(pairs.items())}
    return len(steps) <= 1 and all(pairs[i] == a for i, a in zip(index, at, strict=True))


def in_order(indices, at):
    """Tell whether ``at`` rises with ``indices``, the first row slowest, and depends on no more."""
    pairs = sorted({(*map(int, key), int(a)) for *key, a in zip(*indices, at, strict=True)})
    values = [pair[-1] for pair in pairs]
    return values == sorted(set(values))


def alone(run, axis, axes):
    """Tell whether the other source coordinates depend on other output axes than ``axes`` only."""
    others = [a for a in range(len(run.source)) if a != axis]
    rest = [a for a in range(len(run.places)) if a not in axes]
    return all(depends_only_on(run, run.came_from[a], rest) for a in others)


def depends_only_on(run, at, axes):
    """Tell whether ``at`` has one value for each choice of output ``axes``."""
    keys = map(tuple, run.places[list(axes)].T.tolist())
    seen = {}
    return all(
        seen.setdefault(key, int(value)) == value for key, value in zip(keys, at, strict=True)
    )


def holds_pulled(run, data):
    """Pull random arrays over random sets of axes of the source."""
    rank = len(run.source)
    axes = data.draw(st.sets(st.integers(0, rank - 1)))
    shape = [size if axis in axes else 1 for axis, size in enumerate(run.source)]
    values = np.random.default_rng(len(axes)).permutation(np.prod(shape)).reshape(shape) + 1
    expected = np.zeros_like(run.origin)
    expected[run.inside] = np.broadcast_to(values, run.source).reshape(-1)[run.origin[run.inside]]
    whole = all(map(is_number, run.map.source)) and all(map(is_number, run.map.shape))
    free = [a for a, dim in enumerate(run.map.source) if not is_number(dim)]
    if axes & set(free) and values.shape[free[0]] > 1:
        return  # an array cannot vary along an axis of no known size
    pulled = run.map.pull(values, 0)
    if pulled is None:
        assert not whole
        return
    np.testing.assert_array_equal(np.broadcast_to(pulled, run.origin.shape), expected)


@pytest.mark.parametrize("free", [False, True], ids=["static", "free"])
def test_plain_moves_are_proven_permutations(free):
    @QUICK
    @given(chains(PLAIN, free=free))
    def check(model):
        note(onnx.printer.to_text(model.graph))
        run = Run(model)
        assert run.map.is_permutation
        assert run.map.output_of_source() is not None
        for axis, size in enumerate(run.source):
            if size > 1 and not free and is_whole(run, axis):
                assert run.map.role(axis).kind is RoleKind.WHOLE

    check()


def is_whole(run, axis):
    """Tell whether some output axis is exactly source axis ``axis``: look at every element."""
    at = run.came_from[axis]
    same = [a for a, size in enumerate(run.origin.shape) if size == run.source[axis]]
    return any(np.array_equal(run.places[a], at) and alone(run, axis, (a,)) for a in same)
