"""The robustness card of a network whose answers are known: the largest channel of each pixel."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from registry import registered
from tiny_colours import CLASSES, colour_bundle, dominant, picture, truth
from tiny_pictures import Pictures

from litheseg.deploy.export import export_bundle
from litheseg.errors import DataError, LithesegError, WidthError
from litheseg.evaluation import corrupt, measure_robustness
from litheseg.evaluation.robustness import RobustnessCard, header_robustness
from litheseg.models.bundle import Bundle
from litheseg.runtime import engines


def labelled(logits: np.ndarray) -> np.ndarray:
    return logits.argmax(0).astype(np.uint8)


_registered = registered(dominant=dominant)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, _registered: None) -> Bundle:
    return colour_bundle(tmp_path_factory.mktemp("model") / "model.safetensors", resizes=False)


def source(count: int = 3) -> Pictures:
    masks = [truth() for _ in range(count)]
    for mask in masks[:1]:
        mask[:4] = 255
    return Pictures(CLASSES, [(picture(), mask) for mask in masks])


@pytest.fixture(scope="module")
def card(bundle: Bundle) -> RobustnessCard:
    return measure_robustness(
        {"colours": bundle}, source(), corruptions=("brightness", "impulse-noise"), strengths=(5, 3), images=2
    )


def test_scores_are_those_of_the_pictures_as_they_were_shown(card: RobustnessCard) -> None:
    assert [network.name for network in card.networks] == ["colours 1 fp32", "colours 0.5 fp32"]
    assert (card.images, card.of, card.strengths) == (2, 3, (3, 5))
    images, kept = source(), []
    for strength in (3, 5):
        inside = outside = np.zeros(3)
        for name in ("0", "2"):  # evenly spread: the first and the last
            sample = next(entry for entry in images.samples("val") if entry.id == name)
            shown, mask = corrupt(picture(), "impulse-noise", strength, seed=name), images.read_mask(sample)
            labels, known = shown.argmax(2), mask != 255
            pairs = [((labels == k) & known, (mask == k) & known) for k in range(3)]
            inside = inside + [(a & b).sum() for a, b in pairs]
            outside = outside + [(a | b).sum() for a, b in pairs]
        kept.append((inside / outside).mean())
    for network in card.networks:
        assert network.clean_miou == network.miou("brightness") == 1
        assert [network.miou("impulse-noise", strength) for strength in (3, 5)] == pytest.approx(kept)
        assert network.miou() == pytest.approx((2 + sum(kept)) / 4)
        assert network.worst("impulse-noise")[1] < 1


def test_confidence_is_the_largest_probability_of_labelled_pixels(card: RobustnessCard, bundle: Bundle) -> None:
    image = (torch.from_numpy(picture()).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        sure = bundle.plain(1.0)(image).softmax(1).amax(1)
    found = card.networks[0].confidence
    assert found is not None and found.total == 24 * 40 * 2 - 4 * 40
    assert found.sure.sum() / found.total == pytest.approx(float(sure.mean()), rel=1e-5)
    assert found.error == 0 and found.ece == pytest.approx(1 - float(sure.mean()), rel=1e-4)
    shifted = card.networks[0].shifted
    assert shifted is not None and shifted.total == 2 * found.total, "both kinds, in the middle strength"
    assert shifted.error > 0


def test_what_a_header_keeps_is_json_and_keeps_what_was_there(card: RobustnessCard) -> None:
    kept = header_robustness({"1": {"miou": 0.5, "robustness": {"int8": {"miou": 0.1}}}}, card)
    assert kept["1"]["miou"] == 0.5 and kept["1"]["robustness"]["int8"] == {"miou": 0.1}
    assert kept["0.5"]["robustness"]["fp32"]["miou"] == pytest.approx(card.networks[1].miou(), abs=1e-6)
    assert kept["1"]["robustness"]["fp32"]["on"] == "2 of 3 images of pictures val, 2 corruptions in 2 strengths"
    assert json.loads(json.dumps(kept, allow_nan=False)) == kept
    assert json.dumps(card.to_dict(), allow_nan=False)


def test_an_export_goes_through_its_runtime_and_one_of_labels_has_no_confidence(
    bundle: Bundle, card: RobustnessCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {"corruptions": ("impulse-noise",), "strengths": (3, 5), "images": 2}
    export = export_bundle(bundle, tmp_path / "export", size=(24, 40), widths=[1.0], check=False)
    [logits] = measure_robustness({"a": export}, source(), **how).networks
    # The same network as if it gave labels.
    monkeypatch.setattr(
        engines._FileEngine, "run", lambda self, image, run=engines._FileEngine.run: labelled(run(self, image))
    )
    giving = replace(export, artefacts=(replace(export.artefacts[0], output="labels"),))
    [labels] = measure_robustness({"a": giving}, source(), **how).networks
    same = card.networks[0]
    for network in (logits, labels):
        assert (network.runtime, network.precision, network.width) == ("onnxruntime", "fp32", 1.0)
        assert network.miou() == pytest.approx(same.miou("impulse-noise"), abs=1e-3)
    assert labels.confidence is None and labels.to_dict()["confidence"] is None
    assert logits.confidence is not None and same.confidence is not None
    assert logits.confidence.ece == pytest.approx(same.confidence.ece, abs=1e-5)


def test_confidence_alone(bundle: Bundle) -> None:
    [network] = measure_robustness({"a": bundle}, source(), corruptions=("",), widths=(0.5,)).networks
    assert network.width == 0.5 and network.confidence is not None and network.shifted is None
    assert network.to_dict()["miou"] is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"corruptions": ("fogg",)}, LithesegError, "Did you mean 'fog'"),
        ({"strengths": (7,)}, LithesegError, "no strength 7"),
        ({"images": -1}, LithesegError, "-1 images"),
        ({"widths": (0.3,)}, WidthError, "0.3"),
        ({"precisions": ("int8",)}, LithesegError, "no int8 network"),
    ],
)
def test_what_cannot_be_measured(bundle: Bundle, options: dict[str, object], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        measure_robustness({"a": bundle}, source(), **options)  # type: ignore[arg-type]


def test_no_models_and_no_images(bundle: Bundle) -> None:
    with pytest.raises(DataError, match="no models"):
        measure_robustness({}, source())
    with pytest.raises(DataError, match="no labelled images"):
        measure_robustness({"a": bundle}, source(0))
