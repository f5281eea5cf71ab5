# SPDX-License-Identifier: Apache-2.0
"""Targets: CPU classes, each with a table of what units cost there as a function of their size."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.kinds import Kind

QUANTIZE, DEQUANTIZE = "border.quantize", "border.dequantize"

MOVING = "movement"
FLOAT_ONLY = ("norm", "elementwise", MOVING)
"""Rows in float beside the kinds of units: what never runs int8, and what only moves elements."""
LAYOUTS = ("nhwc", "blocked")
"""Memory layouts of convolutions, in int8 and in float; changed at the border of a run of them."""


DEPTHWISE_3X3 = "depthwise conv 3x3"
"""A row of its own beside Kind.DEPTHWISE: onnxruntime has kernels for just this window at stride 1.
With stride 2 a float one takes eight times the instructions on ARM."""


def float_key(kind: Kind | str) -> str:
    """Return the key of ``kind`` in float."""
    return f"float.{kind}"


def int8_key(kind: Kind | str) -> str:
    """Return the key of ``kind`` in int8."""
    return f"int8.{kind}"


def layout_key(layout: str) -> str:
    """Return the key of entering or leaving a layout."""
    return f"border.{layout}"


KEYS = (
    *(key(kind) for key in (float_key, int8_key) for kind in (*Kind, DEPTHWISE_3X3)),
    *(float_key(name) for name in FLOAT_ONLY),
    QUANTIZE,
    DEQUANTIZE,
    *(layout_key(name) for name in LAYOUTS),
)
"""Every row that a table holds."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much work one unit is."""

    macs: float = 0.0
    """Multiply-adds; of a pool, elements of its windows; of a Transpose, runs of elements that stay
    together."""
    elements: float = 0.0
    """Activations read and written, and the weights of a Gemm or MatMul; at a border, what crosses
    it. Of a pool over windows none."""
    parts: float = 1.0
    """Groups of a convolution: each is a run of its own."""


@dataclass(frozen=True, slots=True)
class Cost:
    """``fixed * parts + mac * macs + element * elements``, in the unit of the table."""

    fixed: float = 0.0
    mac: float = 0.0
    element: float = 0.0
    error: float = 0.0
    """Median of the relative error of this fit over the models that hold such a unit."""

    def of(self, size: Size) -> float:
        """Return the cost of one unit of ``size``."""
        return self.fixed * size.parts + self.mac * size.macs + self.element * size.elements


@dataclass(frozen=True, slots=True)
class Target:
    """One CPU class and its cost table."""

    name: str
    summary: str
    unit: str
    """``ns``, or ``instructions`` where they were counted on an emulated core."""
    provenance: str
    """What was measured, with which versions, how and when."""
    rows: Mapping[str, Cost] = field(default_factory=dict)
    pair_limit: int = 0
    """Most that two neighbouring weights of one sign may sum to; 0: no limit."""

    def cost(self, key: str, size: Size) -> float:
        """Return the cost of one unit of ``size`` in the row ``key``."""
        return self.rows[key].of(size)

    @property
    def is_arm(self) -> bool:
        """Whether this is an ARM CPU: onnxruntime has the blocked layout on x86 alone."""
        return self.cost(layout_key("blocked"), Size(elements=1.0)) == 0.0

    def with_free_int8(self) -> "Target":
        """Return this CPU with int8 and conversion at no cost, and float at some cost always.

        Then all that can be int8 is.
        """
        rows = {
            key: replace(row, fixed=row.fixed + 1.0) if key.startswith("float.") else Cost()
            for key, row in self.rows.items()
        }
        return replace(self, rows=rows)


def load_table(path: Path) -> Target:
    """Return the table in a TOML file; ConfigError names what is wrong with it."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cost table {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"cost table {path} is not TOML: {error}") from error
    rows = {key: _row(path, key, found) for key in KEYS}
    name, summary, unit, provenance = (
        _text_in(path, key, found) for key in ("name", "summary", "unit", "provenance")
    )
    limit = found.get("pair_limit", 0)
    if not isinstance(limit, int) or limit < 0:
        raise ConfigError(f"cost table {path} has pair_limit = {limit!r}, need 0 or more")
    return Target(name, summary, unit, provenance, rows, limit)


_REMEDY = "qhv-onnx profile -o FILE.toml writes a whole one"


def _text_in(path: Path, name: str, found: Mapping[str, Any]) -> str:
    text = found.get(name)
    if not isinstance(text, str):
        raise ConfigError(f"cost table {path} has no {name}", hint=_REMEDY)
    return text


def _row(path: Path, key: str, tables: Mapping[str, Any]) -> Cost:
    form, _, kind = key.partition(".")
    section = tables.get(form)
    found = section.get(kind) if isinstance(section, dict) else None
    if not isinstance(found, dict):
        raise ConfigError(f"cost table {path} has no row [{_header(key)}]", hint=_REMEDY)
    values = {name: found.get(name, 0.0) for name in Cost.__slots__}
    for name, number in values.items():
        if not isinstance(number, int | float) or not 0.0 <= number < math.inf:
            raise ConfigError(
                f"cost table {path}: [{_header(key)}] has {name} = {number!r}, need 0 or more"
            )
    return Cost(**{name: float(number) for name, number in values.items()})


def dump_table(table: Target) -> str:
    """Return ``table`` as TOML that ``load_table`` reads."""
    lines = [
        f"# Costs in {table.unit} of fusion units on {table.summary}:",
        "# fixed + mac * multiply-adds + element * activations read and written; fixed counts once",
        "# for every group of a convolution, and element for the weights of a Gemm too. For mac:",
        "# of a pool elements of its windows, of movement runs that a Transpose keeps together.",
        "# error: median of the relative error of the fit over the models with such a unit.",
        *(f"{n} = {_text(getattr(table, n))}" for n in ("name", "summary", "unit", "provenance")),
        f"pair_limit = {table.pair_limit}",
    ]
    for key in KEYS:
        row = table.rows[key]
        lines += ["", f"[{_header(key)}]"]
        lines += [f"{name} = {float(f'{getattr(row, name):.4g}')!r}" for name in Cost.__slots__]
    return "\n".join(lines) + "\n"


def _header(key: str) -> str:
    form, _, kind = key.partition(".")
    return f'{form}."{kind}"' if " " in kind else key


def _text(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
