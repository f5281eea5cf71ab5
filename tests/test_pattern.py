# SPDX-License-Identifier: Apache-2.0
"""A pattern binds all it names, or says at which node and why it stopped."""

import pytest

from qhyvit_onnx.graph import import_graph
from qhyvit_onnx.pattern import AnyTensor, Miss, Number, OneOf, Op, match

X = AnyTensor("x")
SILU = Op("Mul", (X, Op("Sigmoid", (X,), bind="gate")), either=True)


@pytest.fixture
def graph(build):
    def make(body, outputs="float[N] y"):
        text = f"g (float[N] x, float[N] z) => ({outputs}) <float two = {{2.0}}> {{ {body} }}"
        return import_graph(build(text))

    return make


def root(graph, op):
    return next(node for node in graph.nodes if node.op == op)


@pytest.mark.parametrize("order", ["x, s", "s, x"])
def test_binds_in_either_order(graph, order):
    g = graph(f"s = Sigmoid(x) y = Mul({order})")
    bound = match(SILU, root(g, "Mul"), g)
    assert bound["x"].name == "x"
    assert bound["gate"].op == "Sigmoid"


def test_the_same_name_is_the_same_tensor(graph):
    g = graph("s = Sigmoid(x) y = Mul(z, s)")
    miss = match(SILU, root(g, "Mul"), g)
    assert isinstance(miss, Miss)
    assert "another tensor" in miss.reason or "want Sigmoid" in miss.reason


def test_a_second_reader_is_a_miss(graph):
    g = graph("s = Sigmoid(x) y = Mul(x, s) v = Relu(s)", "float[N] y, float[N] v")
    assert match(SILU, root(g, "Mul"), g) == Miss(
        "Sigmoid output has 2 uses", root(g, "Sigmoid").name
    )


def test_a_graph_output_is_a_reader(graph):
    g = graph("s = Sigmoid(x) y = Mul(x, s)", "float[N] y, float[N] s")
    assert isinstance(match(SILU, root(g, "Mul"), g), Miss)


def test_shared_allows_more_readers(graph):
    g = graph("s = Sigmoid(x) y = Mul(x, s) v = Relu(s)", "float[N] y, float[N] v")
    pattern = Op("Mul", (X, Op("Sigmoid", (X,), shared=True)))
    assert not isinstance(match(pattern, root(g, "Mul"), g), Miss)


@pytest.mark.parametrize(
    ("wanted", "found"), [(2.0, True), (2.001, True), (2.1, False), (None, True)]
)
def test_numbers_have_a_tolerance(graph, wanted, found):
    g = graph("y = Mul(x, two)")
    bound = match(Op("Mul", (X, Number(wanted, bind="n"))), root(g, "Mul"), g)
    assert isinstance(bound, dict) == found
    assert not found or bound["n"].name == "two"


def test_zero_has_no_tolerance(graph):
    g = graph("y = Mul(x, two)")
    assert isinstance(match(Op("Mul", (X, Number(0.0))), root(g, "Mul"), g), Miss)


def test_one_of_takes_the_first_way_that_fits(graph):
    ways = OneOf((Op("Sigmoid", (X,), bind="gate"), Op("Tanh", (X,), bind="gate")))
    g = graph("t = Tanh(x) y = Mul(x, t)")
    assert match(Op("Mul", (X, ways)), root(g, "Mul"), g)["gate"].op == "Tanh"


def test_one_of_says_why_the_first_way_failed(graph):
    ways = OneOf((Op("Sigmoid", (X,)), Op("Tanh", (X,))))
    g = graph("t = Relu(x) y = Mul(x, t)")
    assert match(Op("Mul", (X, ways)), root(g, "Mul"), g).reason == "want Sigmoid, found Relu"


def test_an_input_that_is_not_there(graph):
    g = graph("y = Relu(x)")
    assert match(Op("Relu", (X, X)), root(g, "Relu"), g).reason == "Relu has no input 1"
