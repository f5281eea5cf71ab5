# SPDX-License-Identifier: Apache-2.0
"""Learned rounding, scales and biases, block by block, and then of the network as a whole."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from qhyvit_onnx.config import CompileConfig, Effort, Extent, Learning
from qhyvit_onnx.data import Feed
from qhyvit_onnx.effort import effort_of
from qhyvit_onnx.facts import BRIDGES, EVIDENCE, GRIDS, PLACEMENT, RANGES, SEARCHED, UNITS
from qhyvit_onnx.graph import Tensor
from qhyvit_onnx.passes._base import Outcome, Pass
from qhyvit_onnx.passes._blocks import Cutter, Span
from qhyvit_onnx.passes._simulation import sites_of
from qhyvit_onnx.precision import Precision
from qhyvit_onnx.programs import opaque_runner, program_of
from qhyvit_onnx.state import State
from qhyvit_onnx.units import LAYERS, Unit, is_softmax

if TYPE_CHECKING:
    from qhyvit_onnx.kernels.reconstruction import Schedule
    from qhyvit_onnx.passes._learned import Network
    from qhyvit_onnx.passes._learner import Progress, Verdict

IN_MEMORY = 256 << 20
"""Bytes of samples held in memory; what is more goes to a temporary file."""


@dataclass(frozen=True)
class Reconstruct(Pass):
    """Learn how weights round, activation scales and biases, each block on its own output."""

    learning: Learning | None = None

    name = "reconstruct"
    summary = "corrected biases; learned rounding and scales, block by block"
    needs = (SEARCHED, UNITS, PLACEMENT, BRIDGES, RANGES, EVIDENCE)
    gives = (GRIDS,)

    def run(self, state: State) -> Outcome:
        """Put GRIDS; the graph stays as it is."""
        learning = self.learning or default_learning(state)
        samples = list(islice(state.calibration, learning.samples))
        if refusal := _refusal(state.config, learning, samples):
            state.put(GRIDS, state.get(SEARCHED))
            return Outcome(0, f"off ({refusal})")
        return self._learn(state, learning, samples)

    def _learn(self, state: State, learning: Learning, samples: Sequence[Feed]) -> Outcome:
        from qhyvit_onnx.kernels.reconstruction import Schedule  # noqa: PLC0415 - torch is optional
        from qhyvit_onnx.kernels.sample_store import Memory  # noqa: PLC0415 - torch is optional
        from qhyvit_onnx.passes._learner import Walk  # noqa: PLC0415 - torch is optional

        network, spans = self._network(state, samples)
        if not network.passing.ends:
            state.put(GRIDS, state.get(SEARCHED))
            return Outcome(0, "off (no output is computed from floats)")
        found: list[Progress] = []
        total = len(spans) + bool(learning.finish)
        with tempfile.TemporaryDirectory() as folder:
            memory = Memory(IN_MEMORY, Path(folder))
            walk = Walk(network, samples, Schedule(steps=learning.steps), memory)
            for item in walk.learn(spans, state.config.seed):
                found.append(item)
                state.tick(len(found), total)
            if learning.finish:
                found.append(walk.finish(_whole(learning.finish), state.config.seed))
                state.tick(total, total)
            verdict = walk.judge()
        state.put(GRIDS, walk.grids())
        return Outcome(0, _note(found, learning, len(samples), verdict))

    def _network(self, state: State, samples: Sequence[Feed]) -> "tuple[Network, list[Span]]":
        """Return what is learned on, and the blocks in which it is."""
        from qhyvit_onnx.kernels.devices import device_of  # noqa: PLC0415 - torch is optional
        from qhyvit_onnx.kernels.executor import Executor  # noqa: PLC0415 - torch is optional
        from qhyvit_onnx.kernels.passing import passing  # noqa: PLC0415 - torch is optional
        from qhyvit_onnx.passes._learned import Network  # noqa: PLC0415 - torch is optional

        units, placement = state.get(UNITS), state.get(PLACEMENT)
        program, device = program_of(state.model()), device_of(state.config)
        executor = Executor(program, device=device, opaque=opaque_runner(program))
        seen = passing(executor, *samples[:2])
        places = {step.name: i for i, step in enumerate(program.steps)}
        learned = [u for u in units if u.kind in LAYERS and u.name in placement.int8]
        bridges = [[places[n] for n in b.nodes if n in places] for b in state.get(BRIDGES)]
        cutter = Cutter(
            program,
            {places[unit.name]: unit.name for unit in learned},
            seen.portable,
            seen.fixed,
            seen.ends,
            [(min(steps), max(steps)) for steps in bridges if steps],
        )
        network = Network(
            executor=executor,
            passing=seen,
            units={unit.name: unit for unit in units},
            sites=sites_of(state.graph, units, placement),
            grids=state.get(SEARCHED),
            frozen=frozenset(_frozen(state, units)),
            gains={n: e.gains.mean(axis=0) for n, e in state.get(EVIDENCE).tensors.items()},
            axes={name: stats.axis for name, stats in state.get(RANGES).items()},
            device=device,
        )
        return network, cutter.spans()


def default_learning(state: State) -> Learning:
    """Return how long is learned at the effort and precision of the compilation.

    At 8 bits a few steps suffice: they raise the SQNR of five nets by up to 1 dB on other images,
    100 hardly more, and let a text recogniser err a third less often. Below effort max the network
    is not learned as a whole: on 64 samples that gave no better SQNR on other images (the same nets
    at 6 bits), and took longer.
    """
    config = state.config
    effort = effort_of(config)
    if effort is Effort.FAST:
        return Learning(samples=0, steps=0, finish=0)
    if effort is Effort.MAX:
        return Learning(samples=256, steps=300, finish=500)
    least = Precision.parse(config.precision)
    if min(least.weights, least.activations) < 8:
        return Learning(samples=64, steps=150, finish=0)
    return Learning(samples=48, steps=24, finish=0)


def _whole(steps: int) -> "Schedule":
    """Return how the network is learned as a whole: scales and biases, many steps on few samples.

    Few samples a step are for time: what came out differed by no more than draws of samples do.
    """
    from qhyvit_onnx.kernels.reconstruction import Schedule  # noqa: PLC0415 - torch is optional

    return Schedule(steps=steps, batch=8, elements=24 << 20, rounding_rate=0.0, dropped=0.0)


def _refusal(config: CompileConfig, learning: Learning, samples: Sequence[Feed]) -> str:
    """Return why nothing can be learned; empty when it can."""
    if not learning.samples:
        who = "effort fast" if effort_of(config) is Effort.FAST else f"recipe {config.recipe}"
        return f"{who}: weights keep their searched codes"
    if len(samples) < 2:
        return "one calibration sample teaches nothing"
    shapes = [{name: array.shape for name, array in feed.items()} for feed in samples]
    if any(item != shapes[0] for item in shapes):
        return "calibration samples have different shapes"
    if plain := [name for name, shape in shapes[0].items() if not shape]:
        return f"input {plain[0]} is a single number"
    return ""


def _frozen(state: State, units: Sequence[Unit]) -> list[str]:
    """Return tensors whose grid others rely on: bounds of a fused Clip, an integer Softmax."""
    clipped = [unit.output for unit in units if unit.clip is not None]
    whole = state.config.placement is Extent.FULL
    maps = [t for t in state.graph.tensors().values() if whole and is_softmax(t)]
    return [str(tensor.name) for tensor in _unique(clipped + maps)]


def _unique(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


def _note(found: "Sequence[Progress]", learning: Learning, samples: int, verdict: "Verdict") -> str:
    blocks = found[:-1] if learning.finish else found
    layers = sum(item.layers for item in blocks)
    better = sum(item.after < item.before for item in blocks)
    told = f"{layers} layers in {len(blocks)} blocks on {samples} samples, {better} improved"
    before, after = (
        sum(getattr(item, name) for item in blocks) / max(len(blocks), 1)
        for name in ("before", "after")
    )
    told += f", held-out error {before:.2g} to {after:.2g}"
    if learning.finish:
        whole = found[-1]
        told += (
            f"; then together, at most {whole.steps} steps, {whole.before:.2g} to {whole.after:.2g}"
        )
    at_end = f"{verdict.searched:.2g} to {verdict.learned:.2g}"
    told += f"; at the outputs {at_end}" if verdict.kept else f"; left out: {at_end} at the outputs"
    return told if learning.steps else f"biases: {told}"
