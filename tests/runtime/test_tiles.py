from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from litheseg.errors import LithesegError
from litheseg.masks.upsampling import upsample_labels
from litheseg.models import build_model
from litheseg.runtime.tiles import GRID, predict_tiles, tile_starts

Network = Callable[[np.ndarray], np.ndarray]


def local_network(stride: int, reach: int = 1) -> Network:
    """Integer convolutions, exact in float32, that look at most (2 reach + 1) x stride pixels around; 4 classes."""
    random_state = torch.Generator().manual_seed(0)
    down = torch.randint(-2, 3, (6, 3, stride, stride), generator=random_state).float()
    around = torch.randint(-3, 4, (4, 6, 2 * reach + 1, 2 * reach + 1), generator=random_state).float()

    @torch.inference_mode()
    def network(image: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() - 128
        height, width = (-length % stride for length in image.shape[:2])
        # As convolutions with padding do at the lower right: zeros beyond the image.
        features = F.conv2d(F.pad(pixels, (0, width, 0, height)), down, stride=stride)
        return F.conv2d(features, around, padding=reach)[0].numpy()

    return network


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth, so that classes have areas."""
    noise = torch.rand(1, 3, height // 24 + 2, width // 24 + 2, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(noise, (height, width), mode="bilinear")[0]
    return (255 * smooth).round().to(torch.uint8).permute(1, 2, 0).numpy()


def whole(network: Network, image: np.ndarray) -> np.ndarray:
    return upsample_labels(network(image), image.shape[:2])


@pytest.mark.parametrize("stride", [1, 2, 8, 16])
@pytest.mark.parametrize("size", [(384, 640), (401, 517), (130, 777), (1, 900), (500, 3), (320, 321)])
def test_equal_to_the_whole_image_where_the_network_looks_no_further_than_the_overlap_allows(
    stride: int, size: tuple[int, int]
) -> None:
    network, image = local_network(stride), picture(*size)
    labels = predict_tiles(network, image, tile=(256, 320), overlap=128)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, whole(network, image))


@pytest.mark.parametrize("tile", [(192, 192), (250, 203), (300, 2000)])
def test_any_tile_that_is_large_enough(tile: tuple[int, int]) -> None:
    network, image = local_network(8), picture(700, 900)
    assert np.array_equal(predict_tiles(network, image, tile=tile, overlap=128), whole(network, image))


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (256, 256), (255, 100)])
def test_a_small_image_is_one_tile(size: tuple[int, int]) -> None:
    calls = []
    network = local_network(8)
    image = picture(*size)
    labels = predict_tiles(lambda pixels: calls.append(1) or network(pixels), image, tile=(256, 256), overlap=128)
    assert np.array_equal(labels, whole(network, image)) and len(calls) == 1


def test_a_network_of_one_size_sees_that_size_only() -> None:
    network, seen = local_network(8), set()

    def fixed(pixels: np.ndarray) -> np.ndarray:
        seen.add(pixels.shape)
        return network(pixels)

    for size in ((600, 610), (100, 700), (40, 60), (180, 250)):
        image = picture(*size)
        labels = predict_tiles(fixed, image, tile=(180, 250), fixed=True)
        expected = whole(network, image)
        inner = slice(0, -24)  # beyond the image, such a network sees its edge repeated
        assert (labels[inner, inner] == expected[inner, inner]).mean() > 0.99
    assert seen == {(180, 250, 3)}


def test_a_network_that_gives_labels() -> None:
    image = picture(500, 700)
    expected = image[:, :, 0] // 64

    def labelling(pixels: np.ndarray) -> np.ndarray:
        labels = pixels[:, :, 0] // 64
        labels[:40], labels[-30:], labels[:, :40], labels[:, -30:] = 9, 9, 9, 9  # what a tile's edge may do
        return labels

    labels = predict_tiles(labelling, image, tile=(256, 256), overlap=128)
    assert np.array_equal(labels[40:-40, 40:-40], expected[40:-40, 40:-40])


def test_seams_are_gradual_where_tiles_disagree() -> None:
    # The network knows nothing but its tile: two classes, one rises with the column, the other with the tile.
    state = iter(range(100))

    def moody(pixels: np.ndarray) -> np.ndarray:
        level = (0.0, 1.0)[next(state) % 2]
        ramp = np.broadcast_to(
            np.linspace(0, 1, pixels.shape[0] // 8)[:, None], (pixels.shape[0] // 8, pixels.shape[1] // 8)
        )
        return np.stack([ramp, np.full_like(ramp, level)]).astype(np.float32)

    labels = predict_tiles(moody, picture(256, 384), tile=(256, 256), overlap=128)
    share = labels.mean(0)  # of the second class, per column
    assert share[100] < 0.1 and share[-100] > 0.9
    assert np.abs(np.diff(share)).max() < 0.05, "no column where it jumps"


@pytest.mark.parametrize("name", ["ddrnet", "erfnet"])
def test_networks_that_look_everywhere_agree_within_the_stated_tolerance(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=4, **({"base": 8} if name == "ddrnet" else {})).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -0.5, 0.5)

    @torch.inference_mode()
    def network(image: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 128 - 1
        return model.outputs(pixels)["logits"][0].numpy()

    image = picture(640, 700)
    labels = predict_tiles(network, image, tile=(512, 512), overlap=256)
    assert (labels == whole(network, image)).mean() > 0.95


def test_memory_does_not_grow_with_the_image() -> None:
    largest = 0

    def counting(pixels: np.ndarray) -> np.ndarray:
        nonlocal largest
        largest = max(largest, pixels.size)
        logits = np.zeros((4, *(-(-side // 8) for side in pixels.shape[:2])), np.float32)
        logits[0] = pixels[::8, ::8, 0]
        return logits

    def peak(width: int) -> int:
        """Bytes beyond the image and its labels."""
        image = np.zeros((1000, width, 3), np.uint8)
        tracemalloc.start()
        try:
            labels = predict_tiles(counting, image, tile=(512, 512), overlap=128)
            return tracemalloc.get_traced_memory()[1] - labels.nbytes
        finally:
            tracemalloc.stop()

    peak(2000)  # whatever is made once
    narrow, wide = peak(2000), peak(20_000)
    assert largest == 512 * 512 * 3
    shared = 4 * 4 * (128 // 8) * (18_000 // 8)  # bytes of logits that two rows of tiles share
    assert wide - narrow < 3 * shared + (1 << 20)


def test_tiles_cover_the_axis_and_start_on_the_grid() -> None:
    for length in range(1, 3000, 7):
        for tile, overlap in ((256, 128), (500, 130), (1024, 256)):
            starts = tile_starts(length, tile, overlap)
            assert starts[0] == 0 and all(start % GRID == 0 for start in starts)
            assert starts[-1] + tile >= length > starts[-1]
            for before, after in pairwise(starts):
                assert after > before and before + tile - after >= overlap


def test_what_cannot_be_cut_is_refused() -> None:
    image = picture(600, 600)
    for tile, overlap in ((256, 63), (256, 256), (160, 128)):
        with pytest.raises(LithesegError, match="are usual"):
            predict_tiles(local_network(8), image, tile=(tile, tile), overlap=overlap)
    with pytest.raises(LithesegError, match="its stride does not divide 64"):
        predict_tiles(local_network(12), image, tile=(256, 256), overlap=128)
