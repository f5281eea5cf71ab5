# SPDX-License-Identifier: Apache-2.0
"""What the benchmark scripts share: feeds, the baseline quantizer, comparison, tables."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from qhyvit_onnx.compiler import Compiled
from qhyvit_onnx.config import CompileConfig, Effort, Guard, Verification
from qhyvit_onnx.errors import ModelError
from qhyvit_onnx.metrics import Closeness, Comparison
from qhyvit_onnx.runtime import Arithmetic, Options, Session

Feed: TypeAlias = dict[str, NDArray[Any]]
Rows: TypeAlias = list[dict[str, Any]]


def npz_feeds(path: Path, limit: int = 64) -> list[Feed]:
    """Return the samples of an ``.npz`` whose keys are input names, one by one."""
    with np.load(path) as arrays:
        name = arrays.files[0]
        data = arrays[name][:limit]
    return [{name: data[index : index + 1]} for index in range(len(data))]


def closeness(
    source: Path, model: onnx.ModelProto | Path, feeds: Sequence[Feed], arithmetic: Arithmetic
) -> Closeness:
    """Return how close the first output of ``model`` is to that of ``source``."""
    reference, candidate = Session(source), Session(model, Options(arithmetic=arithmetic))
    comparison = Comparison()
    for feed in feeds:
        want, got = reference.run(feed), candidate.run(feed)
        comparison.add(want[reference.outputs[0]], got[candidate.outputs[0]])
    return comparison.result()


def speed_only(target: str) -> CompileConfig:
    """Return how models of random weights are compiled: without the guard of their accuracy.

    They are chaotic: the guard would leave float what is quiet in any trained net.
    """
    return CompileConfig(
        target=target,
        effort=Effort.FAST,
        guard=Guard(samples=0),
        verification=Verification(rounds=0, replay=0, samples=1),
    )


def foretold(compiled: Compiled, unit: str, in_float: float, placed: float) -> dict[str, str]:
    """Return what the target's table said of float and of ours, over what was found in ``unit``.

    A dash where the table counts in another unit.
    """
    said = compiled.report.prediction
    names = ("predicted / found, float", "predicted / found, ours")
    if said is None or said.unit != unit:
        return dict.fromkeys(names, "-")
    ratios = (said.in_float / in_float, said.placed / placed)
    return {name: f"{ratio:.2f}" for name, ratio in zip(names, ratios, strict=True)}


def best_arithmetic(model: Path) -> Arithmetic:
    """Return exact sums where onnxruntime can load ``model`` so; it cannot with shared weights."""
    try:
        Session(model, Options(arithmetic=Arithmetic.EXACT))
    except ModelError:
        return Arithmetic.STOCK
    return Arithmetic.EXACT


def quantize_static(
    source: Path,
    feeds: Sequence[Feed],
    output: Path,
    *,
    method: str = "MinMax",
    weight_bits: int = 8,
) -> Path:
    """Quantize with onnxruntime's own tool: uint8 activations, per-channel weights.

    ``method`` is a name of its CalibrationMethod; ``weight_bits`` 8, or 4 for int4 weights.
    """
    from onnxruntime import quantization  # noqa: PLC0415 - slow to import

    logging.getLogger().setLevel(logging.ERROR)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Hands the feeds out one by one."""

        def __init__(self) -> None:
            self._left: Iterator[Feed] = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self._left, None)

    quantization.quantize_static(
        str(_prepared(source, output, opset=13 if weight_bits == 8 else 21)),
        str(output),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType[f"QInt{weight_bits}"],
        calibrate_method=quantization.CalibrationMethod[method],
        per_channel=True,
    )
    return output


def _prepared(source: Path, output: Path, *, opset: int) -> Path:
    """Pre-process as the documentation of that tool asks; lift models that are below ``opset``.

    Without symbolic shapes: with them it stops at MobileViT's fusion Concat.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    lifted, prepared = output.with_suffix(".lifted.onnx"), output.with_suffix(".prepared.onnx")
    model = onnx.load(source)
    if max(item.version for item in model.opset_import) < opset:
        model = onnx.version_converter.convert_version(model, max(opset, 17))
    onnx.save(model, lifted)
    quant_pre_process(str(lifted), str(prepared), skip_symbolic_shape=True)
    return prepared


def table(rows: Rows) -> str:
    """Return ``rows`` as a Markdown table."""
    if not rows:
        return "(nothing measured)"
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([str(row[key]) for key in head] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
