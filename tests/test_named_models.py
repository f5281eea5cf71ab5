# SPDX-License-Identifier: Apache-2.0
"""Bridges of published networks, counted by hand from their architectures.

Structure only, so the weights are as initialised. Skipped where the networks are not installed
(extra ``bench``); ``tools/check_bridges.py`` holds whole folders of exports to each other.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest

from qhyvit_onnx.config import CompileConfig
from qhyvit_onnx.data import Feeds
from qhyvit_onnx.facts import BRIDGES
from qhyvit_onnx.model_io import check_model
from qhyvit_onnx.passes.detect_bridges import DetectBridges
from qhyvit_onnx.passes.fold_norms import FoldNorms
from qhyvit_onnx.passes.normalise import Normalise
from qhyvit_onnx.pipeline import Watcher, run
from qhyvit_onnx.state import State

TOOLS = Path(__file__).resolve().parent.parent / "tools"

NETWORKS = [
    # stages 2 to 4 end in one transposed attention each, after depthwise convolutions; the first
    # two are followed by the next stage's convolutions, the last by the head
    ("edgenext_xx_small", ["32x32", "16x16", "8x8"], ["32x32", "16x16"]),
    # a stem of strided convolutions, then attention to the end; what shrinks the map there picks
    # positions and mixes no neighbours
    ("levit_128s", ["14x14"], []),
    # stages 3 and 4 mix inverted bottlenecks with attention, in turns: both ways, at two sizes
    ("mobilenetv4_hybrid_medium", ["16x16", "8x8"], ["16x16", "8x8"]),
    # a stage of convolutions, then three of window attention, each block with a 3x3 depthwise
    # convolution behind its attention
    ("tiny_vit_5m_224", ["28x28", "14x14", "7x7"], ["28x28", "14x14", "7x7"]),
    # reparameterised convolutions only
    ("repvit_m0_9", [], []),
    # patches of 16x16 that do not overlap, then attention only
    ("deit_tiny_patch16_224", [], []),
    ("mobilevit_xxs", ["32x32", "16x16", "8x8"], ["32x32", "16x16", "8x8"]),
    # behind the last block there are pointwise layers and the head only
    ("mobilevitv2_050", ["32x32", "16x16", "8x8"], ["32x32", "16x16"]),
    ("efficientformer_l1", ["7x7"], []),
    ("efficientformerv2_s0", ["14x14", "7x7"], ["14x14", "7x7"]),
]

NAMED = {
    "mobilevit_xxs": ["stages.2.1/conv_1x1", "transformer.0/attn/qkv", "conv_proj", "conv_fusion"],
    "mobilevitv2_050": ["stages.2.1/conv_1x1", "transformer.0/attn/qkv_proj", "conv_proj"],
    "efficientformer_l1": ["stages.3/", "token_mixer/qkv"],
    "efficientformerv2_s0": ["stages.2/", "stages.3/", "token_mixer/q/", "stages.3/downsample"],
}
"""Parts of node names that the bridges of a network must hold."""


def bridges_of(model):
    check_model(model)
    state = State(model, CompileConfig(), Feeds.of([]))
    run([Normalise(), FoldNorms(), DetectBridges()], state, Watcher())
    return state.get(BRIDGES)


def sizes(bridges, direction):
    return [bridge.size for bridge in bridges if bridge.direction == direction]


@pytest.fixture(scope="module")
def timm():
    pytest.importorskip("torch", reason="the exports need torch, an extra")
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        yield import_module("zoo_models").load_timm()


@pytest.mark.parametrize(("name", "entries", "exits"), NETWORKS)
@pytest.mark.filterwarnings("ignore")
def test_timm(timm, tmp_path, name, entries, exits):
    torch = import_module("torch")
    model = timm.create_model(name, pretrained=False).eval()
    side = timm.get_pretrained_cfg(name).input_size[-1]
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (torch.zeros(1, 3, side, side),), path, opset_version=17, dynamo=False)
    found = bridges_of(onnx.load(path))
    assert sizes(found, "in") == entries
    assert sizes(found, "out") == exits
    nodes = [node for bridge in found for node in bridge.nodes]
    for part in NAMED.get(name, []):
        assert any(part in node for node in nodes), part


def test_ppocr_v4():
    # a convolutional backbone, two attention blocks, and a neck whose 3x3 convolution joins both
    spec = find_spec("rapidocr_onnxruntime")
    if spec is None or spec.origin is None:
        pytest.skip("rapidocr_onnxruntime, which carries the model, is not installed")
    path = Path(spec.origin).parent / "models" / "ch_PP-OCRv4_rec_infer.onnx"
    found = bridges_of(onnx.load(path))
    assert [bridge.direction for bridge in found] == ["in", "out"]
