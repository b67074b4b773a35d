from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from registry import registered
from tiny_export import build_tiny, noise, photos, plain_labels, plain_logits, tiny_bundle

from litheseg.data.sources.streets import Streets
from litheseg.deploy.parity import Certificate, certify, pytorch_reference
from litheseg.deploy.samples import Picture, open_samples
from litheseg.errors import DataError, LithesegError
from litheseg.evaluation.bundle import evaluate_bundle
from litheseg.masks.classes import IGNORE_INDEX
from litheseg.models import MODELS
from litheseg.models.bundle import BundleHeader, load_bundle, save_bundle

CLASSES = ("red", "green", "blue")


_registered = registered(tiny=build_tiny)


class _Engine:
    """Logits by a function of the image."""

    runtime, precision, size = "fake", "fp32", None

    def __init__(self, function: Callable[[np.ndarray], np.ndarray], output: str = "logits") -> None:
        self.function, self.output = function, output

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return self.function(image)


def _colours(image: np.ndarray) -> np.ndarray:
    """The largest channel of every pixel wins."""
    return image.transpose(2, 0, 1).astype(np.float32) / 255


def _picture(*colours: int, name: str = "a", mask: list[int] | None = None) -> Picture:
    """One row of pixels, each of one pure colour."""
    image = np.zeros((1, len(colours), 3), np.uint8)
    image[0, range(len(colours)), colours] = 255
    return Picture(name, image, None if mask is None else np.array([mask], np.uint8))


def certificate(engine: Any, *arguments: Any, **options: Any) -> Certificate:
    return certify({"one": engine}, *arguments, **options)["one"]


def test_counts_worked_out_by_hand() -> None:
    def wrong_blue(image: np.ndarray) -> np.ndarray:
        logits = _colours(image)
        logits[1] += 1.5 * logits[2]  # blue becomes green
        return logits

    samples = [
        _picture(0, 1, 2, 2, name="first", mask=[0, 1, 2, IGNORE_INDEX]),
        _picture(0, 0, 0, 1, name="second", mask=[0, 0, 1, 1]),
    ]
    found = certificate(_Engine(wrong_blue), _colours, samples, CLASSES, origin="by hand")
    assert (found.images, found.pixels, found.differing, found.agreement) == (2, 8, 2, 0.75)
    assert (found.worst_image, found.worst_agreement) == ("first", 0.5)
    assert (found.largest_difference, found.largest_logit) == (1.5, 1.0)
    assert found.reference_iou == pytest.approx((3 / 4, 2 / 3, 1.0))
    assert found.iou == pytest.approx((3 / 4, 2 / 4, 0.0))
    assert found.miou == pytest.approx((3 / 4 + 2 / 4) / 3)
    assert found.worst_class == ("blue", -1.0)
    assert (found.origin, found.runtime) == ("by hand", "fake")


def test_equal_networks_agree_everywhere_and_unlabelled_images_have_no_miou() -> None:
    found = certificate(_Engine(_colours), _colours, [_picture(0, 1), _picture(2, 2)], CLASSES)
    assert (found.differing, found.worst_agreement, found.largest_difference) == (0, 1.0, 0.0)
    assert found.miou is found.iou is found.reference_miou is found.worst_class is None


def test_a_class_that_the_labels_lack_has_no_iou() -> None:
    found = certificate(_Engine(_colours), _colours, [_picture(0, 1, mask=[0, 1])], CLASSES)
    assert found.iou == (1.0, 1.0, None) and found.miou == 1.0


def test_certificates_go_into_json() -> None:
    found = certificate(_Engine(_colours), _colours, [_picture(0, 1, mask=[0, 1])], CLASSES)
    content = json.loads(json.dumps(found.to_dict()))
    assert content.pop("agreement") == 1.0 and content == json.loads(json.dumps(vars(found)))


