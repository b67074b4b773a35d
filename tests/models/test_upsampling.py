"""Lazy upsampling against the plain way in float64: interpolate everything, then argmax."""

from __future__ import annotations

import importlib
import multiprocessing
import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import litheseg.models.upsampling as room
from litheseg.errors import DataError, LithesegError
from litheseg.models.upsampling import label_maps, upsample_labels, warm_up

EPS = torch.finfo(torch.float32).eps


@pytest.fixture(params=["kernel", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both implementations; the second as where Numba is missing."""
    if request.param == "torch":
        monkeypatch.setattr(room, "_kernel", lambda: None)
    else:
        assert warm_up()
    return request.param


def plain(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits.double(), size, mode="bilinear", align_corners=False)


def assert_same(labels: Tensor, logits: Tensor, size: tuple[int, int]) -> None:
    """Equal wherever the promise holds: 8 rounding steps of the largest magnitude."""
    full = plain(logits, size)
    assert labels.dtype == torch.uint8 and labels.shape == (len(logits), *size)
    wrong = labels != full.argmax(1)
    if logits.shape[1] > 1:
        first, second = full.topk(2, dim=1).values.unbind(1)
        # Of the whole image and not of the pixel's samples: looser only where magnitudes differ within an image.
        wrong &= first - second > 8 * EPS * logits.abs().max()
    assert not wrong.any()


def cases(count: int) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Random logits of every kind, each with a size."""
    for seed in range(count):
        draw = random.Random(seed)
        torch.manual_seed(seed)
        classes, samples = draw.choice([1, 2, 3, 5, 11, 19, 30]), (draw.randint(1, 12), draw.randint(1, 12))
        logits = torch.randn(draw.randint(1, 3), classes, *samples)
        # Constant images, patches of one class, magnitudes near both ends of float32.
        kind = seed % 5
        if kind == 0:
            logits = logits[:, :, :1, :1].expand_as(logits).clone()
        elif kind == 1:
            logits[:, draw.randrange(classes), : samples[0] // 2] += 10
        logits = logits * (1, 1, 1e-30, 1e37, 1)[kind]
        yield logits, (draw.randint(1, 40), draw.randint(1, 40))


def test_any_size_and_number_of_classes(way: str) -> None:
    for logits, size in cases(150):
        assert_same(upsample_labels(logits, size), logits, size)


@pytest.mark.parametrize(
    ("samples", "size"), [((45, 60), (360, 480)), ((23, 31), (181, 247)), ((40, 33), (13, 17)), ((64, 64), (32, 128))]
)
def test_sizes_of_segmentation(way: str, samples: tuple[int, int], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    logits = F.interpolate(torch.randn(2, 11, 6, 7), samples, mode="bicubic") + 0.05 * torch.randn(2, 11, *samples)
    for layout in (torch.contiguous_format, torch.channels_last):
        assert_same(upsample_labels(logits.contiguous(memory_format=layout), size), logits, size)


def test_both_ways_agree_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [upsample_labels(logits.round(), size) for logits, size in cases(60)]
    monkeypatch.setattr(room, "_kernel", lambda: None)
    for one, (logits, size) in zip(found, cases(60), strict=True):
        assert torch.equal(one, upsample_labels(logits.round(), size))


def test_the_first_of_equal_classes_wins(way: str) -> None:
    """Whole numbers and a scale of 2, whose weights are quarters: everything is exact in float32, ties included."""
    for seed in range(40):
        torch.manual_seed(seed)
        logits = torch.randint(0, 3, (1, 6, 7, 9)).float()
        for size in ((14, 18), (28, 36), (7, 18)):
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
    assert_same(upsample_labels(logits, (50, 41)), logits, (50, 41))


def test_any_strides(way: str) -> None:
    torch.manual_seed(0)
    large = torch.randn(3, 9, 20, 18)
    views = [large[::2, 1::2, 3:11, 2:15:3], large.transpose(2, 3), large[:1].expand(2, -1, -1, -1), large.flip(2)]
    for view in views:
        assert_same(upsample_labels(view, (37, 29)), view, (37, 29))


def test_arrays_give_arrays(way: str) -> None:
    array = np.random.default_rng(0).normal(size=(4, 6, 5)).astype(np.float32)
    frozen = array.copy()
    frozen.flags.writeable = False
    for given in (array, array[::-1], frozen, array.astype(">f4"), array.astype(np.float64), array[:, ::-1, ::2]):
        labels = upsample_labels(given, (17, 13))
        assert isinstance(labels, np.ndarray) and labels.shape == (17, 13) and labels.dtype == np.uint8
        tensor = torch.from_numpy(given.astype(np.float32))[None]
        assert_same(torch.from_numpy(labels)[None], tensor, (17, 13))


def test_one_image_without_n_and_none_at_all(way: str) -> None:
    logits = torch.randn(4, 6, 5)
    assert torch.equal(upsample_labels(logits, (17, 13)), upsample_labels(logits[None], (17, 13))[0])
    assert upsample_labels(torch.empty(0, 4, 6, 5), (17, 13)).shape == (0, 17, 13)


def test_gradients_and_inference_mode(way: str) -> None:
    logits = torch.randn(1, 4, 6, 5, requires_grad=True)
    with torch.inference_mode():
        inside = upsample_labels(logits * 1, (9, 9))
    assert torch.equal(upsample_labels(logits, (9, 9)), inside)


def test_bounded_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_kernel", lambda: None)
    logits = torch.randn(2, 5, 6, 7).round()
    expected = upsample_labels(logits, (31, 45))
    for bound in (1, 5_000, 20_000):
        assert torch.equal(upsample_labels(logits, (31, 45), max_values=bound), expected)


def test_threads_share_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_SHARE", 1)
    logits = torch.randn(3, 5, 11, 7)
    expected = upsample_labels(logits, (50, 41), threads=1)
    for threads in (2, 3, 50):
        assert torch.equal(upsample_labels(logits, (50, 41), threads=threads), expected)


def test_threads_are_those_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(room, "_share", lambda work, total, pixels, threads: asked.append(threads))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    upsample_labels(torch.randn(1, 2, 3, 4), (8, 8))
    upsample_labels(torch.randn(1, 2, 3, 4), (8, 8), threads=2)
    assert asked == [3, 2]


def test_many_callers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_SHARE", 1)
    inputs = [torch.randn(1, 5, 11, 7) for _ in range(8)]
    expected = [upsample_labels(logits, (80, 61), threads=1) for logits in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            found = list(pool.map(lambda logits: upsample_labels(logits, (80, 61), threads=2), inputs))
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_SHARE", 1)
    array = np.random.default_rng(0).normal(size=(3, 8, 9)).astype(np.float32)
    expected = upsample_labels(array, (40, 50), threads=2)  # the parent's threads exist
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(upsample_labels(array, (40, 50), threads=2)))
    child.start()
    child.join(30)
    assert child.exitcode == 0 and np.array_equal(queue.get(), expected)


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
    logits = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    maps = label_maps(logits, (23, 31), borders=True)
    assert maps.confidence is None and maps.borders is not None and maps.borders.dtype == np.bool_
    for (n, y, x), border in np.ndenumerate(maps.borders):
        own = maps.labels[n, y, x]
        assert border == (own != maps.labels[n, y, min(x + 1, 30)] or own != maps.labels[n, min(y + 1, 22), x])


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


def test_255_classes(way: str) -> None:
    logits = torch.randn(1, 255, 3, 4)
    assert_same(upsample_labels(logits, (19, 22)), logits, (19, 22))


def test_without_numba_pytorch_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "litheseg.models.upsampling_kernel", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr(room, "_kernel", cache(room._kernel.__wrapped__))
    with pytest.warns(UserWarning, match="Numba cannot be used"):
        assert not warm_up()
    assert upsample_labels(torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]]), (1, 4)).tolist() == [[1, 1, 0, 0]]


@pytest.mark.parametrize("error", [RuntimeError("cannot cache function: no locator available"), OSError(28, "full")])
def test_a_kernel_that_cannot_be_kept_is_compiled_all_the_same(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    kernel = importlib.import_module("litheseg.models.upsampling_kernel")

    def njit(signature: object, *, cache: bool = False, **options: object) -> Callable[[object], object]:
        if cache:
            raise error
        return lambda function: ("compiled", function)

    monkeypatch.setattr(kernel, "njit", njit)
    assert kernel._compiled() == ("compiled", kernel._fill_labels)
