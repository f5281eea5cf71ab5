# SPDX-License-Identifier: Apache-2.0
"""Shape arithmetic of any make keeps its value, whatever the free dims turn out to be."""

import numpy as np
import sympy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qhyvit_onnx.graph import import_graph
from qhyvit_onnx.symbolic.shapes import infer

LINKS = (
    "Add({a}, {c})",
    "Sub({a}, {c})",
    "Mul({a}, {b})",
    "Mul({c}, {a})",
    "Div({a}, {c})",
    "Mod({a}, {c})",
    "Max({a}, {c})",
    "Min({a}, {b})",
    "Where(less, {a}, {b})",
    "Neg({a})",
    "Floor",
    "Ceil",
)
CHAINS = st.lists(
    st.tuples(st.sampled_from(LINKS), st.integers(0, 5), st.integers(0, 5), st.integers(1, 6)),
    min_size=1,
    max_size=6,
)


def written(chain):
    """Return a model text that computes ``chain`` from the dims of x, and reads it at run time."""
    lines = ["s = Shape(x)", "v0 = Gather(s, i0)", "v1 = Gather(s, i1)", "less = Less(v0, v1)"]
    constants = {"i0": np.array([0]), "i1": np.array([2])}
    for index, (link, a, b, number) in enumerate(chain):
        name, at = f"v{index + 2}", index + 2
        first, second, c = f"v{a % at}", f"v{b % at}", f"c{index}"
        constants[c] = np.array([number])
        if link in ("Floor", "Ceil"):
            constants[f"f{index}"] = np.array([number], np.float32)
            lines += [
                f"r{index} = Cast<to = 1>({first})",
                f"q{index} = Div(r{index}, f{index})",
                f"w{index} = {link}(q{index})",
                f"{name} = Cast<to = 7>(w{index})",
            ]
        else:
            lines.append(f"{name} = {link.format(a=first, b=second, c=c)}")
    lines.append(f"y = Mul(z, v{len(chain) + 1})")
    body = "\n".join(lines)
    return f"g (float[N, 4, 6] x, int64[1] z) => (int64[1] y) {{ {body} }}", constants


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(CHAINS)
def test_a_chain_keeps_its_value(build, normalised, run_model, chain):
    text, constants = written(chain)
    model = build(text, **constants)
    result, _ = normalised(model)
    for batch in (1, 2, 5, 6, 7):
        feeds = {"x": np.zeros((batch, 4, 6), np.float32), "z": np.array([1])}
        # integers: nothing but equality will do
        np.testing.assert_array_equal(run_model(result, feeds), run_model(model, feeds))


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(CHAINS)
def test_what_is_known_is_so(build, run_model, chain):
    text, constants = written(chain)
    model = build(text, **constants)
    known = infer(import_graph(model)).values.get(f"v{len(chain) + 1}")
    element = sympy.sympify(known.reshape(-1).tolist()[0])
    if element.atoms(sympy.Dummy):
        return  # an integer of which nothing is claimed
    for batch in (1, 2, 5, 6, 7):
        feeds = {"x": np.zeros((batch, 4, 6), np.float32), "z": np.array([1])}
        symbol = sympy.Symbol("N", positive=True, integer=True)
        assert run_model(model, feeds)[0].item() == element.subs(symbol, batch)


@given(st.permutations([0, 1, 2, 3]), st.permutations([0, 1, 2, 3]))
@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_a_reshape_to_mixed_dims_keeps_its_meaning(build, normalised, run_model, order, sources):
    """Two free dims in any order: as a copied dim, an inferred dim, or left to be computed."""
    constants = {f"i{k}": np.array([k]) for k in range(4)}
    lines = ["s = Shape(x)", *(f"d{k} = Gather(s, i{k})" for k in range(4))]
    both = f"m = Mul(d{sources[0]}, d{sources[1]})"
    target = ", ".join(f"d{k}" for k in order)
    rest = ", ".join(f"d{k}" for k in sources[2:])
    lines += [both, f"t = Concat<axis = 0>({target})", f"u = Concat<axis = 0>(m, {rest})"]
    lines += ["a = Reshape(x, t)", "b = Reshape(x, u)", "y = Relu(a)", "v = Relu(b)"]
    outputs = "(float[A, B, C, D] y, float[E, F, G] v)"
    body = "\n".join(lines)
    model = build(f"g (float[N, 3, 4, W] x) => {outputs} {{ {body} }}", **constants)
    result, _ = normalised(model)
    for batch, width in ((1, 1), (2, 5), (5, 2)):
        x = np.random.default_rng(0).standard_normal((batch, 3, 4, width)).astype(np.float32)
        for got, want in zip(run_model(result, {"x": x}), run_model(model, {"x": x}), strict=True):
            np.testing.assert_array_equal(got, want)
