"""Resizing: PyTorch's bits from either implementation, whatever the sizes and strides; labels under pixel centres."""

from __future__ import annotations

import importlib
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from litheseg.errors import DataError
from litheseg.masks import resizing
from litheseg.masks.resizing import resize_image, resize_mask

Resize = Callable[[np.ndarray, tuple[int, int]], np.ndarray]


@pytest.fixture(params=["compiled", "arrays"])
def resize(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Resize:
    """`resize_image` with one of its two implementations."""
    if request.param == "arrays":
        monkeypatch.setattr(resizing, "_kernel", lambda: resizing._resize)
    else:
        compiled()
    return resize_image


def compiled() -> Callable[..., None]:
    return pytest.importorskip("litheseg.masks._resizing", reason="there was no compiler").resize


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def by_torch(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    pixels = torch.from_numpy(np.array(image.transpose(2, 0, 1)))[None]
    return F.interpolate(pixels, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def expected(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """PyTorch's result; for one column in two steps, because PyTorch refuses 1 x 1, and without AVX2 is wrong."""
    if size[1] > 1:
        return by_torch(image, size)
    twice = np.concatenate([image] * 2, 0).transpose(1, 0, 2) if len(image) == 1 else image.transpose(1, 0, 2)
    column = by_torch(twice, (size[1], twice.shape[1]))[:, : len(image)].transpose(1, 0, 2)
    return by_torch(np.concatenate([column] * 2, 1), (size[0], 2))[:, :1]


def random_size(rng: np.random.Generator) -> tuple[int, int]:
    """Often tiny, sometimes long."""
    limits = rng.choice([3, 20, 90, 400], 2, p=[0.2, 0.4, 0.3, 0.1])
    return int(rng.integers(1, limits[0] + 1)), int(rng.integers(1, limits[1] + 1))


@pytest.mark.parametrize("seed", range(8))
def test_every_bit_is_pytorchs(resize: Resize, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(25):
        old, new = random_size(rng), random_size(rng)
        kept = int(rng.integers(4))  # now and then one axis keeps its size
        new = (old[0] if kept == 0 else new[0], old[1] if kept == 1 else new[1])
        image = rng.integers(0, 256, (*old, 3), dtype=np.uint8) if seed % 4 else rng.choice([0, 255], (*old, 3))
        result = resize(image.astype(np.uint8), new)
        np.testing.assert_array_equal(result, expected(image.astype(np.uint8), new), err_msg=f"{old} to {new}")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((72, 96), (36, 48)),
        ((1080, 4), (512, 4)),
        ((3, 1920), (3, 1024)),
        ((300, 400), (36, 48)),  # 17 pixels under a triangle
        ((5000, 2), (1, 2)),
        ((2, 5000), (3, 1)),
        ((1, 1), (7, 1000)),
        ((2, 3), (3000, 2)),
        ((1, 9), (1, 1)),
        ((9, 1), (1, 1)),
        ((33, 17), (1, 1)),
        ((16, 5), (16, 6)),
        ((1, 6), (1, 5)),
    ],
)
def test_usual_and_extreme_sizes(resize: Resize, old: tuple[int, int], new: tuple[int, int]) -> None:
    image = noise(*old, 3)
    result = resize(image, new)
    np.testing.assert_array_equal(result, expected(image, new))
    assert result.dtype == np.uint8 and result.flags.c_contiguous and result.flags.writeable


@pytest.mark.parametrize("new", [(1, 2), (5, 7), (40, 30), (16, 30), (5, 20)])
@pytest.mark.parametrize("value", [0, 1, 254, 255])
def test_a_flat_image_stays_flat(resize: Resize, new: tuple[int, int], value: int) -> None:
    assert (resize(np.full((16, 20, 3), value, np.uint8), new) == value).all()


def test_stripes_become_grey(resize: Resize) -> None:
    stripes = np.broadcast_to((np.arange(64) % 2 * 255).astype(np.uint8)[:, None], (64, 64, 3))
    assert np.abs(resize(stripes, (16, 16)) - 127.5).max() < 30


VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "upside down": lambda image: image[::-1],
    "mirrored": lambda image: image[:, ::-1],
    "BGR": lambda image: image[..., ::-1],
    "every other pixel": lambda image: image[1::2, ::2],
    "crop": lambda image: image[3:20, 5:25],
    "turned": lambda image: image.transpose(1, 0, 2),
    "planes": lambda image: np.array(image.transpose(2, 0, 1)).transpose(1, 2, 0),
    "Fortran": np.asfortranarray,
    "three of four channels": lambda image: np.concatenate([image, image], 2)[..., 1:4],
    "one row repeated": lambda image: np.broadcast_to(image[:1], image.shape),
    "grey repeated": lambda image: np.broadcast_to(image[..., :1], image.shape),
    "offset by a byte": lambda image: np.concatenate([image.ravel()[:1], image.ravel()])[1:].reshape(image.shape),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("new", [(9, 11), (50, 60), (9, 30), (24, 7)])
def test_strides_do_not_matter(resize: Resize, view: str, new: tuple[int, int]) -> None:
    image = VIEWS[view](noise(24, 30, 3))
    np.testing.assert_array_equal(resize(image, new), resize(np.array(image, order="C"), new))


def test_read_only_images_are_resized_and_none_is_written_to(resize: Resize) -> None:
    image = noise(24, 30, 3)
    before = image.copy()
    image.flags.writeable = False
    np.testing.assert_array_equal(resize(image, (7, 9)), by_torch(before, (7, 9)))
    np.testing.assert_array_equal(image, before)


def test_pytorch_is_indifferent_to_the_memory_format() -> None:
    """Else "PyTorch's bits" would mean nothing."""
    pixels = torch.from_numpy(noise(2, 3, 37, 53))
    for size in ((18, 26), (60, 90), (37, 20), (5, 53)):
        planes = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        last = pixels.contiguous(memory_format=torch.channels_last)
        assert torch.equal(planes, F.interpolate(last, size, mode="bilinear", antialias=True))


def test_the_right_size_is_handed_back_itself() -> None:
    image, mask = noise(4, 6, 3), noise(4, 6)
    assert resize_image(image, (4, 6)) is image and resize_mask(mask, (4, 6)) is mask


def test_without_the_extension_arrays_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert resizing._kernel.__wrapped__() is resizing._resize


def test_arrays_need_little_memory() -> None:
    image, result = noise(1000, 1200, 3), np.empty((30, 40, 3), np.uint8)
    tables = resizing._triangles(1200, 40), resizing._triangles(1000, 30)
    tracemalloc.start()
    try:
        resizing._resize(image, result, *tables)
        assert tracemalloc.get_traced_memory()[1] < 2 * image.nbytes
    finally:
        tracemalloc.stop()


def test_threads_share_the_extension() -> None:
    compiled()
    images = [noise(60, 80, 3, seed=seed) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda image: resize_image(image, (21, 33)), images * 4))
    for image, result in zip(images * 4, results, strict=True):
        np.testing.assert_array_equal(result, by_torch(image, (21, 33)))


@pytest.mark.parametrize(
    ("image", "size", "message"),
    [
        (noise(4, 6), (2, 3), r"an image is uint8 \(4, 6\); give uint8, uint16 or float32 \(H, W, channels\)"),
        (noise(4, 6, 3).astype(np.float64), (2, 3), "an image is float64"),
        (noise(4, 6, 3), (0, 3), r"\(4, 6\) pixels cannot become \(0, 3\)"),
        (noise(4, 6, 3), (2, -3), "give sizes of one pixel or more"),
        (noise(0, 6, 3), (2, 3), "give sizes of one pixel or more"),
    ],
)
def test_what_is_no_image_is_refused(image: np.ndarray, size: tuple[int, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        resize_image(image, size)


def test_what_is_no_mask_is_refused() -> None:
    for mask in (noise(4, 6, 3), noise(4, 6).astype(np.int64)):
        with pytest.raises(DataError, match=r"a mask is .*; give uint8 \(H, W\)"):
            resize_mask(mask, (2, 3))
    with pytest.raises(DataError, match="cannot become"):
        resize_mask(noise(4, 6), (0, 3))


def test_the_extension_checks_its_buffers() -> None:
    kernel = compiled()
    image, result = noise(8, 10, 3), np.zeros((4, 5, 3), np.uint8)
    columns, rows = resizing._triangles(10, 5), resizing._triangles(8, 4)
    assert columns and rows
    kernel(image, result, columns, rows)
    frozen = result.copy()
    frozen.flags.writeable = False
    late, falling, early = columns.starts.copy(), columns.starts[::-1].copy(), columns.starts.copy()
    late[-1] += 2
    early[0] = -1
    odd = np.array(columns.weights[:, :3])
    wide = np.zeros((5, 12), np.int16)
    refused: list[tuple[object, ...]] = [
        (image, result, None, rows),
        (image, result, columns, None),
        (image, result, rows, columns),
        (image, np.zeros((4, 6, 3), np.uint8), columns, rows),
        (image, np.zeros((4, 5, 4), np.uint8), columns, rows),
        (image, np.zeros((5, 4, 3), np.uint8).transpose(1, 0, 2), columns, rows),
        (image, frozen, columns, rows),
        (image, result[0], columns, rows),
        (image.astype(np.int8), result, columns, rows),
        (image.astype(np.uint16), result, columns, rows),
        (image[:0], result, columns, rows),
        (image[..., :2], result, columns, rows),
        ("image", result, columns, rows),
        (image, result, 3, rows),
        (image, result, columns[:2], rows),
    ]
    for tables in (
        columns._replace(starts=late),
        columns._replace(starts=falling),
        columns._replace(starts=early),
        columns._replace(starts=columns.starts.astype(np.int64)),
        columns._replace(starts=np.repeat(columns.starts, 2)[::2]),
        columns._replace(starts=columns.starts[:-1]),
        columns._replace(weights=columns.weights[:-1]),
        columns._replace(weights=columns.weights.astype(np.int32)),
        columns._replace(weights=np.asfortranarray(columns.weights)),
        columns._replace(weights=columns.weights[:, :0]),
        columns._replace(weights=odd),
        columns._replace(weights=wide),
        columns._replace(precision=0),
        columns._replace(precision=31),
    ):
        refused.append((image, result, tables, rows))
    for arguments in refused:
        with pytest.raises((ValueError, TypeError, BufferError)):
            kernel(*arguments)


def under_centre(old: int, new: int) -> list[int]:
    return [int((2 * i + 1) * Fraction(old, 2 * new)) for i in range(new)]


def test_masks_take_the_label_under_each_centre() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        old, new = random_size(rng), random_size(rng)
        mask = rng.integers(0, 256, old, dtype=np.uint8)
        wanted = mask[np.ix_(under_centre(old[0], new[0]), under_centre(old[1], new[1]))]
        np.testing.assert_array_equal(resize_mask(mask, new), wanted)
        np.testing.assert_array_equal(resize_mask(mask[::-1, ::-1].copy()[::-1, ::-1], new), wanted)


def test_masks_differ_from_pytorchs_only_where_a_centre_lies_on_a_border() -> None:
    differing = 0
    for old in range(1, 65):
        labels = torch.arange(old, dtype=torch.float32)[None, None]
        for new in range(1, 65):
            theirs = F.interpolate(labels, new, mode="nearest-exact")[0, 0].numpy()
            ours = resize_mask(np.arange(old, dtype=np.uint8)[None], (1, new))[0]
            for i in np.flatnonzero(ours != theirs):
                assert (2 * int(i) + 1) * old % (2 * new) == 0 and ours[i] == theirs[i] + 1
                differing += 1
    assert differing < 64 * 64 / 10


def test_halves_and_doubles_are_pytorchs() -> None:
    mask = noise(12, 20)
    for size in ((6, 10), (3, 5), (24, 40), (12, 10)):
        theirs = F.interpolate(torch.from_numpy(mask)[None, None], size, mode="nearest-exact")[0, 0]
        np.testing.assert_array_equal(resize_mask(mask, size), theirs.numpy())


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channels_and_types_are_resized_as_pytorch_does(kind: str, channels: int) -> None:
    values = np.random.default_rng(channels).integers(0, 65536 if kind == "uint16" else 256, (37, 53, channels))
    image = values.astype(kind)
    for size in ((20, 53), (37, 20), (64, 90), (11, 13)):
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
        expected = F.interpolate(tensor if kind == "uint8" else tensor.float(), size, mode="bilinear", antialias=True)
        found = resize_image(image, size)
        assert found.dtype == image.dtype
        tolerance = {"uint8": 0, "uint16": 0.6, "float32": 1e-3}[kind]
        np.testing.assert_allclose(found, expected[0].permute(1, 2, 0).numpy(), rtol=0, atol=tolerance)
