# SPDX-License-Identifier: Apache-2.0
"""Bridges as stretches of the float network that are run again and again."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from qhyvit_onnx.data import Feed
from qhyvit_onnx.facts import BRIDGES, EVIDENCE, FLOAT, Bridge
from qhyvit_onnx.graph import Graph, is_constant
from qhyvit_onnx.programs import opaque_runner, program_of
from qhyvit_onnx.state import State

if TYPE_CHECKING:
    from qhyvit_onnx.kernels.executor import Executor
    from qhyvit_onnx.kernels.segment import Segment

SAMPLES = 8
"""Calibration samples run through a bridge for every candidate."""


def measurable(state: State) -> list[Bridge]:
    """Return the bridges with a gradient at an output: what others lose is not known."""
    gains = state.get(EVIDENCE).gains
    return [b for b in state.get(BRIDGES) if any(name in gains for name in b.outputs)]


def executor_of(state: State) -> "Executor":
    """Return what runs the float network."""
    from qhyvit_onnx.kernels.devices import device_of  # noqa: PLC0415 - torch is optional
    from qhyvit_onnx.kernels.executor import Executor  # noqa: PLC0415 - torch is optional

    program = program_of(state.get(FLOAT))
    return Executor(program, device=device_of(state.config), opaque=opaque_runner(program))


def segments_of(
    state: State, bridges: Iterable[Bridge], executor: "Executor", samples: Sequence[Feed]
) -> "list[Segment]":
    """Return every bridge as a segment; the network runs on ``samples`` once for all of them."""
    from qhyvit_onnx.kernels.segment import Segment, record  # noqa: PLC0415 - torch is optional

    gains = state.get(EVIDENCE).gains
    ends = [
        (entering(state.graph, bridge), {n: gains[n] for n in bridge.outputs if n in gains})
        for bridge in bridges
    ]
    names = dict.fromkeys(name for read, written in ends for name in (*read, *written))
    seen = record(executor, samples, tuple(names))
    return [Segment(executor, seen, read, written) for read, written in ends]


def entering(graph: Graph, bridge: Bridge) -> list[str]:
    """Return what the nodes of a bridge read from outside."""
    members = set(bridge.nodes)
    nodes = [node for node in graph.nodes if node.name in members]
    written = {out.name for node in nodes for out in node.outputs}
    read = (t.name for node in nodes for t in node.inputs if t.name and not is_constant(t))
    return [name for name in dict.fromkeys(read) if name not in written]
