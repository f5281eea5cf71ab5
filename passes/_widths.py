# SPDX-License-Identifier: Apache-2.0
"""How many bits every layer and every activation gets."""

from collections.abc import Sequence

from qhyvit_onnx.config import CompileConfig
from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.passes._globs import unmatched
from qhyvit_onnx.precision import Widths
from qhyvit_onnx.units import LAYERS, Kind, Unit, source_of


def widths_of(config: CompileConfig, units: Sequence[Unit]) -> Widths:
    """Return the precision of every layer."""
    layers = [unit.name for unit in units if unit.kind in LAYERS]
    if missing := unmatched(list(config.bits), layers):
        raise ConfigError(f"--bits {missing[0]!r} matches no layer", hint="see qhv-onnx inspect -v")
    return Widths.of(config.precision, config.edge_precision, config.bits, layers)


def activation_bits(units: Sequence[Unit], widths: Widths) -> dict[str, int]:
    """Return the bits of every tensor by its source, where they are not 8.

    Layers and products read few bits; what only adds, gates and pools read keeps 8: it costs no
    multiplication, and residual streams live on it.
    """
    found: dict[str, int] = {}
    for unit in units:
        if unit.kind in LAYERS or unit.kind is Kind.PRODUCT:
            bits = widths.of_layer(unit.name).activations
            for name in {source_of(tensor).name for tensor in unit.inputs}:
                found[name] = max(bits, found.get(name, 0))
    return found
