# SPDX-License-Identifier: Apache-2.0
"""``qhv-onnx explain``: why a node of a compiled model runs as it does."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qhyvit_onnx.commands import _options
from qhyvit_onnx.commands._options import STDOUT

if TYPE_CHECKING:
    from rich.console import RenderableType

    from qhyvit_onnx.explain import Explained, Fate

MOST = 20
"""Nodes that one pattern explains at most."""


@click.command()
@click.argument("model", type=_options.MODEL_FILE)
@click.argument("nodes", metavar="[NODE]...", nargs=-1)
@click.option("-v", "--verbose", is_flag=True, help="List all nodes, not only those on floats.")
@_options.json_out
def command(*, model: Path, nodes: tuple[str, ...], verbose: bool, json_out: str | None) -> None:
    """Say what onnxruntime runs for each NODE of a compiled MODEL, here and on ARM, and why.

    NODE is a name or a glob. Without one: every node of the optimized graph that computes on
    floats, and why it does.
    """
    from qhyvit_onnx.explain import explain
    from qhyvit_onnx.model_io import load_compiled
    from qhyvit_onnx.tables import show

    _options.check_json(json_out, [model])
    found = explain(load_compiled(model))
    names = [name for pattern in nodes for name in found.find(pattern)]
    if json_out != STDOUT:
        show([_node(found, name) for name in names[:MOST]] if nodes else _all(found, verbose))
        if len(names) > MOST:
            click.echo(f"\n{len(names) - MOST} more nodes match; --json has them all")
    if json_out:
        _options.write_json(json_out, _json(found, names))


def _all(found: "Explained", verbose: bool) -> Iterator["RenderableType"]:  # noqa: FBT001
    """Yield how many nodes run how in each view, and the nodes."""
    from qhyvit_onnx.explain import Runs
    from qhyvit_onnx.runtime import View
    from qhyvit_onnx.tables import filled

    counts = {view: Counter(fate.runs for fate in fates) for view, fates in found.fates.items()}
    yield filled(
        ("nodes!", "here>", "on ARM>"),
        ((runs, counts[View.HOST][runs], counts[View.ARM][runs]) for runs in Runs),
    )
    shown = [
        fate for fate in found.fates[View.ARM] if verbose or fate.runs is Runs.FLOAT
    ]  # fmt: skip
    here = {fate.name: fate for fate in found.fates[View.HOST]}
    yield filled(
        ("node", "on ARM!", "here!", "runs!", "why float"),
        (
            (f.name, f.kernel, here[f.name].kernel if f.name in here else "", f.runs, f.reason)
            for f in shown
        ),
    )


def _node(found: "Explained", name: str) -> "RenderableType":
    from qhyvit_onnx.runtime import View
    from qhyvit_onnx.tables import labelled

    node = found.nodes.get(name)
    rows = [("node", name + (f", {node.op_type} in the model" if node is not None else ""))]
    for label, view in (("here", View.HOST), ("on ARM", View.ARM)):
        rows.append((label, _told(found.fate(name, view), name)))
    fate = found.fate(name, View.ARM)
    if fate is not None and fate.reason:
        rows.append(("why float", fate.reason))
    rows += found.tensors(name)
    return labelled(rows)


def _told(fate: "Fate | None", name: str) -> str:
    if fate is None:
        return "nothing: computed beforehand, or done by its neighbours"
    if fate.name != name:
        return f"{fate.kernel}, {fate.runs}: merged into {fate.name}"
    return f"{fate.kernel}, {fate.runs}"


def _json(found: "Explained", names: list[str]) -> str:
    """Return the fate of every node asked for, merged ones too; all nodes when none was."""
    views = {}
    for view, fates in found.fates.items():
        asked = [(name, found.fate(name, view)) for name in names]
        told = asked or [(fate.name, fate) for fate in fates]
        views[str(view)] = [
            {
                "node": name,
                "in": f.name,
                "kernel": f.kernel,
                "runs": str(f.runs),
                "reason": f.reason,
            }
            if f is not None
            else {"node": name, "in": "", "kernel": "", "runs": "", "reason": ""}
            for name, f in told
        ]
    return json.dumps({"schema_version": 1, "views": views}, indent=2)
