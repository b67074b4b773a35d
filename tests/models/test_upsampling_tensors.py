"""Labels of tensors, by NumPy's memory and by PyTorch's operations, against interpolation of everything in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_upsampling import assert_right, logits_of_every_kind, plain

import litheseg.models.upsampling as room
from litheseg.errors import DataError, LithesegError
from litheseg.masks import upsampling as masks
from litheseg.models.upsampling import label_maps, upsample_labels


@pytest.fixture(params=["cpu", "other"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As on a CPU, and as on a device whose memory NumPy does not see."""
    if request.param == "other":
        monkeypatch.setattr(room, "_IN_NUMPY", ())
    return request.param


def test_any_size_and_number_of_classes(way: str) -> None:
    for logits, size in logits_of_every_kind(150):
        assert_right(upsample_labels(logits, size), logits, size)


def test_both_ways_agree_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [upsample_labels(logits.round(), size) for logits, size in logits_of_every_kind(60)]
    monkeypatch.setattr(room, "_IN_NUMPY", ())
    for one, (logits, size) in zip(found, logits_of_every_kind(60), strict=True):
        assert torch.equal(one, upsample_labels(logits.round(), size))


def test_the_first_of_equal_classes_wins(way: str) -> None:
    """Whole numbers and a scale of 2, whose weights are quarters: everything is exact in float32, ties included."""
    for seed in range(40):
        torch.manual_seed(seed)
        logits = torch.randint(0, 3, (1, 6, 7, 9)).float()
        for size in ((14, 18), (28, 36), (7, 18), (7, 9)):
            assert torch.equal(upsample_labels(logits, size), plain(logits, size).argmax(1).to(torch.uint8))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_spread_as_in_pytorch(way: str, value: float) -> None:
    for seed in range(30):
        torch.manual_seed(seed)
        logits = torch.randn(2, 1 + seed % 5, 6, 9)
        logits[torch.rand_like(logits) < 0.03] = value
        # PyTorch's coordinates are exact at these scales; at a third, pixels meet samples: a weight is 0.
        for size in ((12, 18), (6, 18), (24, 9), (2, 3), (2, 36), (3, 9)):
            expected = F.interpolate(logits, size, mode="bilinear", align_corners=False)
            assert torch.equal(upsample_labels(logits, size), expected.argmax(1).to(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_interpolated_in_float32(way: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 5, 9, 8).to(dtype)
    assert_right(upsample_labels(logits, (50, 41)), logits, (50, 41))


def test_any_strides(way: str) -> None:
    torch.manual_seed(0)
    large = torch.randn(3, 9, 20, 18)
    views = [large[::2, 1::2, 3:11, 2:15:3], large.transpose(2, 3), large[:1].expand(2, -1, -1, -1), large.flip(2)]
    for view in views:
        assert_right(upsample_labels(view, (37, 29)), view, (37, 29))


def test_one_image_without_n_and_none_at_all(way: str) -> None:
    logits = torch.randn(4, 6, 5)
    assert torch.equal(upsample_labels(logits, (17, 13)), upsample_labels(logits[None], (17, 13))[0])
    assert upsample_labels(torch.empty(0, 4, 6, 5), (17, 13)).shape == (0, 17, 13)


def test_gradients_and_inference_mode(way: str) -> None:
    logits = torch.randn(1, 4, 6, 5, requires_grad=True)
    with torch.inference_mode():
        inside = upsample_labels(logits * 1, (9, 9))
    assert torch.equal(upsample_labels(logits, (9, 9)), inside)


def test_a_tensor_on_a_cpu_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    work = masks.upsample_labels
    monkeypatch.setattr(masks, "upsample_labels", lambda array, *rest, **more: seen.append(array) or work(array, *rest))
    logits = torch.randn(1, 4, 6, 5, requires_grad=True)
    upsample_labels(logits, (9, 9))
    assert seen[0].ctypes.data == logits.data_ptr()


def test_bounded_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_IN_NUMPY", ())
    logits = torch.randn(2, 5, 6, 7).round()
    expected = upsample_labels(logits, (31, 45))
    for bound in (1, 5_000, 20_000):
        assert torch.equal(upsample_labels(logits, (31, 45), max_values=bound), expected)


def test_threads_are_those_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []
    monkeypatch.setattr(masks, "_share", lambda work, total, pixels, threads: asked.append(threads))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    upsample_labels(torch.randn(1, 2, 3, 4), (8, 8))
    upsample_labels(torch.randn(1, 2, 3, 4), (8, 8), threads=2)
    assert asked == [3, 2]


@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_confidence_is_the_largest_probability(way: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_MAX_VALUES", 1_000)
    logits = 3 * torch.randn(2, 5, 7, 6)
    for size in ((29, 40), (7, 6), (5, 3)):
        expected = plain(logits, size).softmax(1).amax(1)
        found = label_maps(logits, size, confidence=kind).confidence  # type: ignore[arg-type]
        assert found is not None and found.dtype == getattr(torch, kind)
        scale, tolerance = (255, 0.5 + 1e-3) if kind == "uint8" else (1, 1e-5)
        torch.testing.assert_close(found.double(), scale * expected, rtol=0, atol=tolerance)


def test_borders_are_pixels_whose_right_or_lower_neighbour_differs(way: str) -> None:
    torch.manual_seed(0)
    maps = label_maps(torch.randn(2, 4, 5, 6), (23, 31), borders=True)
    assert maps.confidence is None and maps.borders is not None and maps.borders.dtype == torch.bool
    for (n, y, x), border in np.ndenumerate(maps.borders.numpy()):
        own = maps.labels[n, y, x]
        assert border == (own != maps.labels[n, y, min(x + 1, 30)] or own != maps.labels[n, min(y + 1, 22), x])


def test_maps_of_one_image_have_no_n() -> None:
    maps = label_maps(torch.randn(4, 5, 6), (23, 31), confidence="uint8", borders=True)
    assert maps.confidence is not None and maps.borders is not None
    assert maps.labels.shape == maps.confidence.shape == maps.borders.shape == (23, 31)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: upsample_labels(torch.zeros(2, 3), (4, 4)), DataError, "give floating point"),
        (lambda: upsample_labels(torch.zeros(1, 2, 3, 3).int(), (4, 4)), DataError, "int32 of shape"),
        (lambda: upsample_labels(torch.zeros(1, 256, 3, 3), (4, 4)), DataError, "1 to 255 classes"),
        (lambda: upsample_labels(torch.zeros(1, 2, 0, 3), (4, 4)), DataError, "at least one sample"),
        (lambda: upsample_labels(torch.zeros(1, 2, 3, 3), (0, 4)), LithesegError, "size"),
        (lambda: upsample_labels(torch.zeros(1, 2, 3, 3), (4.0, 4)), LithesegError, "size"),  # type: ignore[arg-type]
        (lambda: label_maps(torch.zeros(1, 2, 3, 3), (4, 4), confidence="int8"), LithesegError, "choose 'float32'"),
    ],
)
def test_bad_input(act: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        act()
