# SPDX-License-Identifier: Apache-2.0
"""Runs a program step by step in torch, with gradients, hooks on tensors, and trainable weights."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from qhyvit_onnx.errors import ConfigError, ModelError
from qhyvit_onnx.kernels.ops import TABLE
from qhyvit_onnx.kernels.ops.dtypes import array_of, tensor_of
from qhyvit_onnx.kernels.ops.table import OUTPUTS, Kernel
from qhyvit_onnx.kernels.program import Array, Opaque, Program, Step

Hook: TypeAlias = Callable[[Tensor], Tensor]
Hooks: TypeAlias = Mapping[str | tuple[str, int], Hook]
"""By tensor: what its readers see. By (step, input): what that one reader sees there."""

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class _Call:
    """A step, ready to run."""

    step: Step
    host: frozenset[int]
    run: Callable[..., Tensor | Sequence[Tensor]]
    dying: tuple[str, ...]
    """Tensors that nothing reads after this step."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """The calls that lead from some tensors to others."""

    constants: tuple[str, ...]
    calls: tuple[_Call, ...]


class Executor:
    """A program on a device.

    Floating-point tensors live on the device. Integers stay on the CPU, where shape arithmetic
    wants them, until an operation combines them with a tensor of the device.
    """

    def __init__(
        self, program: Program, *, device: str | torch.device = "cpu", opaque: Opaque | None = None
    ) -> None:
        """Find a kernel for every step.

        Raises:
            ModelError: a step has no kernel and there is no ``opaque`` to run it.

        """
        self.program = program
        self._names = frozenset(program.names())
        self._device = torch.device(device)
        self._opaque = opaque
        self._constants: dict[str, Tensor] = {}
        self._plans: dict[tuple[tuple[str, ...], tuple[str, ...]], _Plan] = {}
        self._kernels = {step.name: _kernel_of(step, program.opset) for step in program.steps}
        self._numbers = self._read_as_numbers()
        if opaque is None and self.opaque_ops:
            raise ModelError(f"no kernel for {', '.join(self.opaque_ops)} at opset {program.opset}")

    @property
    def opaque_ops(self) -> tuple[str, ...]:
        """Return the ops that run without a gradient, in order, with the domain if not ONNX's."""
        unknown = (step for step in self.program.steps if self._kernels[step.name] is None)
        return tuple(sorted({".".join(filter(None, (s.domain, s.op))) for s in unknown}))

    def run(
        self,
        feeds: Mapping[str, Array | Tensor],
        wanted: Sequence[str],
        *,
        parameters: Mapping[str, Tensor] | None = None,
        hooks: Hooks | None = None,
    ) -> dict[str, Tensor]:
        """Return the tensors ``wanted``, as their readers see them.

        Only what lies between ``feeds`` and ``wanted`` runs; a feed may be any tensor and replaces
        what computes it. ``parameters`` stand in for constants. A hook is applied to what a
        constant, a feed or a step gives, before anything reads it. Gradients follow torch's rules:
        they reach whatever requires them, and stop at opaque steps and at integers.

        Raises:
            ConfigError: a name is unknown, or something needed is neither given nor computed.
            ModelError: a step failed.

        """
        parameters, hooks = parameters or {}, hooks or {}
        self._check(parameters, hooks)
        plan = self._plan(tuple(feeds), tuple(wanted))
        sources = {name: self._constant(name) for name in plan.constants}
        sources |= {name: self._placed(parameters[name]) for name in sources if name in parameters}
        sources |= {name: self._fed(name, value) for name, value in feeds.items()}
        values = {name: _hooked(tensor, hooks.get(name)) for name, tensor in sources.items()}
        for call in plan.calls:
            results = _results(call, self._arguments(call, values, hooks))
            for name, result in zip(call.step.outputs, results, strict=False):
                if name:
                    values[name] = _hooked(result, hooks.get(name))
            for name in call.dying:
                del values[name]
        return {name: values[name] for name in wanted}

    def _check(self, parameters: Mapping[str, Tensor], hooks: Hooks) -> None:
        """Refuse names that would silently do nothing."""
        for name in parameters:
            if name not in self.program.constants:
                raise ConfigError(f"parameter {name!r} is no constant of the graph")
        for key in hooks:
            name, known = (key[0], self._kernels) if isinstance(key, tuple) else (key, self._names)
            if name not in known:
                raise ConfigError(f"a hook is on {key!r}, which is not in the graph")

    def _plan(self, feeds: tuple[str, ...], wanted: tuple[str, ...]) -> _Plan:
        if (feeds, wanted) not in self._plans:
            part = self.program.between(feeds, wanted)
            calls: list[_Call] = []
            kept = set(wanted)
            for step in reversed(part.steps):
                named = dict.fromkeys(name for name in (*step.reads, *step.outputs) if name)
                calls.append(self._call(step, tuple(name for name in named if name not in kept)))
                kept.update(named)
            self._plans[feeds, wanted] = _Plan(tuple(part.constants), tuple(reversed(calls)))
        return self._plans[feeds, wanted]

    def _call(self, step: Step, dying: tuple[str, ...]) -> _Call:
        kernel = self._kernels[step.name]
        if kernel is None:
            return _Call(
                step, frozenset(range(len(step.reads))), partial(self._outside, step), dying
            )
        counted = {OUTPUTS: len(step.outputs)} if OUTPUTS in kernel.attributes else {}
        return _Call(step, kernel.host, partial(kernel.run, **step.attrs, **counted), dying)

    def _read_as_numbers(self) -> set[str]:
        """Return the tensors that are read on the host only: constants among them stay there."""
        numbers: set[str] = set()
        others: set[str] = set(self.program.outputs)
        for step in self.program.steps:
            kernel = self._kernels[step.name]
            for index, name in enumerate(step.inputs):
                on_host = kernel is not None and index in kernel.host
                (numbers if on_host else others).add(name)
        return numbers - others

    def _constant(self, name: str) -> Tensor:
        if name not in self._constants:
            tensor = tensor_of(self.program.constants[name], name)
            self._constants[name] = tensor if name in self._numbers else self._placed(tensor)
        return self._constants[name]

    def _fed(self, name: str, value: Array | Tensor) -> Tensor:
        return self._placed(value if isinstance(value, Tensor) else tensor_of(value, name))

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device) if tensor.is_floating_point() else tensor

    def _arguments(
        self, call: _Call, values: Mapping[str, Tensor], hooks: Hooks
    ) -> list[Tensor | None]:
        """Return what a step reads, hooked for this reader, on one device."""
        step = call.step
        args = [values[name] if name else None for name in (*step.inputs, *step.captured)]
        if hooks:
            for index, arg in enumerate(args):
                if arg is not None and (step.name, index) in hooks:
                    args[index] = hooks[step.name, index](arg)
        if self._device == _CPU or all(arg is None or arg.device == _CPU for arg in args):
            return args
        return [
            arg if arg is None or index in call.host else arg.to(self._device)
            for index, arg in enumerate(args)
        ]

    def _outside(self, step: Step, *args: Tensor | None) -> list[Tensor]:
        """Run a step that has no kernel."""
        assert self._opaque is not None  # __init__ saw to it
        arrays = [None if arg is None else array_of(arg, step.name) for arg in args]
        return [self._placed(tensor_of(array, step.name)) for array in self._opaque(step, arrays)]


def _kernel_of(step: Step, opset: int) -> Kernel | None:
    """Return the kernel of a step; None when there is none that takes its attributes."""
    kernel = TABLE.find(step.op, opset) if step.domain in {"", "ai.onnx"} else None
    return kernel if kernel is not None and kernel.attributes.issuperset(step.attrs) else None


def _results(call: _Call, args: Iterable[Tensor | None]) -> Sequence[Tensor]:
    """Run a call; ModelError naming the node when it fails or gives too few outputs."""
    try:
        found = call.run(*args)
    except ModelError as error:
        raise ModelError(error.message, node=call.step.name, hint=error.hint) from error
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{call.step.op} cannot run: {first}", node=call.step.name) from error
    results = (found,) if isinstance(found, Tensor) else found
    if len(results) < len(call.step.outputs):
        raise ModelError(
            f"{call.step.op} gives {len(results)} of {len(call.step.outputs)} outputs",
            node=call.step.name,
        )
    return results


def _hooked(tensor: Tensor, hook: Hook | None) -> Tensor:
    return tensor if hook is None else hook(tensor)
