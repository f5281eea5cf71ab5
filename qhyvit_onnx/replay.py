# SPDX-License-Identifier: Apache-2.0
"""Proves an emitted model layer by layer: every integer node against its reference kernel.

onnxruntime optimizes the model and runs it with every tensor around an integer node as an output.
Each node is then computed again from the arrays it really read, so that differences do not add up
and each belongs to one node.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import onnx

from qhyvit_onnx.data import Feed
from qhyvit_onnx.errors import PassError
from qhyvit_onnx.graph import opset_of
from qhyvit_onnx.kernels.integer.machine import Machine
from qhyvit_onnx.pattern import Miss
from qhyvit_onnx.references import Array, Call, reference
from qhyvit_onnx.runtime import Arithmetic, Options, Session, cpu_features, optimized

_CODES = frozenset({onnx.TensorProto.UINT8, onnx.TensorProto.INT8})
_CODE_TYPES = frozenset({"tensor(uint8)", "tensor(int8)"})


class Counted(StrEnum):
    """What a difference is counted in."""

    STEPS = "quantization steps"
    ULPS = "units in the last place"
    """Of float32, at the largest number of the tensor: for nodes that write numbers."""


class Cause(StrEnum):
    """Why a node is not what its reference says."""

    NONE = ""
    SATURATION = "16-bit sums saturate"
    """It is exact where onnxruntime is told not to use the kernels that saturate."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Layer:
    """One integer node against its reference kernel."""

    name: str
    """Of the node; of its first output where it has none."""
    kernel: str
    """Op that onnxruntime runs."""
    difference: float
    """Largest over all elements; 0 is bit for bit."""
    counted: Counted
    cause: Cause = Cause.NONE


@dataclass(frozen=True, slots=True)
class Replay:
    """Every integer node of a model: replayed, or refused."""

    layers: tuple[Layer, ...]
    refused: tuple[tuple[str, Miss], ...]
    """Op and reason of nodes that have no reference."""
    samples: int

    def largest(self, counted: Counted) -> float:
        """Return the largest difference of all nodes whose result is counted so."""
        return max((x.difference for x in self.layers if x.counted is counted), default=0.0)

    @property
    def exact(self) -> bool:
        """Whether every node that was replayed is its reference, bit for bit."""
        return not self.differing()

    def differing(self) -> tuple[Layer, ...]:
        """Return the nodes that are not exact."""
        return tuple(layer for layer in self.layers if layer.difference)

    def unreplayed(self) -> dict[str, int]:
        """Return the kinds of node that have no reference, and how many there are."""
        return dict(sorted(Counter(op for op, _ in self.refused).items()))


def replay(model: onnx.ModelProto, samples: Iterable[Feed], options: Options) -> Replay:
    """Return how far each integer node of ``model``, as it runs here, is from its reference.

    Integer nodes are those that read or write 8-bit tensors. Differences are the largest over all
    ``samples``; where sums may saturate, what differs is run again with ``Arithmetic.EXACT``.

    Error:
        PassError when a reference writes another shape or type than onnxruntime: our bug.
    """
    feeds = list(samples)
    found = _replay(model, feeds, options)
    cured: set[str] = set()
    if options.arithmetic is Arithmetic.STOCK and not found.exact:
        exact = _replay(model, feeds, replace(options, arithmetic=Arithmetic.EXACT))
        cured = {layer.name for layer in exact.layers} - {it.name for it in exact.differing()}
    return replace(found, layers=tuple(_explained(layer, cured) for layer in found.layers))


def host_machine() -> Machine:
    """Return whose vector code onnxruntime runs here."""
    return Machine.ARM if "asimd" in cpu_features() else Machine.X86


def _replay(model: onnx.ModelProto, feeds: list[Feed], options: Options) -> Replay:
    shown = Shown(model, options)
    # one thread: a pool that spins takes the cores that numpy needs
    session = Session(shown.model, replace(options, optimize=False, threads=1))
    return shown.compared(
        (session.run(feed, shown.wanted) | feed for feed in feeds), host_machine()
    )


def _explained(layer: Layer, cured: set[str]) -> Layer:
    if not layer.difference:
        return layer
    return replace(layer, cause=Cause.SATURATION if layer.name in cured else Cause.UNKNOWN)


