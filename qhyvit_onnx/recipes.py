# SPDX-License-Identifier: Apache-2.0
"""Recipes: named, frozen settings of the same passes; every published method here is one.

All recipes quantize the same units of the same graph (BatchNormalization folded, activations of
convolutions included, first and last layer as ``edge_precision`` says), and are measured in the
same way. What a method says nothing about, as tensors that only an Add reads, gets asymmetric
min-max of 8 bits in all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.methods import (
    Attention,
    Ends,
    Freedom,
    Method,
    Metric,
    Norms,
    OutputSearch,
    Overflow,
    Rows,
    Scheme,
    Tails,
    Whole,
)


class Form(StrEnum):
    """What a recipe gives."""

    DEPLOYED = "deployed"
    """A model that integer kernels run."""
    SIMULATED = "simulated"
    """Grids that no integer kernel takes: accuracy in simulation only."""
    FOUND = "found"
    """The one or the other, as its search finds."""


class Additions(StrEnum):
    """What this project does beside the search of grids: range folding, guard, learned rounding."""

    CONFIGURED = "configured"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One way to quantize a network."""

    name: str
    summary: str
    source: str = ""
    form: Form = Form.DEPLOYED
    additions: Additions = Additions.NONE
    method: Method | None = None
    """None: the search of this project."""
    obstacle: str = ""
    """What no integer kernel can run."""

    @property
    def listed(self) -> bool:
        """Whether help names it: a stage of an ablation, ``q-hyvit:scale``, is for who knows it."""
        return ":" not in self.name

    @property
    def needs_evidence(self) -> bool:
        """Whether its search looks at what single layers read, which takes torch to gather."""
        plain = self.method is None or (
            self.method.outputs is None and self.method.norms is Norms.PLAIN
        )
        return not plain


def find_recipe(name: str) -> Recipe:
    """Return the recipe called ``name``.

    Error:
        ConfigError, with the names that there are.
    """
    if name not in RECIPES:
        raise ConfigError(f"recipe {name!r} is not known", hint=f"use one of {listed()}")
    return RECIPES[name]


def listed(*forms: Form) -> str:
    """Return the names of recipes as help shows them: all, or those that give one of ``forms``."""
    found = (item for item in RECIPES.values() if item.listed and item.form in (forms or Form))
    return ", ".join(item.name for item in found)


def undeployable(recipe: Recipe) -> ConfigError:
    """Return the error for whoever wants a model of grids that no kernel takes."""
    return ConfigError(
        f"recipe {recipe.name} gives a simulation only: no integer kernel takes {recipe.obstacle}",
        hint=f"use qhv-onnx eval MODEL --recipe {recipe.name} --calib DATA --data DATA",
    )


_HYBRID = OutputSearch(
    metric=Metric.HESSIAN, lowest=0.01, highest=1.2, rounds=3, whole=Whole.BRIDGES
)


def _q_hyvit(stage: str, *freedoms: Freedom) -> Recipe:
    """Return the recipe that searches ``freedoms`` beside scales.

    The paper, where its released code does something else: granularity and scheme are searched
    (there: layer-wise unless grouped, always symmetric), a bridge is measured where it ends (there:
    each of its layers), attention products of every family are quantized (there: MobileViTv1's).

    Neither of both: gradients are the Fisher's, as those of the divergence of a network from itself
    vanish; one number stands for them at an end of a bridge; packed weights of queries, keys and
    values have one scale (code: three); biases are not corrected; behind a fused Relu, which no
    kernel has with codes below zero, the lowest code is zero.
    """
    searched = replace(_HYBRID, freedoms=frozenset((Freedom.HEADS, *freedoms)))
    return Recipe(
        name=f"q-hyvit{stage}",
        summary="scale, granularity and scheme by Hessian, bridges as one"
        if not stage
        else f"q-hyvit as far as {stage[1:]}",
        source="Lee et al., Q-HyViT, arXiv 2303.12557",
        form=Form.FOUND,
        obstacle="a scale for each channel or head of an activation",
        method=Method(
            overflow=Overflow.CLAMPED,
            weights=Rows.CONVOLUTIONS,
            outputs=searched,
        ),
    )


QHV = Recipe(
    name="qhv",
    summary="this project's own",
    additions=Additions.CONFIGURED,
)

_ALL = (
    Recipe(
        name="minmax",
        summary="the range that was seen",
        source="Jacob et al., arXiv 1712.05877",
        method=Method(),
    ),
    Recipe(
        name="percentile",
        summary="the range without its outermost 0.01 % on either side",
        source="Wu et al., arXiv 2004.09602",
        method=Method(ends=Ends.PERCENTILE),
    ),
    Recipe(
        name="easyquant",
        summary="scales by the cosine of layer outputs",
        source="Wu et al., EasyQuant, arXiv 2006.16669",
        method=Method(
            weights=Rows.NONE,
            outputs=OutputSearch(metric=Metric.COSINE, lowest=0.5, highest=1.2),
        ),
    ),
    Recipe(
        name="fq-vit",
        summary="powers of two for what norms read, log2 softmax",
        source="Lin et al., FQ-ViT, arXiv 2111.13824",
        form=Form.SIMULATED,
        obstacle="a scale for each channel of what norms read, and logarithms of attention",
        method=Method(
            overflow=Overflow.CLAMPED, attention=Attention.LOG2, norms=Norms.POWERS_OF_TWO
        ),
    ),
    Recipe(
        name="ptq4vit",
        summary="twin ranges after softmax, GELU and SiLU; scales by Hessian",
        source="Yuan et al., PTQ4ViT, arXiv 2111.12293",
        form=Form.SIMULATED,
        obstacle="two steps in one tensor",
        method=Method(
            weights=Rows.CONVOLUTIONS,
            attention=Attention.TWIN,
            tails=Tails.TWIN,
            outputs=OutputSearch(metric=Metric.HESSIAN, lowest=0.01, highest=1.2, rounds=3),
        ),
    ),
    Recipe(
        name="repq-vit",
        summary="channels of what norms write made equal, log sqrt2 softmax",
        source="Li et al., RepQ-ViT, arXiv 2212.08254",
        form=Form.SIMULATED,
        obstacle="logarithms of attention, and weights with a zero point",
        method=Method(
            ends=Ends.BEST_PERCENTILE,
            scheme=Scheme.ASYMMETRIC,
            overflow=Overflow.FREE,
            attention=Attention.LOG_SQRT2,
            norms=Norms.CHANNELS,
        ),
    ),
    _q_hyvit("", Freedom.GRANULARITY, Freedom.SCHEME),
    _q_hyvit(":scale"),
    _q_hyvit(":granularity", Freedom.GRANULARITY),
    QHV,
)

RECIPES: Mapping[str, Recipe] = MappingProxyType({recipe.name: recipe for recipe in _ALL})
"""Every recipe by name, in the order the help shows them."""
