"""Metrics against torchmetrics, scipy and plain loops."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
from torchmetrics import JaccardIndex

from litheseg.errors import DataError, LithesegError
from litheseg.evaluation import SegmentationMetrics
from litheseg.evaluation.metrics import dilation_for


def maps(seed, shape=(2, 14, 17), classes=4, ignored=0.05):
    """Blocky labels, and a prediction that is the labels moved a little, with noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, size=(shape[0], shape[1] // 5 + 1, shape[2] // 5 + 1))
    mask = coarse.repeat(5, 1).repeat(5, 2)[:, : shape[1], : shape[2]].copy()
    prediction = np.roll(mask, (1, -1), (1, 2))
    noisy = rng.random(shape) < 0.05
    prediction[noisy] = rng.integers(0, classes, size=int(noisy.sum()))
    mask[rng.random(shape) < ignored] = 255
    return prediction, mask


def score(batches, classes=4, **options):
    metrics = SegmentationMetrics(classes, **options)
    for prediction, mask in batches:
        metrics.update(torch.as_tensor(prediction), torch.as_tensor(mask))
    return metrics.compute()


def counts_by_loops(prediction, mask, classes):
    confusion = np.zeros((classes, classes), np.int64)
    for p, m in zip(prediction.flat, mask.flat, strict=True):
        if m != 255:
            confusion[m, p] += 1
    return confusion


def mean_iou_by_sets(prediction, mask, where):
    values = []
    for k in set(mask[where].tolist()):
        p, m = (prediction == k) & where, (mask == k) & where
        values.append((p & m).sum() / (p | m).sum())
    return float(np.mean(values))


def test_miou_is_torchmetrics_jaccard():
    batches = [maps(seed) for seed in range(3)]
    jaccard = JaccardIndex(task="multiclass", num_classes=4, ignore_index=255, average="none")
    for prediction, mask in batches:
        jaccard.update(torch.tensor(prediction), torch.tensor(mask))
    scores = score(batches)
    assert scores.iou == pytest.approx(jaccard.compute().tolist(), rel=1e-6)
    assert scores.miou == pytest.approx(jaccard.compute().mean().item(), rel=1e-6)


def test_confusion_and_accuracy():
    prediction, mask = maps(3)
    scores, expected = score([(prediction, mask)]), counts_by_loops(prediction, mask, 4)
    assert (scores.confusion == expected).all() and scores.confusion.dtype == np.int64
    assert scores.pixel_accuracy == pytest.approx((prediction == mask)[mask != 255].mean())


def test_mean_is_over_classes_that_the_labels_hold():
    mask = np.array([[[0, 0, 1, 1]]])
    scores = score([(np.array([[[0, 2, 1, 1]]]), mask)])
    assert scores.iou[:2] == (0.5, 1.0) and math.isnan(scores.iou[2]) and math.isnan(scores.iou[3])
    assert scores.miou == 0.75


def test_batches_do_not_matter():
    batches = [maps(seed) for seed in range(4)]
    whole = [tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))]
    assert score(batches).to_dict() == score(whole).to_dict()


def distance_to_border(mask):
    """Chebyshev distance of each pixel to the nearest pixel with a differing, labelled 4-neighbour."""
    _, height, width = mask.shape
    result = np.full(mask.shape, np.inf)
    for n in range(len(mask)):
        edge = [
            (i, j)
            for i in range(height)
            for j in range(width)
            for a, b in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1))
            if 0 <= a < height and 0 <= b < width and 255 not in (mask[n, i, j], mask[n, a, b])
            if mask[n, i, j] != mask[n, a, b]
        ]
        for i, j in np.ndindex(height, width):
            result[n, i, j] = min((max(abs(i - a), abs(j - b)) for a, b in edge), default=np.inf)
    return result


@pytest.mark.parametrize("radius", [0, 1, 3])
def test_band_miou(radius):
    prediction, mask = maps(4)
    near = (distance_to_border(mask) <= radius) & (mask != 255)
    expected = mean_iou_by_sets(prediction, mask, near)
    assert score([(prediction, mask)], band_radius=radius).band_miou == pytest.approx(expected)


def boundary_iou_by_erosion(batches, classes, dilation):
    """Cheng et al. class by class: mask minus its erosion; ignored pixels erode nothing, the frame does."""
    ndimage = pytest.importorskip("scipy.ndimage")
    square = np.ones((3, 3), bool)
    both, either, held = np.zeros(classes), np.zeros(classes), np.zeros(classes, bool)
    for prediction, mask in batches:
        for p, m in zip(prediction, mask, strict=True):
            valid = m != 255
            for k in range(classes):
                inner = []
                for labels in (p, m):
                    own = (labels == k) & valid
                    eroded = ndimage.binary_erosion(own | ~valid, square, iterations=dilation, border_value=0)
                    inner.append(own & ~eroded)
                both[k] += (inner[0] & inner[1]).sum()
                either[k] += (inner[0] | inner[1]).sum()
                held[k] |= inner[1].any()
    return [both[k] / either[k] if held[k] else math.nan for k in range(classes)]