def test_labels_are_compared_at_the_networks_input() -> None:
    calls: list[tuple[int, ...]] = []

    def labels(image: np.ndarray) -> np.ndarray:
        calls.append(image.shape)
        return _colours(image).argmax(0).astype(np.uint8)

    sample = Picture("photo", noise(40, 60), None)
    found = certificate(_Engine(labels, "labels"), _colours, [sample], CLASSES, size=(20, 30))
    assert calls == [(20, 30, 3)] and found.pixels == 40 * 60
    assert found.agreement == 1.0 and found.largest_difference is None


def test_several_engines_see_every_image_once() -> None:
    asked: list[int] = []

    def reference(image: np.ndarray) -> np.ndarray:
        asked.append(1)
        return _colours(image)

    engines = {"right": _Engine(_colours), "wrong": _Engine(lambda image: -_colours(image))}
    found = certify(engines, reference, [_picture(0), _picture(1)], CLASSES)
    assert (found["right"].agreement, found["wrong"].agreement) == (1.0, 0.0)
    assert len(asked) == 2


def test_no_images_and_no_numbers() -> None:
    with pytest.raises(DataError, match="no images to check"):
        certificate(_Engine(_colours), _colours, [], CLASSES)
    broken = _Engine(lambda image: np.full((3, 1, 1), np.nan, np.float32))
    with pytest.raises(LithesegError, match="'photo 7' that are not finite"):
        certificate(broken, _colours, [_picture(0, name="photo 7")], CLASSES)


def test_the_reference_is_the_network_as_it_was_trained(tmp_path: Path) -> None:
    bundle, image = tiny_bundle(tmp_path / "m.safetensors"), noise(33, 47)
    for width in (1.0, 0.5):
        logits = pytorch_reference(bundle, width)(image)
        np.testing.assert_allclose(logits, plain_logits(bundle, width, image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("resizes", [True, False])
def test_the_miou_is_that_of_evaluate(tmp_path: Path, resizes: bool) -> None:
    source = Streets(size=(48, 64), train=2, val=3)
    torch.manual_seed(0)
    model = MODELS["tiny"](len(source.classes)).eval()
    header = BundleHeader({"name": "tiny", "args": {}}, source.classes, size=(36, 40), resizes=resizes)
    save_bundle(tmp_path / "m.safetensors", model, header)
    bundle = load_bundle(tmp_path / "m.safetensors")
    reference = pytorch_reference(bundle, 1.0)
    samples = open_samples(bundle, source)
    size = header.size if resizes else None
    found = certificate(_Engine(reference), reference, samples, source.classes.names, size=size)
    expected = evaluate_bundle(bundle, source).scores[1.0]
    assert found.miou == pytest.approx(expected.miou, abs=1e-12) and found.images == 3


def test_folders_of_images_will_do(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "m.safetensors")
    samples = open_samples(bundle, photos(tmp_path / "photos", 5))
    assert (len(samples), samples.labelled, samples.origin) == (5, False, "photos/")
    assert [picture.name for picture in samples] == [f"photo{index}" for index in range(5)]
    assert [picture.name for picture in samples.thinned(3)] == ["photo0", "photo2", "photo4"]
    assert samples.thinned(9) is samples
    found = certificate(
        _Engine(lambda image: plain_logits(bundle, 1.0, image)), pytorch_reference(bundle, 1.0), samples, "abc"
    )
    assert found.agreement > 0.999 and found.miou is None


def test_data_that_cannot_be_used(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "m.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds nothing that is recognised"):
        open_samples(bundle, tmp_path / "empty")
    with pytest.raises(DataError, match="are not the model's"):
        open_samples(bundle, Streets(size=(48, 64), train=1, val=1))
    with pytest.raises(DataError, match="does not say which data"):
        open_samples(bundle)


def test_a_label_export_and_pytorch_at_a_size_of_their_own(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "m.safetensors")
    engine = _Engine(lambda image: plain_labels(plain_logits(bundle, 0.5, image), image.shape[:2]), "labels")
    sample = Picture("photo", noise(31, 45), np.zeros((31, 45), np.uint8))
    found = certificate(engine, pytorch_reference(bundle, 0.5), [sample], CLASSES, size=(24, 32))
    assert found.agreement > 0.999 and found.miou == pytest.approx(found.reference_miou, abs=1e-3)
