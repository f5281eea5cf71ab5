# SPDX-License-Identifier: Apache-2.0
"""What learning a quantized block may change: how weights round, scales, and biases."""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qhyvit_onnx.grid import Grid, WeightGrid
from qhyvit_onnx.kernels.dropping import random_mask
from qhyvit_onnx.kernels.fake_quant import fake_quantize, round_through

LOW, HIGH = -0.1, 1.1
"""Ends of the stretched sigmoid, so that both roundings are reached (AdaRound, eq. 23)."""

SIDE = 0.1
"""How far from the middle an element starts at least, on the side of its code: nearer, noise in the
first steps would turn over what the search has found."""

NEARLY = 0.01
"""How close to a code an element may start: closer it could not leave any more."""


Steps: TypeAlias = Callable[[], Tensor]
"""Gives steps (C,) as they are now."""


class SoftRounding:
    """A weight between its two nearest codes; ``learned`` says how far up each element is.

    Source:
        Nagel et al. (2020), "Up or down? Adaptive rounding for post-training quantization",
        arXiv 2004.10568, eq. 22 to 24.
    """

    def __init__(
        self,
        weight: NDArray[np.float32],
        grid: WeightGrid,
        codes: NDArray[np.int8],
        device: str | torch.device,
    ) -> None:
        """Start where the weight is, and on the side of the code that was found for it.

        Shapes:
            codes as weight; each is the weight's floor or ceiling on ``grid``, or its limit.
        """
        steps = grid.spread(weight.ndim)
        ratio = np.clip(weight / steps, -grid.limit, grid.limit)
        floor = np.clip(np.floor(ratio), -grid.limit, grid.limit - 1)
        chosen = np.where(codes > floor, np.maximum(ratio - floor, 0.5 + SIDE), ratio - floor)
        chosen = np.where(codes <= floor, np.minimum(chosen, 0.5 - SIDE), chosen)
        up = np.clip((chosen - LOW) / (HIGH - LOW), NEARLY, 1 - NEARLY)
        self._steps = torch.from_numpy(np.asarray(steps)).to(device)
        self._floor = torch.from_numpy(floor.astype(np.float32)).to(device)
        start = torch.from_numpy(np.log(up / (1 - up)).astype(np.float32))
        self.learned = start.to(device).requires_grad_()
        self.settled = False
        """Whether readers see codes rather than something between two of them."""

    def __call__(self, _weight: Tensor) -> Tensor:
        """Return the weight as readers see it now."""
        up = (self.learned >= 0).float() if self.settled else self._up()
        return (self._floor + up) * self._steps

    def undecided(self, sharpness: float) -> Tensor:
        """Return the sum of ``1 - |2 up - 1| ** sharpness``: zero when every element is a code."""
        return (1 - (2 * self._up() - 1).abs().pow(sharpness)).sum()

    def codes(self) -> NDArray[np.int8]:
        """Return the codes, in the shape of the weight."""
        codes = (self._floor + (self.learned.detach() >= 0)).to(torch.int8)
        found: NDArray[np.int8] = codes.cpu().numpy()
        return found

    def _up(self) -> Tensor:
        return (torch.sigmoid(self.learned) * (HIGH - LOW) + LOW).clamp(0, 1)


class LearnedScale:
    """The grid of an activation; ``learned`` is the logarithm of how much its scale has grown."""

    def __init__(self, grid: Grid, device: str | torch.device) -> None:
        """Start at ``grid``."""
        self._grid = grid
        self.learned = torch.zeros((), device=device, requires_grad=True)
        self.dropped = 0.0
        """Share of the elements that readers see unrounded (QDrop, arXiv 2203.05740)."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``x`` rounded, but for the dropped share."""
        kept = random_mask(x, self.dropped) if self.dropped else None
        return fake_quantize(x, self.now(), self._grid.zero_point, 0, self._grid.top, kept=kept)

    def now(self) -> Tensor:
        """Return the scale as readers see it now."""
        return float(np.float32(self._grid.scale)) * self.learned.exp()

    def times(self, factors: NDArray[np.float32]) -> Steps:
        """Return what gives ``factors`` (C,) times the scale as readers see it then."""
        fixed = torch.from_numpy(factors).to(self.learned.device)
        return lambda: self.now() * fixed

    def scale(self) -> float:
        """Return the scale, in units of x a step."""
        return float(np.float32(self._grid.scale * math.exp(float(self.learned.detach()))))


class BiasShift:
    """A bias; ``learned`` is what is added to it, in units of ``step``."""

    def __init__(
        self,
        bias: NDArray[np.float32],
        shift: NDArray[np.float32],
        unit: Steps | None,
        device: str | torch.device,
    ) -> None:
        """Start at ``bias + shift``; both have the shape of the bias.

        ``unit`` gives the steps (C,) to which the sum is rounded; None leaves it as it is.
        """
        self._bias, self._unit = bias, unit
        self.step = 1.0
        """In units of the bias: what learning takes for a small change of it."""
        start = torch.from_numpy(np.array(shift, np.float32))
        self.learned = start.to(device).requires_grad_()

    def __call__(self, bias: Tensor) -> Tensor:
        """Return the bias as readers see it now."""
        now = bias + self.learned * self.step
        if self._unit is None:
            return now
        unit = self._unit().reshape(-1).expand(now.numel()).reshape(now.shape)
        return round_through(now / unit) * unit

    def rescale(self, step: float) -> None:
        """Count in units of ``step`` from now on; the bias stays."""
        with torch.no_grad():
            self.learned *= self.step / step
        self.step = step

    def correct(self, error: Tensor) -> None:
        """Take ``error`` (C,), the mean by channel of what is written too much, off the bias."""
        with torch.no_grad():
            shift = error.to(self.learned.device).reshape(self.learned.shape)
            self.learned -= shift / self.step

    def bias(self) -> NDArray[np.float32]:
        """Return the bias, in its own shape."""
        shift = self.learned.detach().cpu().numpy() * self.step
        return np.asarray(self._bias + shift, np.float32)
