"""Boundary mask and boundary losses against loops over pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from litheseg.errors import LithesegError
from litheseg.losses import boundary_head_loss, boundary_mask, cross_entropy


def blobs(seed, shape=(2, 9, 11), classes=3, ignored=0.05):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, size=(shape[0], shape[1] // 3 + 1, shape[2] // 3 + 1))
    mask = coarse.repeat(3, 1).repeat(3, 2)[:, : shape[1], : shape[2]].copy()
    mask[rng.random(shape) < ignored] = 255
    return mask


def boundary_by_loops(mask, radius):
    edge, result = np.zeros(mask.shape, bool), np.zeros(mask.shape, bool)
    for n, i, j in np.ndindex(mask.shape):
        for di, dj in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            a, b = i + di, j + dj
            if 0 <= a < mask.shape[1] and 0 <= b < mask.shape[2] and 255 not in (mask[n, i, j], mask[n, a, b]):
                edge[n, i, j] |= mask[n, i, j] != mask[n, a, b]
    for n, i, j in np.argwhere(edge):
        result[n, max(0, i - radius) : i + radius + 1, max(0, j - radius) : j + radius + 1] = True
    return result & (mask != 255)


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 5, 40])
def test_boundary_mask(radius):
    for seed in range(3):
        mask = blobs(seed)
        assert (boundary_mask(torch.tensor(mask), radius).numpy() == boundary_by_loops(mask, radius)).all()


def test_frame_and_ignore_make_no_boundary():
    mask = torch.zeros(1, 6, 6, dtype=torch.int64)
    assert not boundary_mask(mask, 2).any()
    mask[0, 2:4, 2:4] = 255
    assert not boundary_mask(mask, 2).any()
    mask = torch.tensor([[[0, 0, 255, 1, 1]]])
    assert not boundary_mask(mask, 3).any()
    assert not boundary_mask(torch.full((1, 3, 3), 255), 1).any()


def test_boundary_does_not_depend_on_class_numbers():
    mask = torch.tensor(blobs(4))
    renamed = mask.clone()
    for old, new in ((0, 254), (1, 7), (2, 0)):
        renamed[mask == old] = new
    assert torch.equal(boundary_mask(mask, 2), boundary_mask(renamed, 2))


def test_boundary_shapes_and_errors():
    assert boundary_mask(torch.zeros(1, 1, 1, dtype=torch.int64), 3).shape == (1, 1, 1)
    assert boundary_mask(torch.tensor([[0, 1]]), 0).all()
    with pytest.raises(LithesegError, match="0 or more"):
        boundary_mask(torch.zeros(1, 2, 2, dtype=torch.int64), -1)


def test_band_cross_entropy():
    mask = blobs(5)
    logits = np.random.default_rng(0).normal(size=(2, 3, 9, 11))
    weight = [0.5, 2.0, 1.0]
    total = norm = 0.0
    for n, i, j in np.argwhere(boundary_by_loops(mask, 1)):
        y, x = mask[n, i, j], logits[n, :, i, j]
        total += weight[y] * (math.log(np.exp(x).sum()) - x[y])
        norm += weight[y]
    given = (torch.tensor(logits, dtype=torch.float32), torch.tensor(mask), torch.tensor(weight))
    band = boundary_mask(given[1], 1)
    assert cross_entropy(*given, where=band).item() == pytest.approx(total / norm)
    everywhere = torch.ones_like(band)
    assert cross_entropy(*given, where=everywhere).item() == pytest.approx(cross_entropy(*given).item())


def test_boundary_head():
    mask = blobs(6)
    logits = np.random.default_rng(1).normal(size=(2, 1, 9, 11))
    band = boundary_by_loops(mask, 1)
    positive, negative, overlap, total = [], [], 0.0, 0.0
    for n, i, j in np.argwhere(mask != 255):
        p = 1 / (1 + math.exp(-logits[n, 0, i, j]))
        (positive if band[n, i, j] else negative).append(-math.log(p if band[n, i, j] else 1 - p))
        overlap += p * band[n, i, j]
        total += p + band[n, i, j]
    expected = (np.mean(positive) + np.mean(negative)) / 2 + 1 - 2 * overlap / total
    result = boundary_head_loss(torch.tensor(logits, dtype=torch.float32), torch.tensor(mask), 1)
    assert result.item() == pytest.approx(expected, rel=1e-5)


def test_boundary_head_balance_is_that_of_hed():
    mask, logits = torch.tensor(blobs(7)), torch.randn(2, 1, 9, 11)
    band, valid = boundary_mask(mask, 1), mask != 255
    beta = (valid & ~band).sum() / valid.sum()
    weights = torch.where(band, beta, 1 - beta)[valid]
    scores, target = logits[:, 0][valid], band[valid].float()
    bce = torch.nn.functional.binary_cross_entropy_with_logits(scores, target, weights, reduction="sum") / weights.sum()
    p = torch.sigmoid(scores)
    dice = 1 - 2 * (p * target).sum() / (p.sum() + target.sum())
    assert boundary_head_loss(logits, mask, 1).item() == pytest.approx((bce + dice).item(), rel=1e-5)


LOSSES = {
    "band": (lambda x, m: cross_entropy(x, m, where=boundary_mask(m, 1)), 3),
    "head": (lambda x, m: boundary_head_loss(x, m, 1), 1),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("label", [0, 255])
def test_empty_band_is_zero_with_zero_gradient(name, label):
    loss, channels = LOSSES[name]
    logits = torch.randn(1, channels, 4, 4, requires_grad=True)
    value = loss(logits, torch.full((1, 4, 4), label))
    value.backward()
    assert value.item() == 0 and logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_band_everywhere_is_finite(name):
    loss, channels = LOSSES[name]
    assert torch.isfinite(loss(torch.randn(1, channels, 1, 2), torch.tensor([[[0, 1]]])))


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_and_ignored_pixels(name):
    loss, channels = LOSSES[name]
    mask = torch.tensor(blobs(8, (1, 4, 5), ignored=0.2))
    logits = torch.randn(1, channels, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss(x, mask), logits)
    loss(logits, mask).backward()
    assert logits.grad.any() and not logits.grad[(mask == 255)[:, None].expand_as(logits)].any()


@pytest.mark.parametrize("name", LOSSES)
def test_autocast(name):
    loss, channels = LOSSES[name]
    mask, logits = torch.tensor(blobs(9)), torch.randn(2, channels, 9, 11).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        result = loss(logits, mask)
    assert result.dtype == torch.float32 and result.item() == pytest.approx(loss(logits.float(), mask).item(), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_stay_finite(name):
    loss, channels = LOSSES[name]
    mask = torch.tensor(blobs(10))
    logits = (1e4 * torch.randn(2, channels, 9, 11)).requires_grad_()
    value = loss(logits, mask)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(logits.grad).all()


def test_boundary_head_wants_one_channel():
    with pytest.raises(LithesegError, match="1 output channel"):
        boundary_head_loss(torch.randn(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.int64))
