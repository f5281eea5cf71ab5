# SPDX-License-Identifier: Apache-2.0
"""Targets: which kinds of unit pay off in int8 on which CPU. One literal table each.

The entries follow from measurements of every kind in float and int8 on the target (onnxruntime
1.31); a kind is worth int8 either always, above a size, or only between int8 neighbours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from qhyvit_onnx.config import Extent
from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.units import Kind


class Rule(StrEnum):
    """When a kind of unit runs int8."""

    ALWAYS = "always"
    BETWEEN = "between int8 neighbours"
    """Every input comes from an integer kernel and some reader wants integers."""
    FED = "fed by int8 kernels"
    """Every input is uint8 already: onnxruntime then fuses it whether asked or not."""
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Row:
    """When one kind runs int8 on one target."""

    rule: Rule
    min_reuse: float = 0.0
    """Least multiply-adds per element that is quantized or dequantized at the unit's border:
    below it, conversion eats what the integer kernel saves."""
    reason: str = "slower in int8 than in float here"
    """Why not, in the words of the report."""
    too_little: str = "conversion would cost more than int8 saves"
    """Why not below ``min_reuse``."""


@dataclass(frozen=True, slots=True)
class Target:
    """One CPU class."""

    name: str
    summary: str
    rows: Mapping[Kind, Row]
    pair_limit: int = 0
    """Most that two neighbouring weights of one sign may sum to; 0: no limit."""

    def reaching(self, extent: Extent) -> "Target":
        """Return this target with the table of ``extent``: FULL asks for speed nowhere."""
        if extent is Extent.FAST:
            return self
        return replace(self, rows=dict.fromkeys(self.rows, Row(Rule.ALWAYS)))


_NEVER_STEM = Row(Rule.NEVER, reason="3-channel stem: slower in int8 than in float")

_FEW_IN_GROUPS = 60.0
"""A grouped convolution runs group by group; with fewer multiply-adds per element it takes
more instructions in int8 than in float. On an emulated A76: 0.7 times as many at 72, 1.4 times at
36, and over 11 times at 6, a depthwise convolution that widens. x86 takes the same bound, which
was not measured there."""

_NEVER_SOFTMAX = Row(Rule.NEVER, reason="Softmax is faster in float")
_NEVER_SIGMOID = Row(Rule.NEVER, reason="a gate is small: its Sigmoid is no faster in int8")
_LEAKY_RELU = Row(Rule.BETWEEN, reason="LeakyRelu pays in int8 only between int8 layers")

_ARM = {
    Kind.CONV: Row(Rule.ALWAYS),
    Kind.POINTWISE: Row(Rule.ALWAYS),
    Kind.DEPTHWISE: Row(Rule.ALWAYS),
    Kind.GROUPED: Row(Rule.ALWAYS, _FEW_IN_GROUPS, too_little="slow in int8, group by group"),
    Kind.STEM: _NEVER_STEM,
    Kind.GEMM: Row(Rule.ALWAYS),
    Kind.MATMUL: Row(Rule.ALWAYS),
    Kind.PRODUCT: Row(Rule.ALWAYS),
    Kind.SILU: Row(Rule.BETWEEN, reason="SiLU pays in int8 only between int8 layers"),
    Kind.SIGMOID: _NEVER_SIGMOID,
    Kind.LEAKY_RELU: _LEAKY_RELU,
    Kind.SOFTMAX: _NEVER_SOFTMAX,
    Kind.ADD: Row(Rule.BETWEEN, reason="Add pays in int8 only between int8 layers"),
    Kind.MUL: Row(Rule.BETWEEN, reason="Mul pays in int8 only between int8 layers"),
    Kind.CONCAT: Row(Rule.BETWEEN, reason="Concat pays in int8 only between int8 layers"),
    Kind.POOL: Row(Rule.BETWEEN, reason="average pooling pays in int8 only between int8 layers"),
}

_REUSE = 30.0
"""x86: one multiply-add saves about 7 ps in int8, moving one element in and out of uint8 (Q, DQ and
the layout change of an NHWC region) costs about 0.2 ns. Set by ``tools/bench_latency.py``."""

_X64 = {
    Kind.CONV: Row(Rule.ALWAYS, _REUSE),
    Kind.POINTWISE: Row(Rule.ALWAYS, _REUSE),
    Kind.DEPTHWISE: Row(Rule.BETWEEN, reason="depthwise pays in int8 only between int8 layers"),
    Kind.GROUPED: Row(Rule.ALWAYS, _FEW_IN_GROUPS, too_little="slow in int8, group by group"),
    Kind.STEM: _NEVER_STEM,
    Kind.GEMM: Row(Rule.ALWAYS, _REUSE),
    Kind.MATMUL: Row(Rule.ALWAYS, _REUSE),
    Kind.PRODUCT: Row(Rule.FED, reason="product of activations: no fast integer kernel here"),
    Kind.SILU: Row(Rule.BETWEEN, reason="SiLU pays in int8 only between int8 layers"),
    Kind.SIGMOID: _NEVER_SIGMOID,
    Kind.LEAKY_RELU: _LEAKY_RELU,
    Kind.SOFTMAX: _NEVER_SOFTMAX,
    Kind.ADD: Row(Rule.BETWEEN, reason="Add pays in int8 only between int8 layers"),
    Kind.MUL: Row(Rule.NEVER, reason="Mul is faster in float here"),
    Kind.CONCAT: Row(Rule.BETWEEN, reason="Concat pays in int8 only between int8 layers"),
    Kind.POOL: Row(Rule.NEVER, reason="average pooling is faster in float here"),
}

TARGETS = (
    Target("arm64", "ARM with dot product (Cortex-A76 and later): Raspberry Pi 5, phones", _ARM),
    Target("x64-vnni", "x86-64 with AVX512-VNNI or AVX-VNNI", _X64),
    Target("x64-avx2", "x86-64 with AVX2 only: weights kept from saturating products", _X64,
           pair_limit=128),
)  # fmt: skip
"""Every target, in the order the help shows them."""


def find_target(name: str, features: frozenset[str]) -> Target:
    """Return the target called ``name``; ``auto`` picks by the CPU ``features`` of this machine."""
    if name == "auto":
        return _detect(features)
    for target in TARGETS:
        if target.name == name:
            return target
    known = ", ".join(["auto", *(target.name for target in TARGETS)])
    raise ConfigError(f"target {name!r} is not known", hint=f"use one of {known}")


def _detect(features: frozenset[str]) -> Target:
    by_name = {target.name: target for target in TARGETS}
    if features & {"asimddp", "asimd"}:
        return by_name["arm64"]
    if features & {"avx512_vnni", "avx_vnni"}:
        return by_name["x64-vnni"]
    return by_name["x64-avx2"]
