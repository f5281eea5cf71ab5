# SPDX-License-Identifier: Apache-2.0
"""Elements drawn at random: as many as asked, and mixed in as torch.where would."""

import pytest

torch = pytest.importorskip("torch", reason="what is drawn is for torch code, torch an extra")

from qhyvit_onnx.kernels.dropping import mixed, random_mask  # noqa: E402


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(3, 40, 90), (10_007,)])
def test_the_share_asked_for_is_drawn(share, shape):
    torch.manual_seed(0)
    mask = random_mask(torch.zeros(shape), share)
    assert mask.shape == shape
    assert mask.dtype == torch.bool
    assert float(mask.float().mean()) == pytest.approx(share, abs=0.02)


def test_drawing_is_seeded_and_elements_are_independent():
    torch.manual_seed(1)
    first, second = (random_mask(torch.zeros(20_000), 0.5) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(random_mask(torch.zeros(20_000), 0.5), first)
    assert float((first == second).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert float((first[1:] == first[:-1]).float().mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_mixing_is_where_also_for_what_is_not_finite(dtype):
    torch.manual_seed(2)
    x, other = torch.randn(2, 100, dtype=dtype), torch.randn(2, 100, dtype=dtype)
    x[0, :3] = torch.tensor([torch.inf, -torch.inf, -0.0])
    other[0, 3:5] = -torch.inf
    for mask in (torch.zeros(2, 100) > 1, torch.ones(2, 100) > 0, random_mask(x, 0.5)):
        assert torch.equal(mixed(x, other, mask), torch.where(mask, other, x))


def test_the_draw_of_a_transposed_tensor_fits_it():
    x = torch.randn(4, 6).T
    mask = random_mask(x, 0.5)
    assert torch.equal(mixed(x, torch.zeros(6, 4), mask), torch.where(mask, 0.0, x))
