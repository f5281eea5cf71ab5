# SPDX-License-Identifier: Apache-2.0
"""``qhv-onnx inspect``: what is in a model, and what will be int8."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qhyvit_onnx.commands import _options
from qhyvit_onnx.commands._options import STDOUT

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from qhyvit_onnx.inspection import Inspection, Port


@click.command()
@click.argument("model", type=_options.MODEL_FILE)
@_options.target
@_options.input_shape
@click.option("-v", "--verbose", is_flag=True, help="List every unit by the name of its node.")
@_options.json_out
def command(
    *,
    model: Path,
    target: str,
    input_shapes: tuple[str, ...],
    verbose: bool,
    json_out: str | None,
) -> None:
    """Show what is in MODEL and what compile would make int8. Needs no data, writes nothing.

    Sizes are unknown without data: a unit "when large enough" is decided by compile.
    """
    from qhyvit_onnx.inspection import inspect_model
    from qhyvit_onnx.runtime import cpu_features
    from qhyvit_onnx.tables import show
    from qhyvit_onnx.targets import find_target

    _options.check_json(json_out, [model])
    chosen = find_target(target, cpu_features())
    found = inspect_model(model, chosen, _options.shapes(input_shapes))
    if json_out != STDOUT:
        show(_blocks(found))
        if verbose:
            show([_units(found)])
    if json_out:
        _options.write_json(json_out, json.dumps(asdict(found), indent=2))


def _blocks(found: "Inspection") -> Iterator["RenderableType"]:
    from qhyvit_onnx.tables import filled, labelled

    yield labelled(_facts(found))
    families = ((name, _counted(ops)) for name, ops in found.families.items())
    yield filled(("family!", "ops"), families)
    if found.quantized:
        yield labelled([("note", "quantized already: compile takes the float model")])
        return
    kinds = Counter((unit.kind, unit.verdict) for unit in found.units)
    rows = [(kind, count, verdict) for (kind, verdict), count in kinds.items()]
    yield filled(("unit!", "count>", f"on {found.target}"), rows)
    yield labelled([("bridges", why) for why in found.bridges] or [("bridges", "none")])


def _facts(found: "Inspection") -> Iterator[tuple[str, str]]:
    from qhyvit_onnx.tables import megabytes

    opsets = ", ".join(f"{domain} {version}" for domain, version in found.opsets.items())
    producer = f", written by {found.producer}" if found.producer else ""
    yield "model", f"{found.path}, {megabytes(found.file_bytes)}"
    yield "format", f"IR {found.ir_version}, opset {opsets}{producer}"
    yield from (("input", _described(port)) for port in found.inputs)
    yield from (("output", _described(port)) for port in found.outputs)
    yield "weights", f"{found.parameters:,} parameters"
    after = "" if found.quantized else f", {found.nodes_normalised} after normalise"
    yield "nodes", f"{found.nodes}{after}"


def _described(port: "Port") -> str:
    """Return ``x float [N*, 3, 32, 32]``: a star marks a free dim."""
    dims = (str(dim) if isinstance(dim, int) else f"{dim}*" for dim in port.shape)
    free = any(not isinstance(dim, int) for dim in port.shape)
    return f"{port.name} {port.dtype} [{', '.join(dims)}]" + ("   (* free)" if free else "")


def _counted(ops: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {op}" for op, count in ops.items())


def _units(found: "Inspection") -> "Table":
    from qhyvit_onnx.tables import filled

    rows = ((unit.kind, "int8" if unit.int8 else "float", unit.name) for unit in found.units)
    return filled(("unit!", "at best!", "node"), rows)
