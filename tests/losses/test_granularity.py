"""Image- and region-level distillation against float64 loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from litheseg.errors import LithesegError
from litheseg.losses import image_level, region_level


def logits(seed, shape=(3, 4, 5, 6)):
    rng = np.random.default_rng(seed)
    weights = (rng.random((shape[0], *shape[2:])) < 0.6).astype(float)
    weights[1] = 0  # an image that is all padding
    return rng.normal(size=shape) * 2, rng.normal(size=shape) * 2, weights


def features(seed, student=(2, 3, 6, 8), teacher=(2, 5, 9, 12), inside=(18, 24)):
    rng = np.random.default_rng(seed)
    mask = np.zeros((student[0], *inside), bool)
    mask[0, : inside[0] // 2, 1:] = True
    mask[-1, :, : inside[1] // 2 - 1] = True
    return rng.normal(size=student), rng.normal(size=teacher), mask


def image_oracle(student, teacher, weights):
    values = []
    for ours, theirs, w in zip(student, teacher, weights, strict=True):
        if w.sum():
            means = [[(w * channel).sum() / w.sum() for channel in one] for one in (ours, theirs)]
            values.append(sum(abs(a - b) for a, b in zip(*means, strict=True)))
    return np.mean(values)


def cells(size, parts):
    return [slice(i * size // parts, -(-(i + 1) * size // parts)) for i in range(parts)]


def pooled(image, grid):
    """The means of C h w over the cells of a grid: C grid grid."""
    rows, columns = cells(image.shape[1], grid[0]), cells(image.shape[2], grid[1])
    return np.array([[image[:, r, c].mean((1, 2)) for c in columns] for r in rows]).transpose(2, 0, 1)


def cosine(a, b):
    lengths = np.sqrt((a * a).sum() * (b * b).sum())
    return (a * b).sum() / lengths if lengths > 0 else 0.0


def region_oracle(student, teacher, grid, inside=None):
    values = []
    for n in range(len(student)):
        vectors, counted = [], np.ones(grid * grid, bool)
        for image in (student[n], teacher[n]):
            share = np.ones((1, *image.shape[1:])) if inside is None else pooled(inside[n][None] * 1.0, image.shape[1:])
            covered = pooled(share, (grid, grid))
            counted &= covered.ravel() > 0
            sums = pooled(image * share, (grid, grid)) / np.where(covered > 0, covered, 1)
            vectors.append(sums.reshape(len(image), -1).T)
        chosen = np.flatnonzero(counted)
        gaps = [
            cosine(vectors[0][i], vectors[0][j]) - cosine(vectors[1][i], vectors[1][j]) for i in chosen for j in chosen
        ]
        if gaps:
            values.append(np.mean(np.square(gaps)))
    return np.mean(values)


def torched(*arrays, dtype=torch.float64):
    return [torch.tensor(a, dtype=torch.bool if a.dtype == bool else dtype) for a in arrays]


def test_image_level():
    student, teacher, weights = logits(0)
    s, t, w = torched(student, teacher, weights)
    assert image_level(s, t).item() == pytest.approx(image_oracle(student, teacher, np.ones_like(weights)))
    assert image_level(s, t, w).item() == pytest.approx(image_oracle(student, teacher, weights))
    assert image_level(s, t, w.bool()).item() == pytest.approx(image_oracle(student, teacher, weights))
    rng = np.random.default_rng(1)
    graded = weights * rng.random(weights.shape)
    assert image_level(s, t, torch.tensor(graded)).item() == pytest.approx(image_oracle(student, teacher, graded))


def test_image_level_by_hand():
    """Means of 2 and 0 against 1 and 5 give |2 - 1| + |0 - 5| = 6; the second image is equal: 3 for both."""
    student = torch.tensor([[[[1.0, 3.0]], [[-1.0, 1.0]]], [[[0.0, 0.0]], [[0.0, 0.0]]]])
    teacher = torch.tensor([[[[1.0, 1.0]], [[5.0, 5.0]]], [[[1.0, -1.0]], [[2.0, -2.0]]]])
    assert image_level(student, teacher).item() == 3.0


@pytest.mark.parametrize("grid", [1, 2, 3, 4, 7])
def test_region_level(grid):
    student, teacher, inside = features(grid)
    s, t, i = torched(student, teacher, inside)
    assert region_level(s, t, grid).item() == pytest.approx(region_oracle(student, teacher, grid), abs=1e-14)
    expected = region_oracle(student, teacher, grid, inside)
    assert region_level(s, t, grid, i).item() == pytest.approx(expected, abs=1e-14)


def test_the_default_grid_is_the_papers_and_copes_with_small_maps():
    student, teacher, _ = features(8, (2, 3, 2, 3), (2, 4, 20, 30))
    s, t = torched(student, teacher)
    assert region_level(s, t).item() == pytest.approx(region_oracle(student, teacher, 7))


def test_a_cell_that_only_one_of_the_networks_sees_is_left_out():
    """A quarter across, the student's cell 1 of 3 has begun (2 of 8 columns), the teacher's (3 of 9) has not."""
    student, teacher, inside = features(9)
    teacher, inside = teacher[..., :9], np.zeros((2, 18, 72), bool)
    inside[:, :, 18:24] = True
    s, t, i = torched(student, teacher, inside)
    expected = region_oracle(student, teacher, 3, inside)
    assert region_level(s, t, 3, i).item() == pytest.approx(expected)


def region(student, teacher, inside):
    return region_level(student, teacher, 3, inside)


def padded(loss, seed):
    return logits(seed) if loss is image_level else features(seed)


LOSSES = [image_level, region]


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient(loss):
    s, t, inside = torched(*padded(loss, 10))
    s.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, t, inside), s)
    assert torch.autograd.gradcheck(lambda x: loss(x, t, None), s)


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_is_left_out(loss):
    s, t, inside = torched(*padded(loss, 11))
    inside[:, -6:] = False  # whole positions of both maps, on which no other position's value can depend
    if loss is image_level:
        inside[0, 0] = inside[2, 0] = True
    share = [torch.nn.functional.adaptive_avg_pool2d(inside[:, None].double(), x.shape[2:]) > 0 for x in (s, t)]
    expected = loss(s, t, inside)
    other = [torch.where(keep, x, 1e3 * torch.randn_like(x)) for x, keep in zip((s, t), share, strict=True)]
    torch.testing.assert_close(loss(*other, inside), expected)
    s.requires_grad_()
    loss(s, t, inside).backward()
    assert s.grad.any() and not s.grad[~share[0].expand_as(s)].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_an_image_without_a_pixel_is_left_out(loss):
    s, t, inside = torched(*padded(loss, 12))
    inside[:] = True
    inside[1] = False
    kept = [0, *range(2, len(s))]
    torch.testing.assert_close(loss(s, t, inside), loss(s[kept], t[kept], None))


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_inside_is_zero_with_zero_gradient(loss):
    s, t, inside = torched(*padded(loss, 13))
    s.requires_grad_()
    value = loss(s, t, torch.zeros_like(inside))
    value.backward()
    assert value.item() == 0 and s.grad is not None and not s.grad.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_everything_inside_is_no_mask(loss):
    s, t, inside = torched(*padded(loss, 14))
    torch.testing.assert_close(loss(s, t, torch.ones_like(inside)), loss(s, t, None))


@pytest.mark.parametrize("loss", LOSSES)
def test_identical_gives_zero(loss):
    s, _, inside = torched(*padded(loss, 15))
    s.requires_grad_()
    value = loss(s, s.detach(), inside)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12) and s.grad.abs().max() < 1e-12


@pytest.mark.parametrize("loss", LOSSES)
def test_teacher_gets_no_gradient(loss):
    s, t, inside = (x.requires_grad_(x.is_floating_point()) for x in torched(*padded(loss, 16)))
    inside = inside.detach()
    loss(s, t, inside).backward()
    assert s.grad.any() and t.grad is None


def test_scale_of_features_does_not_matter():
    s, t, inside = torched(*features(17))
    torch.testing.assert_close(region_level(50 * s, t / 20, 3, inside), region_level(s, t, 3, inside))


def test_vectors_of_length_zero():
    """Cell (0, 0) is zero for the student, and all of the second image for the teacher."""
    student, teacher, _ = features(18)
    student[0, :, :2, :3] = 0
    teacher[1] = 0
    s, t = torched(student, teacher)
    s.requires_grad_()
    value = region_level(s, t, 3)
    value.backward()
    assert value.item() == pytest.approx(region_oracle(student, teacher, 3))
    assert torch.isfinite(s.grad).all() and s.grad.abs().max() < 10 and not s.grad[0, :, 0, 0].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_low_precision_is_computed_in_float32(loss):
    s, t, inside = torched(*padded(loss, 19), dtype=torch.float32)
    s, t = s.bfloat16(), t.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(s.requires_grad_(), t, inside)
    value.backward()
    assert value.dtype == torch.float32 and torch.isfinite(s.grad).all()
    assert value.item() == pytest.approx(loss(s.double(), t.double(), inside).item(), rel=1e-5)


def test_bad_input():
    s, t, w = torched(*logits(20))
    with pytest.raises(LithesegError, match="same classes"):
        image_level(s, t[:, :3])
    with pytest.raises(LithesegError, match="do not fit"):
        image_level(s, t, w[:, :2])
    s, t, inside = torched(*features(20))
    with pytest.raises(LithesegError, match="the same images"):
        region_level(s, t[:1])
    with pytest.raises(LithesegError, match="the same images"):
        region_level(s[0], t)
    with pytest.raises(LithesegError, match=r"mask .* does not fit"):
        region_level(s, t, 7, inside[:1])
