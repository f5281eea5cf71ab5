# SPDX-License-Identifier: Apache-2.0
"""Which targets there are, and which one this CPU is."""

from pathlib import Path

from qhyvit_onnx.costs.table import Target, load_table
from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.runtime import Arithmetic

AUTO = "auto"
"""The name that picks by the CPU."""

_FOLDER = Path(__file__).parent / "assets" / "targets"

TARGETS = tuple(
    load_table(_FOLDER / f"{name}.toml")
    for name in ("arm64", "arm64-i8mm", "arm64-base", "x64-vnni", "x64-avx2")
)
"""Every target that comes with a table, in the order the help shows them."""


def find_target(name: str, features: frozenset[str]) -> Target:
    """Return the target called ``name``, or the one in a file of that name that ends in .toml.

    ``auto`` picks by the CPU ``features`` of this machine.

    Error:
        ConfigError for a name that is not known, or a file that is not a table.
    """
    if name.endswith(".toml"):
        return load_table(Path(name))
    by_name = {target.name: target for target in TARGETS}
    name = _detected(features) if name == AUTO else name
    if name in by_name:
        return by_name[name]
    known = ", ".join([AUTO, *by_name])
    raise ConfigError(
        f"target {name!r} is not known", hint=f"use one of {known}, or a .toml of qhv-onnx profile"
    )


def arithmetic_of(target: Target, features: frozenset[str]) -> Arithmetic:
    """Return how a host of such ``features`` must sum to give the numbers of ``target``."""
    saturates = not features & {"avx512_vnni", "avx_vnni", "asimd"}
    return Arithmetic.EXACT if saturates and not target.pair_limit else Arithmetic.STOCK


def _detected(features: frozenset[str]) -> str:
    if "i8mm" in features:
        return "arm64-i8mm"
    if "asimddp" in features:
        return "arm64"
    if "asimd" in features:
        return "arm64-base"
    return "x64-vnni" if features & {"avx512_vnni", "avx_vnni"} else "x64-avx2"
