# SPDX-License-Identifier: Apache-2.0
"""Fake quantization: its values against ONNX's Q and DQ, its gradients against the paper's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="fake quantization is torch code, torch an extra")

from qhyvit_onnx.kernels.fake_quant import fake_quantize  # noqa: E402
from qhyvit_onnx.kernels.ops.quantization import (  # noqa: E402
    dequantize_linear,
    quantize_linear,
)

BITS = st.sampled_from([2, 3, 4, 8])
SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed, *shape, dtype=torch.float32):
    """Return normal numbers, a third of which a grid of [-1, 1] clips."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


@settings(deadline=None)
@given(SEEDS, st.integers(0, 255), st.floats(1e-3, 0.1))
def test_equals_quantize_then_dequantize(seed, zero, step):
    """Bit for bit: both divide, round half to even, saturate and multiply in float32."""
    x, scale = drawn(seed, 4, 50), torch.tensor(step)
    point = torch.tensor(zero, dtype=torch.uint8)
    codes = quantize_linear.run(x, scale, point)
    want = dequantize_linear.run(codes, scale, point)
    assert torch.equal(fake_quantize(x, scale, point, 0, 255), want)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_grid_for_each_channel_equals_a_grid_alone(axis):
    x = drawn(0, 3, 3, 3)
    scale, zero = torch.tensor([0.1, 0.3, 0.02]), torch.tensor([0, -8, 5])
    whole = fake_quantize(x, scale, zero, -8, 7, axis=axis)
    for channel in range(3):
        alone = fake_quantize(x.select(axis, channel), scale[channel], zero[channel], -8, 7)
        assert torch.equal(whole.select(axis, channel), alone)


@settings(deadline=None)
@given(SEEDS, BITS, st.integers(-2, 2))
def test_gradients_are_those_of_learned_step_sizes(seed, bits, zero):
    """arXiv 1902.08153, eq. 3 and 5, written out case by case in float64."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    x = drawn(seed, 30, dtype=torch.float64).requires_grad_()
    scale = torch.tensor(1.0 / high, dtype=torch.float64, requires_grad=True)
    weight = drawn(seed + 1, 30, dtype=torch.float64)
    (fake_quantize(x, scale, zero, low, high) * weight).sum().backward()
    below, above = zero - low, high - zero  # Q_N and Q_P
    to_x, to_scale = [], 0.0
    for value, factor in zip(x.tolist(), weight.tolist(), strict=True):
        ratio = value / scale.item()
        to_x.append(factor if -below < ratio < above else 0.0)
        if ratio <= -below:
            to_scale += factor * -below
        elif ratio >= above:
            to_scale += factor * above
        else:
            to_scale += factor * (round(ratio) - ratio)
    np.testing.assert_allclose(x.grad.numpy(), to_x, rtol=1e-12)
    np.testing.assert_allclose(scale.grad.item(), to_scale, rtol=1e-9, atol=1e-9)


def test_gradient_of_a_scale_is_a_slope_where_rounding_stands_still():
    """Clipped values follow the scale: y = s (bound - z), so dy/ds is a true derivative."""
    x = torch.tensor([5.0, -5.0, 7.0], dtype=torch.float64)
    scale = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: fake_quantize(x, s, 3, -8, 7), (scale,))


def test_every_channel_has_its_own_gradient():
    x = drawn(3, 2, 3, 4)
    scale = torch.tensor([0.1, 0.4, 0.05], requires_grad=True)
    fake_quantize(x, scale, 0, -8, 7, axis=1).square().sum().backward()
    for channel in range(3):
        alone = scale.detach()[channel].clone().requires_grad_()
        fake_quantize(x[:, channel], alone, 0, -8, 7).square().sum().backward()
        # sums of 8 numbers in another order
        torch.testing.assert_close(scale.grad[channel], alone.grad, rtol=1e-5, atol=1e-6)


def test_the_ends_of_the_range_count_as_inside():
    x = torch.tensor([-0.8, 0.7, -0.80001, 0.70001], dtype=torch.float64, requires_grad=True)
    fake_quantize(x, torch.tensor(0.1, dtype=torch.float64), 0, -8, 7).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 0.0, 0.0]


@settings(deadline=None)
@given(SEEDS)
def test_what_is_kept_passes_with_its_gradient(seed):
    x = drawn(seed, 5, 60).requires_grad_()
    kept = drawn(seed + 1, 5, 60) > 0
    x.data[0, 0] = -torch.inf
    weight = drawn(seed + 2, 5, 60)
    scale = torch.tensor(0.1, requires_grad=True)
    y = fake_quantize(x, scale, 1, -8, 7, kept=kept)
    whole = fake_quantize(x, scale, 1, -8, 7)
    assert torch.equal(y, torch.where(kept, x, whole))
    got = torch.autograd.grad(y, (x, scale), weight)
    want = torch.autograd.grad(whole, (x, scale), weight * ~kept)
    assert torch.equal(got[0], torch.where(kept, weight, want[0]))
    torch.testing.assert_close(got[1], want[1])


def test_a_learned_scale_finds_the_grid_of_its_data():
    """Data on a grid of step 0.25, seven steps to a side: from twice the step, down to it."""
    codes = torch.arange(-7, 8).repeat(4).float()
    scale = torch.tensor(0.5, requires_grad=True)
    optimizer = torch.optim.Adam([scale], lr=0.01)
    for _ in range(200):
        loss = (fake_quantize(codes * 0.25, scale, 0, -7, 7) - codes * 0.25).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(scale.item() - 0.25) < 0.01


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_without_gradients_values_are_the_same_bit_for_bit(share):
    x, scale, zero = drawn(3, 4, 60), torch.tensor(0.013), torch.tensor(7)
    kept = drawn(4, 4, 60) > 0 if share else None
    before = x.clone()
    with torch.no_grad():
        plain = fake_quantize(x, scale, zero, 0, 255, kept=kept)
    assert torch.equal(plain, fake_quantize(x.requires_grad_(), scale, zero, 0, 255, kept=kept))
    assert not plain.requires_grad
    assert torch.equal(x, before)  # nothing of x is written over
