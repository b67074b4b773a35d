from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F

import litheseg.labelling.ranking as room
from litheseg.errors import DataError
from litheseg.labelling.ranking import certainty
from litheseg.models.bundle import Bundle
from litheseg.runtime.predictor import Predictor


def _picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (33, 45, 3), np.uint8)


def _plain(bundle: Bundle, image: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities K x H x W and pooled features, by plain PyTorch and SciPy in float64."""
    module = bundle.plain(width).double()
    batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].double() / 255
    batch = F.interpolate(batch, (12, 16), mode="bilinear", align_corners=False, antialias=True)
    outputs = module.outputs(batch)
    logits = F.interpolate(outputs["logits"], image.shape[:2], mode="bilinear", align_corners=False)
    return (
        scipy.special.softmax(logits[0].detach().numpy(), axis=0),
        outputs["features"].detach().mean((0, 2, 3)).numpy(),
    )


@pytest.mark.parametrize("width", [1.0, 0.5])
@pytest.mark.parametrize("banded", [False, True])
def test_certainty_is_that_of_the_plain_model(
    bundle: Bundle, width: float, banded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if banded:  # as for an image too large to be interpolated at once: 7 rows a band
        monkeypatch.setattr(room, "_MAX_LOGITS", 1)
        monkeypatch.setattr(room, "_MAX_BAND", 3 * 45 * 7)
    image = _picture()
    likely, pooled = _plain(bundle, image, width)
    outputs = Predictor(bundle).outputs_rgb(image, width=width)
    sure = certainty(outputs["logits"], outputs["features"], (33, 45))
    ordered = np.sort(likely, axis=0)
    # 8-bit rounding after the resize: a value of 255 is 8 in the logits.
    assert sure.labels.dtype == np.uint8 and sure.labels.shape == (33, 45)
    assert (sure.labels == likely.argmax(0)).mean() > 0.98
    np.testing.assert_allclose(sure.confidence, ordered[-1], atol=6e-3)
    assert sure.entropy == pytest.approx(scipy.stats.entropy(likely, axis=0).mean() / np.log(3), abs=1e-3)
    assert sure.margin == pytest.approx((ordered[-1] - ordered[-2]).mean(), abs=2e-3)
    np.testing.assert_allclose(sure.features, pooled, atol=2e-3)


def test_labels_are_those_of_the_predictor(bundle: Bundle) -> None:
    predictor, image = Predictor(bundle, width=0.5), _picture()
    outputs = predictor.outputs_rgb(image)
    assert np.array_equal(certainty(outputs["logits"], outputs["features"], (33, 45)).labels, predictor(image))


@pytest.mark.parametrize("size", [(33, 45), (5, 7), (3, 40), (1, 1)])
def test_bands_are_the_whole(size: tuple[int, int]) -> None:
    logits = torch.randn(1, 4, 9, 6, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    for top in range(size[0]):
        band = room._interpolated(logits, size, top, min(top + 3, size[0]))
        torch.testing.assert_close(band, whole[:, :, top : top + 3], rtol=1e-5, atol=1e-5)


def test_the_ends_of_the_range() -> None:
    features = torch.ones(1, 2, 1, 1)
    even = certainty(torch.zeros(1, 5, 2, 2), features, (4, 4))
    assert (even.entropy, even.margin) == (pytest.approx(1), 0)
    np.testing.assert_allclose(even.confidence, 0.2, rtol=1e-6)
    certain = certainty(torch.tensor([100.0, 0.0])[None, :, None, None], features, (4, 4))
    assert (certain.entropy, certain.margin, certain.confidence.min()) == (pytest.approx(0, abs=1e-12), 1, 1)
    alone = certainty(torch.randn(1, 1, 2, 2), features, (4, 4))
    assert (alone.entropy, alone.margin, alone.labels.max()) == (0, 1, 0)


def test_a_network_gone_wrong_is_named() -> None:
    with pytest.raises(DataError, match="not finite"):
        certainty(torch.full((1, 2, 2, 2), float("nan")), torch.ones(1, 2, 1, 1), (4, 4))