@pytest.mark.parametrize("dilation", [1, 2, 4, 30])
def test_boundary_iou(dilation):
    batches = [maps(seed, ignored=0.02) for seed in range(3)]
    expected = boundary_iou_by_erosion(batches, 5, dilation)  # the fifth class never occurs
    scores = score(batches, 5, boundary_dilation=dilation)
    assert scores.class_boundary_iou == pytest.approx(expected, nan_ok=True)
    assert scores.boundary_iou == pytest.approx(np.nanmean(expected))


def test_default_dilation_is_two_percent_of_the_diagonal():
    assert dilation_for(480, 640) == 16 and dilation_for(1, 1) == 1
    prediction, mask = maps(5, (1, 90, 120))
    default, three = score([(prediction, mask)]), score([(prediction, mask)], boundary_dilation=3)
    assert default.boundary_iou == three.boundary_iou


def test_boundary_iou_equals_miou_when_everything_is_boundary():
    prediction, mask = maps(6, ignored=0)
    scores = score([(prediction, mask)], boundary_dilation=40)
    assert scores.class_boundary_iou == pytest.approx(scores.iou)


def test_a_sharp_and_a_sloppy_map_differ_most_at_the_boundary():
    mask = np.zeros((1, 40, 40), np.int64)
    mask[:, :, 20:] = 1
    scores = score([(np.roll(mask, 1, 2), mask)], 2, boundary_dilation=2, band_radius=1)
    assert scores.miou > 0.9 and scores.boundary_iou < 0.9 and scores.band_miou < 0.7


def test_what_is_predicted_on_ignored_pixels_does_not_matter():
    prediction, mask = maps(7, ignored=0.2)
    other = np.where(mask == 255, 3 - prediction, prediction)
    assert score([(prediction, mask)]).to_dict() == score([(other, mask)]).to_dict()


def test_one_pixel():
    scores = score([(np.zeros((1, 1, 1), np.int64), np.zeros((1, 1, 1), np.int64))])
    assert scores.miou == scores.pixel_accuracy == scores.boundary_iou == 1.0
    assert math.isnan(scores.band_miou) and scores.to_dict()["band_miou"] is None


def test_all_ignored_is_nan_not_zero():
    scores = score([(np.zeros((1, 3, 3), np.int64), np.full((1, 3, 3), 255))])
    assert all(math.isnan(x) for x in (scores.miou, scores.pixel_accuracy, scores.boundary_iou, scores.band_miou))
    json.dumps(scores.to_dict(), allow_nan=False)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_integer_types(dtype):
    prediction, mask = maps(8)
    given = [(torch.tensor(prediction).to(dtype), torch.tensor(mask).to(dtype))]
    assert score(given).to_dict() == score([(prediction, mask)]).to_dict()


def test_many_classes_do_not_collide():
    prediction, mask = maps(9, classes=200)
    scores = score([(prediction, mask)], 254)
    assert (scores.confusion == counts_by_loops(prediction, mask, 254)).all()


def test_reset():
    metrics = SegmentationMetrics(4)
    metrics.update(*(torch.tensor(x) for x in maps(10)))
    metrics.reset()
    metrics.update(*(torch.tensor(x) for x in maps(11)))
    assert metrics.compute().to_dict() == score([maps(11)]).to_dict()


def test_bad_input():
    zeros = torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises(LithesegError, match="resize the logits"):
        SegmentationMetrics(2).update(zeros[:, :2], zeros)
    with pytest.raises(DataError, match=r"prediction holds classes 2 to 2.*0 to 1"):
        SegmentationMetrics(2).update(zeros + 2, zeros)
    with pytest.raises(DataError, match="mask holds classes 7"):
        SegmentationMetrics(2).update(zeros, zeros + 7)
    with pytest.raises(LithesegError, match="dilation"):
        SegmentationMetrics(2, boundary_dilation=0)


def _count_in_process(rank, folder):
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    scores = score([maps(20 + rank)] * (rank + 1))
    torch.save(scores.to_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_sums_are_exact_across_processes(tmp_path):
    method = "fork" if sys.platform == "linux" else "spawn"  # a fork saves importing torch twice
    torch.multiprocessing.start_processes(_count_in_process, (str(tmp_path),), nprocs=2, start_method=method)
    expected = score([maps(20), maps(21), maps(21)]).to_dict()
    assert torch.load(tmp_path / "0.pt") == torch.load(tmp_path / "1.pt") == expected
