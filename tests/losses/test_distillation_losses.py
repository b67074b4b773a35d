"""Distillation losses against float64 loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from litheseg.errors import LithesegError
from litheseg.losses import channel_wise_distillation, kl_divergence
from litheseg.losses.distillation import pixel_divergence


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def pair(seed, shape=(2, 4, 3, 5)):
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, shape[1], size=(shape[0], *shape[2:]))
    mask[rng.random(mask.shape) < 0.3] = 255
    return rng.normal(size=shape) * 2, rng.normal(size=shape) * 2, mask


def kl(p, q):
    return float(np.sum(p * np.log(p / q)))


def torched(*arrays):
    return [torch.tensor(a, dtype=torch.int64 if a.dtype.kind == "i" else torch.float32) for a in arrays]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kl(temperature):
    student, teacher, mask = pair(0)
    values = [
        kl(softmax(teacher[n, :, i, j] / temperature), softmax(student[n, :, i, j] / temperature))
        for n, i, j in np.ndindex(mask.shape)
    ]
    labelled = np.array(values)[mask.flatten() != 255]
    s, t, m = torched(student, teacher, mask)
    assert kl_divergence(s, t, m, temperature).item() == pytest.approx(temperature**2 * labelled.mean(), rel=1e-5)
    assert kl_divergence(s, t, None, temperature).item() == pytest.approx(temperature**2 * np.mean(values), rel=1e-5)


def test_kl_does_not_grow_with_area():
    s, t, m = torched(*pair(1))
    tiled = [x.repeat(*(1,) * (x.ndim - 2), 3, 2) for x in (s, t, m)]
    assert kl_divergence(*tiled).item() == pytest.approx(kl_divergence(s, t, m).item(), rel=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_channel_wise(masked, temperature):
    student, teacher, mask = pair(2)
    values = []
    for n, c in np.ndindex(student.shape[:2]):
        chosen = mask[n] != 255 if masked else np.ones_like(mask[n], bool)
        values.append(kl(*(softmax(x[n, c][chosen] / temperature) for x in (teacher, student))))
    s, t, m = torched(student, teacher, mask)
    result = channel_wise_distillation(s, t, temperature, m if masked else None)
    assert result.item() == pytest.approx(temperature**2 * np.mean(values), rel=1e-5)


def test_channel_wise_leaves_out_images_without_labels():
    s, t, m = torched(*pair(3))
    alone = channel_wise_distillation(s[:1], t[:1], mask=m[:1]).item()
    m[1] = 255
    assert channel_wise_distillation(s, t, mask=m).item() == pytest.approx(alone, rel=1e-6)


def masked_cwd(student, teacher, mask):
    return channel_wise_distillation(student, teacher, mask=mask)


LOSSES = [kl_divergence, masked_cwd]


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_logits_give_zero(loss):
    s, _, m = torched(*pair(4))
    assert loss(s, s + 3.0, m).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_teacher_gets_no_gradient(loss):
    s, t, m = torched(*pair(5))
    s.requires_grad_()
    t.requires_grad_()
    loss(s, t, m).backward()
    assert s.grad.any() and t.grad is None


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_and_ignored_pixels(loss):
    student, teacher, mask = (torch.tensor(a) for a in pair(6, (1, 3, 2, 4)))
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, mask), student)
    loss(student, teacher, mask).backward()
    assert not student.grad[(mask == 255)[:, None].expand_as(student)].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_all_ignored_is_zero_with_zero_gradient(loss):
    s, t, m = torched(*pair(7))
    s.requires_grad_()
    value = loss(s, t, torch.full_like(m, 255))
    value.backward()
    assert value.item() == 0 and s.grad is not None and not s.grad.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast(loss):
    s, t, m = torched(*pair(8))
    s, t = s.bfloat16(), t.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        result = loss(s, t, m)
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(loss(s.float(), t.float(), m).item(), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_logits_stay_finite(loss):
    s, t, m = torched(*pair(9))
    s = (s * 1e4).requires_grad_()
    value = loss(s, t * 1e4, m)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(s.grad).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_bad_input(loss):
    s, t, m = torched(*pair(10))
    with pytest.raises(LithesegError, match="same classes"):
        loss(s, t[:, :3], m)
    with pytest.raises(LithesegError, match="upsample"):
        loss(s, t, m[:, :2])
    with pytest.raises(LithesegError, match="temperature"):
        kl_divergence(s, t, m, 0.0)


def test_the_lean_divergence_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(2, 5, 4, 6, generator=generator).log_softmax(1).requires_grad_()
    theirs = torch.randn(2, 5, 4, 6, generator=generator).log_softmax(1).requires_grad_()
    weights = torch.rand(2, 4, 6, generator=generator)
    expected = F.kl_div(ours, theirs.detach(), reduction="none", log_target=True).sum(1)
    torch.testing.assert_close(pixel_divergence(ours, theirs), expected)
    [gradient] = torch.autograd.grad((pixel_divergence(ours, theirs) * weights).sum(), ours)
    torch.testing.assert_close(gradient, torch.autograd.grad((expected * weights).sum(), ours)[0])
    (pixel_divergence(ours, theirs) * weights).sum().backward()
    assert theirs.grad is None
