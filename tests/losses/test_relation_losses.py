"""Relational distillation against float64 loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from litheseg.errors import LithesegError
from litheseg.losses import intra_class_variation, pairwise_similarity, region_level

CLASSES = 4


def scene(seed, student=(2, 3, 6, 8), teacher=(2, 5, 6, 8), mask=(12, 16)):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES - 1, size=(student[0], *mask))  # the last class never occurs
    labels[rng.random(labels.shape) < 0.3] = 255
    labels[0, : mask[0] // 2] = 255  # and half an image is padding
    return rng.normal(size=student), rng.normal(size=teacher), labels


def torched(*arrays, dtype=torch.float64):
    return [torch.tensor(a, dtype=torch.int64 if a.dtype.kind == "i" else dtype) for a in arrays]


def cosine(a, b):
    lengths = np.sqrt((a * a).sum() * (b * b).sum())
    return (a * b).sum() / lengths if lengths > 0 else 0.0


def pairwise_oracle(student, teacher, nodes, pool, inside):
    values = []
    for n in range(len(student)):
        gaps, found = [], []
        for image in (student[n], teacher[n]):
            height, width = image.shape[1:]
            counts = np.zeros((height, width), bool)  # a position counts where its part of the mask has a pixel inside
            for i, j in np.ndindex(height, width):
                counts[i, j] = inside[n, part(inside.shape[1], height, i), part(inside.shape[2], width, j)].any()
            patches = [np.s_[part(height, nodes, i), part(width, nodes, j)] for i, j in np.ndindex(nodes, nodes)]
            found.append([counts[patch].any() for patch in patches])
            vectors = [pool(image[:, *p][:, counts[p]]) if counts[p].any() else np.zeros(len(image)) for p in patches]
            gaps.append(np.array([[cosine(a, b) for a in vectors] for b in vectors]))
        both = np.all(found, 0)
        if both.any():
            values.append(np.mean(np.square(gaps[0] - gaps[1])[np.ix_(both, both)]))
    return np.mean(values)


def part(size, parts, i):
    return slice(i * size // parts, -(-(i + 1) * size // parts))


def intra_oracle(student, teacher, mask):
    """Student and teacher of one size here; `mask` of any."""
    squares, (height, width) = [], student.shape[2:]
    rows, columns = ((np.arange(a) + 0.5) * b // a for a, b in zip((height, width), mask.shape[1:], strict=True))
    for n in range(len(student)):
        labels = mask[n][np.ix_(rows.astype(int), columns.astype(int))]
        for i, j in zip(*np.nonzero(labels != 255), strict=True):
            region = labels == labels[i, j]
            ours, theirs = (cosine(x[n][:, i, j], x[n][:, region].mean(1)) for x in (student, teacher))
            squares.append((ours - theirs) ** 2)
    return np.mean(squares)


def resized(image, size):
    """N C h w at another size by a triangle filter as wide as the step: bilinear, antialiased where it shrinks."""
    for axis, length in zip((2, 3), size, strict=True):
        step = image.shape[axis] / length
        centres = (np.arange(length)[:, None] + 0.5) * step
        weights = np.maximum(0, 1 - abs(np.arange(image.shape[axis]) + 0.5 - centres) / max(step, 1))
        weights /= weights.sum(1, keepdims=True)
        image = np.moveaxis(np.moveaxis(image, axis, -1) @ weights.T, -1, axis)
    return image


@pytest.mark.parametrize("teacher", [(2, 5, 6, 8), (2, 5, 12, 16), (2, 2, 3, 4)])
@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_pairwise_by_the_maximum(nodes, teacher):
    student, teacher, mask = scene(nodes, teacher=teacher)
    everywhere = np.ones(mask.shape, bool)
    s, t, m = torched(student, teacher, mask)
    expected = pairwise_oracle(student, teacher, nodes, lambda x: x.max(1), everywhere)
    assert pairwise_similarity(s, t, nodes).item() == pytest.approx(expected, abs=1e-14)
    expected = pairwise_oracle(student, teacher, nodes, lambda x: x.max(1), mask != 255)
    assert pairwise_similarity(s, t, nodes, m != 255).item() == pytest.approx(expected, abs=1e-14)


def test_pairwise_default_is_the_maximum_over_quarters():
    student, teacher, mask = scene(5)
    s, t = torched(student, teacher)
    expected = pairwise_oracle(student, teacher, 2, lambda x: x.max(1), mask < 999)
    assert pairwise_similarity(s, t).item() == pytest.approx(expected)


def test_pairwise_by_the_average_is_the_region_level():
    student, teacher, mask = scene(6)
    s, t, m = torched(student, teacher, mask)
    expected = pairwise_oracle(student, teacher, 4, lambda x: x.mean(1), mask < 999)
    assert pairwise_similarity(s, t, 4, pooling="average").item() == pytest.approx(expected)
    inside = m != 255
    assert pairwise_similarity(s, t, 4, inside, pooling="average") == region_level(s, t, 4, inside)


def test_intra_class():
    student, teacher, mask = scene(7)
    s, t, m = torched(student, teacher, mask)
    assert intra_class_variation(s, t, m, CLASSES).item() == pytest.approx(intra_oracle(student, teacher, mask))


@pytest.mark.parametrize("size", [(3, 4), (12, 16), (5, 9)])
def test_intra_class_with_a_teacher_of_another_size(size):
    student, teacher, mask = scene(8, teacher=(2, 5, *size))
    s, t, m = torched(student, teacher, mask)
    expected = intra_oracle(student, resized(teacher, (6, 8)), mask)
    assert intra_class_variation(s, t, m, CLASSES).item() == pytest.approx(expected)


def test_intra_class_by_hand():
    """One class, two pixels: student vectors (1, 0) and (0, 1) are at 45 degrees to their mean, the teacher's at 0."""
    student = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    teacher = torch.tensor([[[[2.0, 3.0]]]])
    value = intra_class_variation(student, teacher, torch.zeros(1, 1, 2, dtype=torch.int64), 1)
    assert value.item() == pytest.approx((1 - 0.5**0.5) ** 2)


