"""Segmentation losses against float64 numpy loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from litheseg.errors import DataError, LithesegError
from litheseg.losses import class_weights, cross_entropy, dice_loss, lovasz_softmax, ohem_cross_entropy

LOSSES = [cross_entropy, ohem_cross_entropy, dice_loss, lovasz_softmax]


def scene(seed=0, n=2, k=4, h=5, w=6, ignored=0.25):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, k, h, w)) * 2
    mask = rng.integers(0, k - 1, size=(n, h, w))  # the last class never occurs
    mask[rng.random(mask.shape) < ignored] = 255
    return logits, mask


def softmax(x, axis=1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def pixels(logits, mask):
    """(probability of the own class, label) of each labelled pixel."""
    p = softmax(logits)
    return [(p[n, mask[n, i, j], i, j], mask[n, i, j]) for n, i, j in np.argwhere(mask != 255)]


def torched(logits, mask, dtype=torch.float32):
    return torch.tensor(logits, dtype=dtype), torch.tensor(mask)


def test_cross_entropy_is_the_mean_over_labelled_pixels():
    logits, mask = scene()
    expected = np.mean([-math.log(p) for p, _ in pixels(logits, mask)])
    assert cross_entropy(*torched(logits, mask)).item() == pytest.approx(expected, rel=1e-6)


def test_weighted_cross_entropy_is_a_weighted_mean():
    logits, mask = scene(1)
    weight = [0.5, 3.0, 1.5, 7.0]
    found = pixels(logits, mask)
    expected = sum(-weight[y] * math.log(p) for p, y in found) / sum(weight[y] for _, y in found)
    result = cross_entropy(*torched(logits, mask), torch.tensor(weight))
    assert result.item() == pytest.approx(expected, rel=1e-6)
    assert cross_entropy(*torched(logits, mask), torch.tensor(weight) * 9).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("threshold", "min_kept"), [(0.7, 1), (0.2, 1), (1e-6, 5), (1e-6, 7), (0.7, 10_000)])
def test_ohem_keeps_the_hard_pixels(threshold, min_kept):
    logits, mask = scene(2)
    weight = [0.5, 3.0, 1.5, 7.0]
    found = sorted(pixels(logits, mask))
    hard = [item for item in found if item[0] < threshold]
    kept = hard if len(hard) >= min_kept else found[:min_kept]
    expected = sum(-weight[y] * math.log(p) for p, y in kept) / sum(weight[y] for _, y in kept)
    result = ohem_cross_entropy(*torched(logits, mask), torch.tensor(weight), threshold, min_kept)
    assert result.item() == pytest.approx(expected, rel=1e-5)


def test_ohem_default_keeps_a_sixteenth():
    logits = torch.zeros(1, 2, 4, 8)
    logits[0, 0] = torch.linspace(5, 10, 32).view(4, 8)  # every pixel is easy
    mask = torch.zeros(1, 4, 8, dtype=torch.int64)
    expected = np.mean([math.log1p(math.exp(-x)) for x in np.linspace(5, 10, 32)[:2]])
    assert ohem_cross_entropy(logits, mask).item() == pytest.approx(expected, rel=1e-3)


def test_dice():
    logits, mask = scene(3)
    p = softmax(logits)
    losses = []
    for k in set(mask[mask != 255].tolist()):
        overlap = total = 0.0
        for n, i, j in np.argwhere(mask != 255):
            overlap += p[n, k, i, j] * (mask[n, i, j] == k)
            total += p[n, k, i, j] + (mask[n, i, j] == k)
        losses.append(1 - 2 * overlap / total)
    assert dice_loss(*torched(logits, mask)).item() == pytest.approx(np.mean(losses), rel=1e-6)


def lovasz_by_definition(errors, foreground):
    """Sum over sorted errors of m_i * (J(first i wrong) - J(first i - 1 wrong)), J from sets."""
    order = sorted(range(len(errors)), key=lambda i: -errors[i])
    truth = {i for i, f in enumerate(foreground) if f}

    def jaccard_loss(wrong):
        wrong = set(wrong)
        return len(wrong) / len(truth | wrong)

    steps = range(1, len(order) + 1)
    return sum(errors[order[i - 1]] * (jaccard_loss(order[:i]) - jaccard_loss(order[: i - 1])) for i in steps)


def test_lovasz():
    logits, mask = scene(4)
    p = softmax(logits).transpose(0, 2, 3, 1)[mask != 255]
    y = mask[mask != 255]
    losses = [lovasz_by_definition(np.abs((y == k) - p[:, k]), y == k) for k in set(y.tolist())]
    assert lovasz_softmax(*torched(logits, mask, torch.float64)).item() == pytest.approx(np.mean(losses), rel=1e-12)
    assert lovasz_softmax(*torched(logits, mask)).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_lovasz_of_hard_predictions_is_one_minus_mean_iou():
    mask = torch.tensor([[[0, 0, 1, 1, 255, 0]]])
    predicted = torch.tensor([[[0, 1, 1, 1, 0, 2]]])
    logits = 200.0 * torch.nn.functional.one_hot(predicted, 3).movedim(-1, 1)
    assert lovasz_softmax(logits, mask).item() == pytest.approx(1 - np.mean([1 / 3, 2 / 3]), abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_perfect_is_zero(loss):
    mask = torch.tensor([[[0, 1], [2, 255]]])
    logits = 100.0 * torch.nn.functional.one_hot(mask.where(mask < 3, 0), 3).movedim(-1, 1)
    assert loss(logits, mask).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_all_ignored_is_zero_with_zero_gradient(loss):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    value = loss(logits, torch.full((2, 4, 4), 255))
    value.backward()
    assert value.item() == 0 and logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient(loss):
    logits, mask = scene(5, n=1, h=3, w=3)
    logits, mask = torched(logits, mask, torch.float64)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, mask), logits)
    loss(logits, mask).backward()
    assert not logits.grad[(mask == 255)[:, None].expand_as(logits)].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_ignored_pixels_have_no_say(loss):
    logits, mask = torched(*scene(6))
    other = logits + 50 * torch.randn_like(logits) * (mask == 255)[:, None]
    assert loss(other, mask).item() == pytest.approx(loss(logits, mask).item(), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_class_permutation(loss):
    logits, mask = torched(*scene(7))
    order = torch.tensor([2, 0, 3, 1])  # new class k is old class order[k]
    renamed = mask.clone()
    for new, old in enumerate(order.tolist()):
        renamed[mask == old] = new
    assert loss(logits[:, order], renamed).item() == pytest.approx(loss(logits, mask).item(), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_and_half_precision(loss):
    logits, mask = torched(*scene(8))
    coarse = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        result = loss(coarse, mask)
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(loss(coarse.float(), mask).item(), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_logits_stay_finite(loss):
    logits = torch.tensor([1e4, -1e4, 0.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2).clone().requires_grad_()
    value = loss(logits, torch.tensor([[[0, 1], [2, 255]]]))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_one_pixel(loss):
    assert torch.isfinite(loss(torch.randn(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.int64)))


@pytest.mark.parametrize("loss", LOSSES)
def test_sizes_must_fit(loss):
    with pytest.raises(LithesegError, match="upsample"):
        loss(torch.randn(1, 2, 3, 3), torch.zeros(1, 6, 6, dtype=torch.int64))


def test_uint8_masks_give_the_same_weighted_mean():
    logits, mask = torched(*scene(9))
    weight = torch.tensor([0.5, 3.0, 1.5, 7.0])
    assert cross_entropy(logits, mask.byte(), weight).item() == pytest.approx(
        cross_entropy(logits, mask, weight).item()
    )


def test_lovasz_steps_stay_exact_on_many_pixels():
    count = 400_000  # the subtraction of neighbouring Jaccard values would be all noise here
    probability = torch.linspace(0, 1, count).view(1, 1, 1, -1)
    logits = torch.cat([probability, torch.zeros_like(probability)], 1) * 4
    mask = (torch.arange(count) % 3 == 0).long().view(1, 1, -1)
    exact = lovasz_softmax(logits.double(), mask).item()
    assert lovasz_softmax(logits, mask).item() == pytest.approx(exact, rel=1e-5)


def test_log_weights():
    weights = class_weights(np.array([900, 100, 0]), "log")
    expected = [1 / math.log(1.1 + p) for p in (0.9, 0.1, 0.0)]
    assert weights.dtype == torch.float32 and weights.tolist() == pytest.approx(expected, rel=1e-6)


def test_median_weights():
    weights = class_weights(np.array([600, 300, 100, 0], dtype=np.int64), "median")
    assert weights.tolist() == pytest.approx([0.5, 1.0, 3.0, 1.0])


@pytest.mark.parametrize("mode", ["log", "median"])
def test_empty_histogram_gives_equal_finite_weights(mode):
    weights = class_weights([0, 0], mode)
    assert torch.isfinite(weights).all() and weights[0] == weights[1]


def test_no_weights():
    assert class_weights([1, 2], "none") is None


def test_bad_weights():
    with pytest.raises(DataError):
        class_weights([1, -2], "log")
    with pytest.raises(LithesegError, match="one weight per class"):
        cross_entropy(torch.randn(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64), torch.ones(2))
