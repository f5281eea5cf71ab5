# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests of passes: one pass run, and two models held to each other."""

import numpy as np
import onnx
import pytest

from qhyvit_onnx.passes.normalise import Normalise


@pytest.fixture
def normalised(state):
    """Return a function: model -> the model after Normalise, and what the pass said."""

    def run(model):
        held = state(model)
        outcome = Normalise().run(held)
        result = held.model()
        onnx.checker.check_model(result)
        return result, outcome

    return run


@pytest.fixture
def assert_same(run_model):
    """Return a function that holds the outputs of two models to each other, feed by feed."""

    def check(before, after, *feeds):
        for feed in feeds:
            for want, got in zip(run_model(before, feed), run_model(after, feed), strict=True):
                # float32 in another order: some units in the last place of the largest value
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())

    return check


@pytest.fixture
def ops():
    """Return a function: model -> the op of every node."""
    return lambda model: [node.op_type for node in model.graph.node]
