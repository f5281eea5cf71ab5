# SPDX-License-Identifier: Apache-2.0
"""Random hybrids compile for every target and mean the same however onnxruntime runs them."""

import re

import numpy as np
import onnx
import pytest

from qhyvit_onnx.compiler import compile_model
from qhyvit_onnx.config import CompileConfig, Guard, Verification
from qhyvit_onnx.metrics import Comparison
from qhyvit_onnx.runtime import Arithmetic, Options, Session
from qhyvit_onnx.targets import TARGETS
from tests.random_hybrids import BLOCKS, CHANNELS, SIDE, random_hybrid

SEEDS = range(47, 59)
EXACT = Options(arithmetic=Arithmetic.EXACT)


def sqnr_db(first, second, feeds):
    """Return the distance of two sessions, at the output where they differ most."""
    results = first.run(feeds), second.run(feeds)
    distances = []
    for name in first.outputs:
        comparison = Comparison()
        comparison.add(*(values[name] for values in results))
        distances.append(comparison.result().sqnr_db)
    return min(distances)


def test_the_seeds_draw_every_block():
    texts = [random_hybrid(seed)[0] for seed in SEEDS]
    drawn = {name for text in texts for name in re.findall(r"([a-z_]+)_\d", text)}
    assert {row[0].__name__ for row in BLOCKS} <= drawn


@pytest.mark.parametrize("target", [target.name for target in TARGETS])
@pytest.mark.parametrize("seed", SEEDS)
def test_compiles_and_keeps_its_meaning(build, seed, target):
    text, arrays = random_hybrid(seed)
    model = build(text, **arrays)
    onnx.checker.check_model(model, full_check=True)
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((4, 1, CHANNELS, SIDE, SIDE)).astype(np.float32)
    config = CompileConfig(
        target=target,
        guard=Guard(samples=seed % 2),
        verification=Verification(samples=2, rounds=0),
    )
    compiled = compile_model(model, [{"x": image} for image in images], config)  # audits as well
    fused, feeds = Session(compiled.model, EXACT), {"x": images[0]}

    # some fifty roundings to 8 bits, -38 dB each: together a hundredth of the energy at most
    assert min(output.sqnr_db for output in compiled.report.outputs) > 20.0
    # kernels round once more inside, tables stand for functions: a thousandth
    assert sqnr_db(Session(compiled.model, Options(fuse_qdq=False)), fused, feeds) > 30.0
    # weights were kept from saturating sums of pairs; with VNNI the two are equal anyway
    assert target != "x64-avx2" or sqnr_db(Session(compiled.model), fused, feeds) > 40.0
