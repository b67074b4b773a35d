"""What the cache holds: images and masks at the size asked for, with the bits that PyTorch's resize gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from litheseg.data import Source, open_source
from litheseg.data.loading.cache import DecodedImages, DecodedSamples
from litheseg.data.sources.unlabelled import Unlabelled
from litheseg.errors import DataError


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Three images of 40 x 60 pixels with masks of three classes."""
    rng = np.random.default_rng(0)
    for i in range(3):
        for kind, shape, high in (("images", (40, 60, 3), 256), ("masks", (40, 60), 3)):
            path = tmp_path / kind / "train" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, high, shape, dtype=np.uint8)).save(path)
    (tmp_path / "classes.yaml").write_text("classes: [a, b, c]\n")
    return open_source("folder", tmp_path)


@pytest.mark.parametrize("size", [(20, 30), (16, 44), (80, 120)])
@pytest.mark.parametrize("keep", [True, False])
def test_images_and_masks_are_resized_as_pytorch_does(source: Source, size: tuple[int, int], keep: bool) -> None:
    samples = source.samples("train")
    decoded = DecodedSamples(source, samples, size=size, resize_masks=True, keep=keep, quiet=True)
    unlabelled = DecodedImages(Unlabelled(tuple(samples), source), size=size, keep=keep, quiet=True)
    for index, sample in enumerate(samples):
        pixels = torch.from_numpy(source.read_image(sample)).permute(2, 0, 1)[None]
        labels = torch.from_numpy(source.read_mask(sample))[None, None]
        image, mask = decoded[index]
        assert torch.equal(image, F.interpolate(pixels, size, mode="bilinear", antialias=True)[0])
        assert torch.equal(mask, F.interpolate(labels, size, mode="nearest-exact")[0, 0])
        assert torch.equal(unlabelled[index], image)
        assert image.is_contiguous() and image.dtype == mask.dtype == torch.uint8


def test_masks_keep_their_size_where_only_images_are_resized(source: Source) -> None:
    samples = source.samples("train")
    decoded = DecodedSamples(source, samples, size=(20, 30), resize_masks=False, quiet=True)
    image, mask = decoded[0]
    assert image.shape == (3, 20, 30)
    np.testing.assert_array_equal(mask.numpy(), source.read_mask(samples[0]))


def test_after_a_broken_file_the_next_use_begins_anew(source: Source) -> None:
    samples = source.samples("train")
    decoded = DecodedSamples(source, samples, size=None, resize_masks=True, quiet=True)
    last = samples[-1].mask
    assert last is not None
    whole = last.read_bytes()
    last.write_bytes(whole[:40])
    with pytest.raises(DataError, match="replace or remove it"):
        decoded.load()
    last.write_bytes(whole)
    assert len(decoded.sizes()) == len(samples) and decoded.histogram().sum() == len(samples) * 40 * 60
    for index, sample in enumerate(samples):
        np.testing.assert_array_equal(decoded[index][1].numpy(), source.read_mask(sample))
