# SPDX-License-Identifier: Apache-2.0
"""One streaming run over the calibration data, watching tensors sample by sample."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
from numpy.typing import NDArray

from qhyvit_onnx.config import CompileConfig, Extent, Io
from qhyvit_onnx.errors import DataError, ModelError
from qhyvit_onnx.graph import Tensor, producer
from qhyvit_onnx.kernels.observers import Observer, TensorStats
from qhyvit_onnx.runtime import Options, Session, cores
from qhyvit_onnx.state import State
from qhyvit_onnx.units import CONVOLUTIONS, LAYERS, Kind, Unit, is_softmax, source_of

THREADS = 2
"""Tensors observed side by side (numpy releases the lock while it reduces)."""

TOGETHER = 8
"""Tensors that one thread takes at a time: few enough to share work out, many for a small cost."""


def observe(
    state: State, axes: Mapping[str, int], units: Iterable[Unit]
) -> tuple[dict[str, TensorStats], int]:
    """Return statistics of the tensors in ``axes``, each with its channel axis, and the samples.

    Only sums are kept, never tensors.

    Error:
        DataError without samples; ModelError when a layer with weights reads NaN or infinity.
        Any other tensor that holds them is left out: it may be meant, as in a mask.
    """
    observers = {name: Observer(axis) for name, axis in axes.items()}
    left = max(1, cores() - THREADS)  # cores beside those that take statistics
    session = Session(_with_outputs(state.model(), list(axes)), Options(threads=left))
    units, samples = tuple(units), 0
    with ThreadPoolExecutor(THREADS) as pool:
        finish: Callable[[], set[str]] = set
        for feeds in state.calibration:
            # the next sample runs while threads take this one
            values = {**feeds, **session.run(feeds, [n for n in axes if n not in feeds])}
            _leave_out(finish(), observers, units, samples - 1)
            finish = _take(observers, values, pool)
            samples += 1
            state.tick(samples, len(state.calibration))
        _leave_out(finish(), observers, units, samples - 1)
    if not samples:
        raise DataError(
            "the calibration data holds no samples", hint="give --calib a folder of images"
        )
    stats = {name: item.stats() for name, item in observers.items() if not item.empty}
    return stats, samples


def _take(
    observers: Mapping[str, Observer],
    values: Mapping[str, NDArray[np.generic]],
    pool: ThreadPoolExecutor,
) -> Callable[[], set[str]]:
    """Start to take one sample; the result waits, and returns what holds NaN or infinity."""
    names = list(observers)

    def take(start: int) -> set[str]:
        part = names[start : start + TOGETHER]
        return {n for n in part if not observers[n].add(np.asarray(values[n], np.float32))}

    taken = pool.map(take, range(0, len(names), TOGETHER))
    return lambda: set().union(*taken)


def _leave_out(
    spoiled: set[str], observers: dict[str, Observer], units: Iterable[Unit], sample: int
) -> None:
    """Stop watching tensors that are not finite: what reads them stays float."""
    for unit in units:
        found = sorted(spoiled & {tensor.name for tensor in unit.inputs})
        if found and unit.kind in LAYERS:
            raise ModelError(
                f"tensor {found[0]!r} holds NaN or infinity on calibration sample {sample}",
                node=unit.name,
                hint="check the preprocessing and that the float model is sound",
            )
    for name in spoiled:
        del observers[name]


def watched(units: Iterable[Unit], config: CompileConfig) -> dict[str, int]:
    """Return the tensors to watch, each with its channel axis.

    What a kernel reads, seen through data movement, and what it writes as codes. A tensor that a
    kernel writes as floats is watched only if another kernel reads it, or if it leaves as codes;
    what a softmax writes only if something else than a product (attention) reads it: it is large,
    and its grid is fixed.
    What a softmax reads, as large, is watched only where it may run int8: with Extent.FULL.
    """
    axes: dict[str, int] = {}
    for unit in units:
        if unit.kind is Kind.SOFTMAX and config.placement is Extent.FAST:
            continue
        convolves = unit.kind in CONVOLUTIONS
        if unit.kind in LAYERS:  # its weight columns meet these channels: this axis counts
            axes[unit.inputs[0].name] = 1 if convolves else -1
        leaves = config.io is Io.UINT8 and not unit.output.outputs
        written = () if unit.may_write_floats and not leaves else (unit.output,)
        for tensor in (*unit.inputs, *written, *unit.interior):
            source = source_of(tensor)
            if unit.kind not in {Kind.PRODUCT, Kind.SOFTMAX} or not is_softmax(source):
                axes.setdefault(tensor.name, 1 if convolves else _axis_of(tensor))
                axes.setdefault(source.name, _axis_of(source))
    return axes


def _axis_of(tensor: Tensor) -> int:
    """Return the channel axis: of a map the second, of tokens the last."""
    node = producer(tensor)
    mapped = len(tensor.shape or ()) == 4 or (node is not None and node.op == "Conv")
    return 1 if mapped else -1


def _with_outputs(model: onnx.ModelProto, wanted: list[str]) -> onnx.ModelProto:
    """Return ``model`` with every wanted tensor among its outputs."""
    present = {o.name for o in model.graph.output} | {i.name for i in model.graph.input}
    for name in wanted:
        if name not in present:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    return model