def test_labels_beyond_the_classes_are_ignored():
    s, t, m = torched(*scene(9))
    expected = intra_class_variation(s, t, torch.where(m == 2, 255, m), CLASSES)
    torch.testing.assert_close(intra_class_variation(s, t, m, 2), expected)


def pairwise(student, teacher, mask):
    return pairwise_similarity(student, teacher, 3, mask != 255)


def intra(student, teacher, mask):
    return intra_class_variation(student, teacher, mask, CLASSES)


LOSSES = [pairwise, intra]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("teacher", [(2, 5, 6, 8), (2, 5, 3, 4)])
def test_gradient(loss, teacher):
    s, t, m = torched(*scene(10, teacher=teacher))
    assert torch.autograd.gradcheck(lambda x: loss(x, t, m), s.requires_grad_())


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_is_left_out(loss):
    s, t, m = torched(*scene(11))
    m[:, :, :6] = 255
    s.requires_grad_()
    value = loss(s, t, m)
    value.backward()
    assert s.grad.any() and not s.grad[:, :, :, :3].any()
    other = [torch.cat((1e3 + x[..., :3], x[..., 3:]), 3) for x in (s.detach(), t)]
    torch.testing.assert_close(loss(*other, m), value.detach())


@pytest.mark.parametrize("loss", LOSSES)
def test_an_image_without_a_pixel_is_left_out(loss):
    s, t, m = torched(*scene(12))
    m[1] = 255
    torch.testing.assert_close(loss(s, t, m), loss(s[:1], t[:1], m[:1]))


@pytest.mark.parametrize("loss", LOSSES)
def test_all_ignored_is_zero_with_zero_gradient(loss):
    s, t, m = torched(*scene(13))
    value = loss(s.requires_grad_(), t, torch.full_like(m, 255))
    value.backward()
    assert value.item() == 0 and s.grad is not None and not s.grad.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_identical_gives_zero(loss):
    s, _, m = torched(*scene(14))
    value = loss(s.requires_grad_(), s.detach().clone(), m)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12) and s.grad.abs().max() < 1e-12


@pytest.mark.parametrize("loss", LOSSES)
def test_teacher_gets_no_gradient(loss):
    s, t, m = torched(*scene(15))
    loss(s.requires_grad_(), t.requires_grad_(), m).backward()
    assert s.grad.any() and t.grad is None


@pytest.mark.parametrize("loss", LOSSES)
def test_scale_of_features_does_not_matter(loss):
    s, t, m = torched(*scene(16))
    torch.testing.assert_close(loss(50 * s, t / 20, m), loss(s, t, m))


@pytest.mark.parametrize("loss", LOSSES)
def test_vectors_of_length_zero(loss):
    student, teacher, mask = scene(17)
    student[0, :, :2], student[1], teacher[:, :, 4:] = 0, 0, 0
    s, t, m = torched(student, teacher, mask)
    value = loss(s.requires_grad_(), t, m)
    value.backward()
    oracle = {
        pairwise: lambda: pairwise_oracle(student, teacher, 3, lambda x: x.max(1), mask != 255),
        intra: lambda: intra_oracle(student, teacher, mask),
    }
    assert value.item() == pytest.approx(oracle[loss]())
    assert torch.isfinite(s.grad).all() and s.grad.abs().max() < 10 and not s.grad[1].any()


def test_a_prototype_of_length_zero():
    """Opposite features cancel: no direction to be near to, and no gradient that explodes."""
    student = torch.tensor([[[[1.0, -1.0]], [[2.0, -2.0]]]], requires_grad=True)
    teacher = torch.ones(1, 1, 1, 2)
    value = intra_class_variation(student, teacher, torch.zeros(1, 1, 2, dtype=torch.int64), 1)
    value.backward()
    assert value.item() == 1.0 and not student.grad.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_low_precision_is_computed_in_float32(loss):
    s, t, m = torched(*scene(18), dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(s.requires_grad_(), t, m)
    value.backward()
    assert value.dtype == torch.float32 and torch.isfinite(s.grad).all()
    assert value.item() == pytest.approx(loss(s.double(), t.double(), m).item(), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_bad_input(loss):
    s, t, m = torched(*scene(19))
    with pytest.raises(LithesegError, match="the same images"):
        loss(s, t[:1], m)
    with pytest.raises(LithesegError, match="the same images"):
        loss(s, t[0], m)
    with pytest.raises(LithesegError, match=r"mask .* does not fit"):
        loss(s, t, m[:1])
    with pytest.raises(LithesegError, match=r"mask .* does not fit"):
        loss(s, t, m[:, None])
