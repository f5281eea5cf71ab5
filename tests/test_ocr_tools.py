# SPDX-License-Identifier: Apache-2.0
"""The text lines and the benchmark on them: drawn from seeds, read by CTC, scored by the word."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

TOOLS = Path(__file__).resolve().parent.parent / "tools"
SYMBOLS = ["", "a", "b", "c", " "]


def tool(name):
    """Return a module of tools/: the scripts there import each other by bare name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        return import_module(name)


@pytest.fixture(scope="module")
def drawing():
    return tool("_lines")


@pytest.fixture(scope="module")
def bench():
    return tool("bench_ocr")


@pytest.fixture
def photos():
    pixels = np.random.default_rng(0).integers(0, 256, (400, 500, 3)).astype(np.uint8)
    return [Image.fromarray(pixels)]


@pytest.fixture
def lines(drawing, photos, monkeypatch):
    """Return a function: as ``lines``, on photographs of noise."""
    monkeypatch.setattr(drawing, "photographs", lambda: photos)
    return drawing.lines


def ctc(text, steps=12):
    """Return scores that read as ``text``: a blank after every letter."""
    scores = np.zeros((1, steps, len(SYMBOLS)), np.float32)
    scores[:, :, 0] = 0.5
    for at, letter in enumerate(text):
        scores[0, 2 * at, SYMBOLS.index(letter)] = 1.0
    return scores


def test_lines_come_from_their_seed(lines, drawing):
    (x, words), (again, same), (other, _) = (
        lines(3, seed, difficulty=drawing.WORDS) for seed in (1, 1, 2)
    )
    assert x.shape == (3, 3, 48, 320)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, again)
    assert words == same
    assert not np.array_equal(x, other)
    assert np.abs(x).max() <= 1.0


def test_difficulty_changes_lines_and_not_what_they_say(lines, drawing):
    x, words = lines(4, 1)
    hard, told = lines(4, 1, difficulty=replace(drawing.STANDARD, noise=60.0, blur=3.0))
    assert told == words
    assert not np.array_equal(hard, x)


@pytest.mark.parametrize("name", ["STANDARD", "WORDS"])
def test_names_keep_to_their_length(lines, drawing, name):
    difficulty = getattr(drawing, name)
    shortest, longest = difficulty.letters
    lengths = [len(word) for word in lines(40, 5, difficulty=difficulty)[1]]
    assert shortest <= min(lengths) < max(lengths) <= longest


def test_squeezed_words_are_narrower(drawing, photos):
    flat = replace(drawing.STANDARD, noise=0.0, blur=0.0, letters=(8, 8))
    widths = []
    for difficulty in (flat, replace(flat, squeeze=0.5)):
        rng = np.random.default_rng(3)
        line = drawing.draw("Bananana", rng, photos, 320, difficulty)
        widths.append(np.flatnonzero(np.abs(line).sum(axis=(0, 1))).max())
    assert widths[1] < widths[0]


@pytest.mark.parametrize("text", ["abc", "aab", "", "c"])
def test_greedy_ctc(text):
    assert tool("ocr_lines").decode(ctc(text), SYMBOLS) == [text]


def test_a_score_counts_words(bench):
    score = bench.Score()
    readings = [("ab", "ab", "ab"), ("ab", "ab", "ac"), ("cc", "c", "cc"), ("b", "a", "a"),
                ("b", "b", "a")]  # fmt: skip
    for word, before, after in readings:
        score.add(word, (ctc(before), ctc(after)), SYMBOLS)
    assert (score.lines, score.float_right, score.right) == (5, 3, 2)
    assert (score.lost, score.won) == (2, 1)
    assert score.drop == pytest.approx(20.0)
    # of 60 steps those differ where the letters do: 1, 1 (c against nothing), 1
    assert score.steps.result().agreement == pytest.approx(57 / 60)


READER = """
<ir_version: 8, opset_import: ["" : 17]>
reader (float[N, 3, 48, 320] x) => (float[N, 40, 5] y)
<int64[3] tokens = {0, 40, 32}>
{
  a = Conv <strides = [8, 8], kernel_shape = [8, 8]> (x, w_stem)
  b = Relu (a)
  c = Conv (b, w_point)
  d = AveragePool <kernel_shape = [6, 1]> (c)
  e = Transpose <perm = [0, 3, 2, 1]> (d)
  f = Reshape (e, tokens)
  g = MatMul (f, w_head)
  y = Softmax (g)
}
"""


def test_a_recogniser_is_measured(bench, build, lines, drawing, tmp_path):
    rng = np.random.default_rng(8)
    fans = {
        "w_stem": ((32, 3, 8, 8), 192),
        "w_point": ((32, 32, 1, 1), 32),
        "w_head": ((32, 5), 32),
    }
    weights = {name: rng.standard_normal(shape) / fan**0.5 for name, (shape, fan) in fans.items()}
    model = build(READER, **{name: array.astype(np.float32) for name, array in weights.items()})
    model.metadata_props.add(key="character", value="a\nb\nc")
    onnx.save(model, tmp_path / "ppocr_toy_rec.onnx")
    for name in ("calib", "eval"):
        np.savez(tmp_path / f"ocr_{name}.npz", x=lines(6, len(name))[0])
    words = lines(5, 9, difficulty=drawing.WORDS)
    config = bench.CompileConfig(
        target="arm64", calib_samples=6, effort=bench.Effort.FAST, placement=bench.Extent.FULL
    )
    row = bench.measure(tmp_path / "ppocr_toy_rec.onnx", tmp_path, config, words)
    assert row["int8 units"] == "5/5"
    assert row["layers float %"] == 0.0
    assert (row["float words"], row["drop"]) == (0.0, 0.0)  # it never learned to read
    # eight bits move few of 240 decisions between five classes
    assert row["steps 120"] > 0.9
    assert row["SQNR dB"] > 20.0
