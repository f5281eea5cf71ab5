# SPDX-License-Identifier: Apache-2.0
"""Hold the bridges of a folder of exports to each other, and to what the architectures say.

usage: python tools/check_bridges.py ZOO_DIR

ZOO_DIR is what ``tools/export_zoo.py`` writes: ``MODEL.EXPORTER.BATCH.onnx``. Every export of one
model must give the same bridges: direction, size, and which layers of which weights they are made
of. Exits 1 when they differ, or when a known model does not enter its global regions as often as
its architecture says.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from time import perf_counter
from typing import TypeAlias

from _bench import Rows, table

from qhyvit_onnx.config import CompileConfig
from qhyvit_onnx.data import Feeds
from qhyvit_onnx.facts import BRIDGES, Bridge
from qhyvit_onnx.graph import LINEAR, Node, is_constant
from qhyvit_onnx.model_io import load_model
from qhyvit_onnx.passes.detect_bridges import DetectBridges
from qhyvit_onnx.passes.fold_norms import FoldNorms
from qhyvit_onnx.passes.normalise import Normalise
from qhyvit_onnx.pipeline import Watcher, run
from qhyvit_onnx.state import State

ENTRIES = {"mobilevit_": 3, "mobilevitv2_": 3, "efficientformer_": 1, "efficientformerv2_": 2}
"""Family to the number of sizes at which its models enter global regions."""

Layer: TypeAlias = tuple[str, tuple[int, ...]]
Trace: TypeAlias = tuple[str, str, tuple[tuple[Layer, int], ...]]
"""Direction, size, layers with how often each is there."""


def main() -> int:
    """Print the table and the differences; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("zoo", type=Path)
    args = parser.parse_args()
    rows: Rows = []
    traces: dict[str, dict[str, list[Trace]]] = {}
    faults: list[str] = []
    for path in sorted(args.zoo.glob("*.onnx")):
        model, _, export = path.stem.partition(".")
        seconds, state = detect(path)
        bridges = state.get(BRIDGES)
        traces.setdefault(model, {})[export] = sorted(trace(b, state) for b in bridges)
        rows.append({"model": model, "export": export, "nodes": len(state.graph.nodes),
                     "ms": round(1e3 * seconds), "in": shown(bridges, "in"),
                     "out": shown(bridges, "out")})  # fmt: skip
        faults += unexpected(model, export, bridges)
    faults += [fault for model, found in traces.items() for fault in differences(model, found)]
    print(table(rows), *faults, f"{len(rows)} files, {len(faults)} faults", sep="\n")
    return 1 if faults or not rows else 0


def detect(path: Path) -> tuple[float, State]:
    """Run what ``inspect`` runs before units; return the seconds the detection took."""
    state = State(load_model(path), CompileConfig(), Feeds.of([]))
    run([Normalise(), FoldNorms()], state, Watcher())
    start = perf_counter()
    DetectBridges().run(state)
    return perf_counter() - start, state


def trace(bridge: Bridge, state: State) -> Trace:
    """Return what must be the same in every export."""
    nodes = {node.name: node for node in state.graph.nodes}
    layers = Counter(found for name in bridge.nodes if (found := layer(nodes[name])) is not None)
    return bridge.direction, bridge.size, tuple(sorted(layers.items()))


def layer(node: Node) -> Layer | None:
    """Return op and weight shape of a linear layer, None for any other node.

    A stack of matrices is no weight but a constant query, which a free batch has to repeat.
    """
    weights = [tensor for tensor in node.inputs[:2] if is_constant(tensor)]
    if node.op not in LINEAR or not weights or (node.op == "MatMul" and len(weights[0].shape) > 2):
        return None
    return node.op, tuple(weights[0].shape)


def shown(bridges: tuple[Bridge, ...], direction: str) -> str:
    """Return the sizes of one direction, repeated ones counted."""
    sizes = Counter(bridge.size for bridge in bridges if bridge.direction == direction)
    return ", ".join(f"{n} x {size}" if n > 1 else size for size, n in sizes.items()) or "none"


def unexpected(model: str, export: str, bridges: tuple[Bridge, ...]) -> list[str]:
    """Return a line when a known model has another number of ways in."""
    found = sum(bridge.direction == "in" for bridge in bridges)
    wanted = next((n for family, n in ENTRIES.items() if model.startswith(family)), found)
    return [] if found == wanted else [f"{model} {export}: {found} ways in, want {wanted}"]


def differences(model: str, found: dict[str, list[Trace]]) -> list[str]:
    """Return a line for each export that differs from the first."""
    first, *others = found
    return [
        f"{model}: {other} differs from {first}: {sorted(set(found[first]) ^ set(found[other]))}"
        for other in others
        if found[other] != found[first]
    ]


if __name__ == "__main__":
    sys.exit(main())
