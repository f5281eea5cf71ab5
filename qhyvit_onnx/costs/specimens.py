# SPDX-License-Identifier: Apache-2.0
"""The models that are measured to fill a cost table: every kind of unit, small to large.

Each is a pattern, repeated: what one more repetition costs is what its units cost, without the
start of a run, its input and its output. Sizes are those of mobile hybrids at 224 or 256 pixels.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import onnx

from qhyvit_onnx.costs.chain import Chain
from qhyvit_onnx.costs.movements import WIDTH, heads, patches, views
from qhyvit_onnx.kinds import Kind

SHORT, LONG = 1, 3
"""Repetitions of the two models that are compared."""

Pattern = Callable[[Chain], None]

_MAPS = ((16, 64), (32, 32), (64, 32), (96, 16), (160, 8))
"""Channels and edge of maps."""
_LARGE = ((64, 64), (32, 128))
"""Maps as only borders are measured on: what crosses them there is most of what they cost."""
_TOKENS = ((256, 64), (64, 96), (49, 256), (256, 144), (16, 240))
"""Number and width of tokens."""


@dataclass(frozen=True, slots=True)
class Specimen:
    """One model, in two lengths."""

    name: str
    shape: tuple[int, ...]
    pattern: Pattern

    def model(self, repetitions: int) -> onnx.ModelProto:
        """Return the pattern ``repetitions`` times over."""
        return self._chain(repetitions).model()

    def terms(self) -> Mapping[str, tuple[float, float, float]]:
        """Return what the LONG model has more than the SHORT one.

        By key of a cost table: units, multiply-adds, elements.
        """
        short, long = self._chain(SHORT), self._chain(LONG)
        return {
            key: (
                long.terms[key] - short.terms[key],
                long.macs[key] - short.macs[key],
                long.elements[key] - short.elements[key],
            )
            for key in long.terms
            if long.terms[key] > short.terms[key]
        }

    def _chain(self, repetitions: int) -> Chain:
        chain = Chain(self.shape)
        for _ in range(repetitions):
            self.pattern(chain)
        return chain


def specimens() -> list[Specimen]:
    """Return every model, each once."""
    found = (*_forms(), *_borders(), *_float_only())
    return list({specimen.name: specimen for specimen in found}.values())


def _forms() -> Iterator[Specimen]:
    """Yield the kinds of units, in both forms."""
    for integer in (False, True):
        form = "int8" if integer else "float"
        parts = (make(integer=integer) for make in (_maps, _separate, _tokens))
        for name, shape, pattern in itertools.chain.from_iterable(parts):
            yield Specimen(f"{form} {name} {'x'.join(map(str, shape))}", shape, pattern)


_Listed = tuple[str, tuple[int, ...], Pattern]


def _maps(*, integer: bool) -> Iterator[_Listed]:
    """Yield what works on maps."""
    for channels, edge in _MAPS:
        shape = (1, channels, edge, edge)
        yield "conv 3x3", shape, _convs(Kind.CONV, (channels, 3, 1), integer=integer)
        for wide in (2, 4):
            yield (
                f"pointwise conv, {wide} times", shape,
                _pointwise(channels, wide, integer=integer),
            )  # fmt: skip
        yield "silu", shape, lambda chain: chain.silu(integer=integer)
        yield "gelu", shape, lambda chain: chain.gelu(integer=integer)
        yield "conv, silu", shape, _conv_silu(channels, integer=integer)
        yield "add", shape, _pairs(Kind.ADD, "Add", integer=integer)
        yield "mul", shape, _pairs(Kind.MUL, "Mul", integer=integer)
        yield "gate", shape, lambda chain: chain.gate(integer=integer)
        yield "concat", shape, _concat(channels, integer=integer)
        yield "average pool", shape, lambda chain: chain.pool(3, integer=integer)
        for kind, op in ((Kind.SIGMOID, "Sigmoid"), (Kind.LEAKY_RELU, "LeakyRelu")):
            yield str(kind), shape, _unary(kind, op, integer=integer)


def _separate(*, integer: bool) -> Iterator[_Listed]:
    """Yield convolutions that do not mix all channels, and stems."""
    for channels, edge, kernel in (
        (16, 64, 3), (64, 64, 3), (64, 32, 3), (128, 32, 3), (256, 16, 3), (384, 14, 3),
        (512, 8, 3), (64, 32, 5), (256, 16, 5), (128, 16, 7),
    ):  # fmt: skip
        yield (
            f"depthwise {kernel}x{kernel}", (1, channels, edge, edge),
            _convs(Kind.DEPTHWISE, (channels, kernel, channels), integer=integer),
        )  # fmt: skip
    for channels, edge, group in (
        (32, 32, 4), (64, 16, 4), (64, 32, 8), (128, 16, 8), (64, 32, 16), (128, 16, 32),
    ):  # fmt: skip
        yield (
            f"grouped {group}", (1, channels, edge, edge),
            _convs(Kind.GROUPED, (channels, 3, group), integer=integer),
        )  # fmt: skip
    for edge in (32, 64, 96):
        yield "stem", (1, 3, edge, edge), _stem(integer=integer)


def _tokens(*, integer: bool) -> Iterator[_Listed]:
    """Yield what works on tokens."""
    for count, width in _TOKENS:
        yield "matmul", (1, count, width), _linear(width, Kind.MATMUL, integer=integer)
        yield "gemm", (count, width), _linear(width, Kind.GEMM, integer=integer)
        yield "attention", (1, 4, count, width // 4), _attention(integer=integer)
        yield (
            "softmax", (1, 4, count, count),
            _unary(Kind.SOFTMAX, "Softmax", integer=integer, axis=-1),
        )  # fmt: skip
    for width in (256, 640):
        yield "gemm", (1, width), _linear(width, Kind.GEMM, integer=integer)


def _borders() -> Iterator[Specimen]:
    """Yield what changes form or layout again and again."""
    for channels, edge in (*_MAPS, *_LARGE):
        shape = (1, channels, edge, edge)
        size = f"{channels}x{edge}x{edge}"

        def there_and_back(chain: Chain) -> None:
            chain.unary("elementwise", "Neg")
            chain.quantized()

        yield Specimen(f"quantize, dequantize {size}", shape, there_and_back)
        for integer in (False, True):
            form = "int8" if integer else "float"
            yield Specimen(
                f"conv {form}, norm {size}", shape, _conv_norm(channels, integer=integer)
            )
        yield Specimen(f"conv int8, silu float {size}", shape, _silu_apart(channels))

    for count, width in _TOKENS:
        yield Specimen(
            f"matmul to float, norm {count}x{width}", (1, count, width), _to_float(width)
        )


def _float_only() -> Iterator[Specimen]:
    for count, width in _TOKENS:
        shape = (1, count, width)
        size = f"{count}x{width}"
        yield Specimen(f"elementwise {size}", shape, _unary("elementwise", "Neg"))
        yield Specimen(f"norm {size}", shape, Chain.norm)
        yield Specimen(f"gelu {size}", shape, lambda chain: chain.gelu(integer=False))
        yield Specimen(f"heads {size}", shape, heads)
        yield Specimen(f"views {size}", shape, views)
    for channels, edge in _MAPS:
        shape = (1, channels * edge * edge // WIDTH, WIDTH)
        yield Specimen(f"patches {channels}x{edge}x{edge}", shape, patches(channels, edge))


def _convs(kind: Kind, form: tuple[int, int, int], *, integer: bool) -> Pattern:
    channels, kernel, group = form
    return lambda chain: chain.conv(kind, channels, kernel, group=group, integer=integer, relu=True)


def _pointwise(channels: int, wide: int, *, integer: bool) -> Pattern:
    def pattern(chain: Chain) -> None:
        chain.conv(Kind.POINTWISE, channels * wide, 1, integer=integer, relu=True)
        chain.conv(Kind.POINTWISE, channels, 1, integer=integer)

    return pattern


def _stem(*, integer: bool) -> Pattern:
    def pattern(chain: Chain) -> None:
        chain.conv(Kind.STEM, 16, 3, integer=integer, relu=True)
        chain.conv(Kind.POINTWISE, 3, 1, integer=integer)

    return pattern


def _conv_silu(channels: int, *, integer: bool) -> Pattern:
    def pattern(chain: Chain) -> None:
        chain.conv(Kind.POINTWISE, channels, 1, integer=integer)
        chain.silu(integer=integer)

    return pattern


def _to_float(width: int) -> Pattern:
    def pattern(chain: Chain) -> None:
        chain.linear(width, integer=True, floats=True)
        chain.norm()

    return pattern


def _conv_norm(channels: int, *, integer: bool) -> Pattern:
    def pattern(chain: Chain) -> None:
        chain.conv(Kind.POINTWISE, channels, 1, integer=integer)
        chain.norm()

    return pattern


def _silu_apart(channels: int) -> Pattern:
    def pattern(chain: Chain) -> None:
        chain.conv(Kind.POINTWISE, channels, 1, integer=True)
        chain.silu(integer=False)

    return pattern


def _unary(kind: Kind | str, op: str, *, integer: bool = False, **attrs: int | str) -> Pattern:
    return lambda chain: chain.unary(kind, op, integer=integer, **attrs)


def _pairs(kind: Kind, op: str, *, integer: bool) -> Pattern:
    def pattern(chain: Chain) -> None:
        if integer and not chain.start.integer:
            chain.start = chain.quantized()
        chain.pair(kind, op, chain.start, integer=integer)

    return pattern


def _concat(channels: int, *, integer: bool) -> Pattern:
    def pattern(chain: Chain) -> None:
        if integer and not chain.start.integer:
            chain.start = chain.quantized()
        chain.concat(chain.start, integer=integer)
        chain.conv(Kind.POINTWISE, channels, 1, integer=integer)

    return pattern


def _linear(width: int, kind: Kind, *, integer: bool) -> Pattern:
    def pattern(chain: Chain) -> None:
        chain.linear(2 * width, integer=integer, kind=kind)
        chain.linear(width, integer=integer, kind=kind)

    return pattern


def _attention(*, integer: bool) -> Pattern:
    return lambda chain: chain.attention(integer=integer)
