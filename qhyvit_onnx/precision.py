# SPDX-License-Identifier: Apache-2.0
"""How many bits weights and activations get, layer by layer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from qhyvit_onnx.errors import ConfigError

WIDTHS = (4, 6, 8)
"""Bits that can be emitted; all of them travel in 8-bit containers."""

_WRITTEN = re.compile(r"w(\d+)a(\d+)")


@dataclass(frozen=True, slots=True)
class Precision:
    """Bits of the weights of a layer, and of the activations it reads."""

    weights: int = 8
    activations: int = 8

    @classmethod
    def parse(cls, text: str) -> "Precision":
        """Return the precision that ``text``, as in ``w4a8``, says.

        Error:
            ConfigError for anything else, and for bits that cannot be emitted.
        """
        match = _WRITTEN.fullmatch(text)
        bits = tuple(map(int, match.groups())) if match else ()
        if not bits or any(width not in WIDTHS for width in bits):
            widths = ", ".join(map(str, WIDTHS))
            raise ConfigError(
                f"precision {text!r} is not available", hint=f"use wXaY, X and Y of {widths}"
            )
        return cls(*bits)

    def __str__(self) -> str:
        """Return the text that ``parse`` reads."""
        return f"w{self.weights}a{self.activations}"


@dataclass(frozen=True, slots=True)
class Widths:
    """The precision of every layer by its name: the last pattern that matches wins."""

    default: Precision
    overrides: tuple[tuple[str, Precision], ...] = ()
    """Glob on node names, precision."""

    @classmethod
    def of(
        cls, default: str, edges: str, overrides: Mapping[str, str], layers: Sequence[str]
    ) -> "Widths":
        """Return the precision of ``layers``, named in topological order.

        The first and the last of them get ``edges``: little work, and much depends on it.
        """
        base, edge = Precision.parse(default), Precision.parse(edges)
        least = Precision(max(base.weights, edge.weights), max(base.activations, edge.activations))
        ends = [(name, least) for name in dict.fromkeys((*layers[:1], *layers[-1:]))]
        given = [(glob, Precision.parse(text)) for glob, text in overrides.items()]
        return cls(base, (*ends, *given))

    def of_layer(self, name: str) -> Precision:
        """Return the precision of one layer."""
        found = [held for glob, held in self.overrides if name == glob or fnmatchcase(name, glob)]
        return found[-1] if found else self.default