class Shown:
    """The graph that onnxruntime runs, with the tensors around integer nodes as its outputs.

    ``model`` is that graph, to be run without optimizing it again; ``wanted`` are those outputs.
    """

    def __init__(self, model: onnx.ModelProto, options: Options) -> None:
        """Optimize ``model`` by the decisions of ``options``."""
        graph = optimized(model, options, weights=True)
        self._options = replace(options, optimize=False, threads=1)
        self._opset = opset_of(graph)
        self._constants = {x.name: x for x in graph.graph.initializer}
        self._nodes = self._integer_nodes(graph)
        inputs = {item.name for item in graph.graph.input}
        around = {n for node in self._nodes for n in (*node.input, *node.output)}
        self.wanted = sorted(around - inputs - set(self._constants) - {""})
        self.model = _showing(graph, self.wanted)
        self._unread = [
            (node.op_type, Miss("what runs in its body is not shown", node.name))
            for node in graph.graph.node
            if any(item.HasField("g") for item in node.attribute)
        ]

    def _integer_nodes(self, graph: onnx.ModelProto) -> list[onnx.NodeProto]:
        """Return the nodes that read or write codes; onnxruntime is asked for the types."""
        written = [name for node in graph.graph.node for name in node.output if name]
        types = Session(_showing(graph, written), self._options).types
        codes = {name for name, kind in types.items() if kind in _CODE_TYPES}
        codes |= {name for name, x in self._constants.items() if x.data_type in _CODES}
        codes |= {x.name for x in graph.graph.input if x.type.tensor_type.elem_type in _CODES}
        return [node for node in graph.graph.node if codes & {*node.input, *node.output}]

    def compared(self, runs: Iterable[Mapping[str, Array]], machine: Machine) -> Replay:
        """Return how far integer nodes are from their references on ``machine``.

        ``runs`` hold what was fed and what came out, by tensor, for each sample.
        """
        found = [self._once(arrays, machine) for arrays in runs]
        layers = zip(*(run for run, _ in found), strict=True)
        largest = tuple(max(same, key=lambda layer: layer.difference) for same in layers)
        refused = found[0][1] if found else []
        return Replay(largest, (*self._unread, *refused), len(found))

    def _once(
        self, arrays: Mapping[str, Array], machine: Machine
    ) -> tuple[list[Layer], list[tuple[str, Miss]]]:
        """Compute every integer node again from what it read."""
        layers: list[Layer] = []
        refused: list[tuple[str, Miss]] = []
        for node in self._nodes:
            inputs = [self._read(name, arrays) for name in node.input]
            made = reference(Call(node, inputs, self._opset, machine))
            if isinstance(made, Miss):
                refused.append((node.op_type, made))
            else:
                layers.append(_compared(node, made, arrays))
        return layers, refused

    def _read(self, name: str, arrays: Mapping[str, Array]) -> Array | None:
        if name in self._constants:
            return np.asarray(onnx.numpy_helper.to_array(self._constants[name]))
        return arrays[name] if name else None


def _showing(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Return a copy of ``model`` that has ``names`` among its outputs."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    known = {item.name for item in shown.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    return shown


def _compared(node: onnx.NodeProto, made: list[Array], arrays: Mapping[str, Array]) -> Layer:
    written = [arrays[name] for name in node.output if name]
    counted = Counted.ULPS if any(y.dtype == np.float32 for y in written) else Counted.STEPS
    name = node.name or node.output[0]
    for want, got in zip(made, written, strict=True):
        if want.shape != got.shape or want.dtype != got.dtype:
            raise PassError(
                f"the reference of {node.op_type} gives {want.dtype}{list(want.shape)}, "
                f"onnxruntime {got.dtype}{list(got.shape)}",
                node=name,
                hint="turn it off with Verification(replay=0), and report the model",
            )
    gap = max(map(_gap, made, written), default=0.0)
    return Layer(name, node.op_type, gap, counted)


def _gap(want: Array, got: Array) -> float:
    """Return the largest difference: in steps of codes, in units in the last place of numbers."""
    if np.array_equal(want, got):
        return 0.0
    gap = float(np.abs(want.astype(np.float64) - got).max())
    return gap if want.dtype.kind != "f" else gap / float(np.spacing(np.abs(want).max()))
