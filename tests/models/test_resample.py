from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from litheseg.models.base import resample


@pytest.mark.parametrize("small", [(1, 1), (3, 5), (23, 30), (7, 40)])
@pytest.mark.parametrize("size", [(7, 40), (45, 61), (180, 240)])
def test_values_and_gradients_are_those_of_interpolate(small: tuple[int, int], size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 3, *small, dtype=torch.float64, generator=generator)
    weights = torch.randn(2, 3, *size, dtype=torch.float64, generator=generator)
    ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    result, expected = resample(ours, size), F.interpolate(theirs, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(result, expected)
    (result * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_autocast_does_not_round_it() -> None:
    values = torch.randn(1, 2, 4, 5).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        result = resample(values, (13, 21))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, F.interpolate(values, (13, 21), mode="bilinear"))
