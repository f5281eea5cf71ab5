# SPDX-License-Identifier: Apache-2.0
"""The hybrid vision models of the zoo, built with weights that serve every part of them."""

import importlib
from functools import cache
from types import ModuleType

import torch
from dynamic_relu import DynamicReLU
from mobile_former import MobileFormer
from mobile_former_sizes import CONFIGS, SIDE
from torch import library as operators
from torch import nn
from zoo_pictures import Batch

MODELS = (
    "mobile_former_26m",
    "mobile_former_96m",
    "mobilevit_xxs",
    "mobilevit_xs",
    "mobilevit_s",
    "mobilevitv2_050",
    "mobilevitv2_075",
    "mobilevitv2_100",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientformerv2_s1",
)
SEED = 0
SETTLE_BATCH = 16
GAIN, BEND = 0.5, 2.0  # spread of a linear layer's outputs over that of its inputs
SCHEMAS: list[operators.Library] = []  # a schema goes when its library does


@cache
def load_timm() -> ModuleType:
    """Import timm, also where torchvision's compiled operators do not fit torch.

    torchvision cannot be imported without the schemas of two operators; timm never calls either.
    Attention is set to plain MatMul and Softmax, as in most files in use.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        held = operators.Library("torchvision", "DEF")
        held.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        held.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        SCHEMAS.append(held)
    timm = importlib.import_module("timm")
    timm.layers.set_fused_attn(False)
    return timm


def randomise(model: nn.Module) -> None:
    """Give ``model`` weights of a trained model's size.

    As initialised, the last norm of many branches has gain 0, so whole convolutions vanish when
    norms are folded and the logits are of the order of 1e-16.
    """
    bending = {
        id(layer)
        for module in model.modules()
        if isinstance(module, DynamicReLU)  # at the common gain it is hardly more than a ReLU
        for layer in module.modules()
    }
    for module in model.modules():
        if isinstance(module, nn.Linear):
            gain = BEND if id(module) in bending else GAIN
            nn.init.normal_(module.weight, 0, gain / module.in_features**0.5)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d | nn.GroupNorm | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, 0, 0.1)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma") or "layer_scale" in name:
            nn.init.uniform_(parameter, 0.1, 0.5)
        elif not parameter.any():  # biases, of attention maps too
            nn.init.normal_(parameter, 0, 0.1)


def settle(model: nn.Module, pictures: Batch) -> None:
    """Make the running statistics of every batch norm those of ``pictures``."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    with torch.no_grad():
        for batch in torch.split(torch.from_numpy(pictures), SETTLE_BATCH):
            model(batch)
    model.eval()


def build(name: str, pictures: Batch) -> nn.Module:
    """Return the model ``name`` with seeded weights, ready to export."""
    torch.manual_seed(SEED)
    if name in CONFIGS:
        model: nn.Module = MobileFormer(CONFIGS[name])
    else:
        model = load_timm().create_model(name, pretrained=False)
    randomise(model.eval())
    settle(model, pictures)
    return model


def input_size(name: str) -> int:
    """Return the side in pixels of the pictures that the model ``name`` was made for."""
    if name in CONFIGS:
        return SIDE
    timm = load_timm()
    if not timm.is_model(name):
        raise SystemExit(f"neither Mobile-Former nor timm {timm.__version__} has a model {name}")
    return int(timm.get_pretrained_cfg(name).input_size[-1])
