"""A finished teacher sees what it knows: its own normalisation, its own scale."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_training
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_training import tiny_recipe, train_tiny
from torch import Tensor

from litheseg.data.loading.datamodule import SegmentationData
from litheseg.data.loading.transforms import Augment
from litheseg.data.sources.streets import Streets
from litheseg.masks.image_format import ImageFormat
from litheseg.models.bundle import BundleHeader, load_bundle, save_bundle
from litheseg.training.build import build_data, build_task
from litheseg.training.recipe import Recipe
from litheseg.training.streams import LABELLED, MIXED, UNLABELLED, Step
from litheseg.training.teachers import Frozen

UNIT: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
ODD: dict[str, Any] = {"mean": (0.5, 0.1, 0.9), "std": (0.2, 3.0, 0.7)}
CLASSES = Streets(train=1, val=1, size=(32, 32)).classes


def foreign(path: Path, **header: Any) -> Path:
    """A network from elsewhere: with fresh weights, and with biases so that padding matters."""
    torch.manual_seed(1)
    model = tiny_training.tiny(len(CLASSES), dropout=0.0, aux_head=False)
    fields = {"size": (32, 32), "resizes": False, **header}
    save_bundle(path, model, BundleHeader({"name": "tiny", "args": {"dropout": 0.0}}, CLASSES, **fields))
    return path


def plain_network(path: Path) -> Any:
    return load_bundle(path).plain(1.0).eval()


def frozen_recipe(bundle: Path, *more: str) -> Recipe:
    return tiny_recipe(f"--teachers.wider={{kind: frozen, bundle: {bundle}}}", *more)


def teacher_of(recipe: Recipe, data: SegmentationData, name: str = "wider") -> Frozen:
    teacher = build_task(recipe, data).teachers[name]
    assert isinstance(teacher, Frozen)
    return teacher


def views_as(recipe: Recipe, normalisation: dict[str, Any]) -> dict[str, Tensor]:
    """The very views of the first step, normalised otherwise by the data room itself."""
    data = build_data(recipe)
    data._format = ImageFormat(**normalisation)
    return data.train_batch(0, 0)


def resized(logits: Tensor, size: Any) -> Tensor:
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


@pytest.mark.parametrize("normalisation", [UNIT, ODD], ids=["none", "odd"])
@torch.no_grad()
def test_a_teacher_sees_its_own_normalisation(tmp_path: Path, normalisation: dict[str, Any]) -> None:
    bundle = foreign(tmp_path / "teacher.safetensors", **normalisation)
    recipe = frozen_recipe(bundle)
    data = build_data(recipe)
    batch, teacher = data.train_batch(0, 0), teacher_of(recipe, data)
    image = views_as(recipe, normalisation)["image"]
    assert bool((image == 0).all(1).any()), "some view has padding"
    teacher.begin(Step.of(batch))
    outputs = teacher.output(1.0, LABELLED)
    assert outputs is not None
    expected = resized(plain_network(bundle).outputs(image)["logits"], (32, 32))
    torch.testing.assert_close(outputs["logits"], expected, rtol=1e-4, atol=1e-4)
    wrong = resized(plain_network(bundle).outputs(batch["image"])["logits"], (32, 32))
    assert float((wrong - expected).abs().max()) > 0.05


@torch.no_grad()
def test_so_it_does_of_unlabelled_and_mixed_images(tmp_path: Path) -> None:
    bundle = foreign(tmp_path / "teacher.safetensors", **UNIT)
    both = (f"--teachers.deep.bundle={bundle}", f"--teachers.wide.bundle={bundle}")
    few = ("--data.labelled=2", "--data.absent_classes=true", "--widths=[1.0]", "--model.args={}")
    recipe = tiny_recipe(*few, *both, name="mgd")
    data = build_data(recipe)
    batch, teacher = data.train_batch(0, 0), teacher_of(recipe, data, "deep")
    own, network = views_as(recipe, UNIT), plain_network(bundle)
    step = Step.of(batch)
    teacher.begin(step)
    outputs, own_outputs = teacher.output(1.0, UNLABELLED), teacher.output(1.0, MIXED)
    assert outputs is not None and own_outputs is not None
    weak = resized(network.outputs(own["weak"])["logits"], (32, 32))
    torch.testing.assert_close(outputs["logits"], step.mix(weak), rtol=1e-4, atol=1e-4)
    mixed = resized(network.outputs(own["mixed"].flatten(0, 1))["logits"], (32, 32))
    torch.testing.assert_close(own_outputs["logits"], mixed, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_teacher_sees_its_own_scale(tmp_path: Path) -> None:
    """PIL enlarges the views, channel by channel."""
    bundle = foreign(tmp_path / "teacher.safetensors", **UNIT, size=(48, 64), resizes=True)
    recipe = frozen_recipe(bundle, "--data.size=[32,32]")
    data = build_data(recipe)
    teacher = teacher_of(recipe, data)
    teacher.begin(Step.of(data.train_batch(0, 0)))
    outputs = teacher.output(1.0, LABELLED)
    assert outputs is not None
    image = views_as(recipe, UNIT)["image"].numpy()
    large = [
        [Image.fromarray(plane, mode="F").resize((64, 48), Image.Resampling.BILINEAR) for plane in view]
        for view in image
    ]
    expected = plain_network(bundle).outputs(torch.from_numpy(np.array(large, np.float32)))["logits"]
    torch.testing.assert_close(outputs["logits"], resized(expected, (32, 32)), rtol=1e-4, atol=1e-4)


def test_where_both_agree_the_teacher_sees_the_very_tensor(tmp_path: Path) -> None:
    train_tiny(tmp_path / "run", "--trainer.epochs=1", name="supervised")
    recipe = frozen_recipe(tmp_path / "run" / "model.safetensors")
    data = build_data(recipe)
    image = data.train_batch(0, 0)["image"]
    sees = teacher_of(recipe, data)._sees
    assert sees is not None and sees(image) is image


@pytest.mark.parametrize("resizes", [True, False])
def test_a_scale_that_cannot_be_told_is_warned_of(tmp_path: Path, resizes: bool) -> None:
    bundle = foreign(tmp_path / "teacher.safetensors", resizes=resizes)
    recipe = frozen_recipe(bundle, *([] if resizes else ["--data.size=[32,32]"]))
    with pytest.warns(UserWarning, match=r"teacher\.safetensors knows images .*another scale"):
        build_task(recipe, build_data(recipe))
    same = frozen_recipe(bundle, *(["--data.size=[32,32]"] if resizes else []))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_task(same, build_data(same))


def test_padding_is_the_teachers_mean_colour(tmp_path: Path) -> None:
    """Of an image of one colour in a larger view, the rest is 0 for the teacher as well."""
    bundle = foreign(tmp_path / "teacher.safetensors", **ODD)
    recipe = frozen_recipe(bundle, "--data.crop=[40,40]")
    data = build_data(recipe)
    data.augment = Augment.none()
    batch = data.train_batch(0, 0)
    sees = teacher_of(recipe, data)._sees
    assert sees is not None
    seen = sees(batch["image"])
    outside = (batch["image"] == 0).all(1, keepdim=True).expand_as(seen)
    assert 0 < int(outside.sum()) < seen.numel() and not seen[outside].any()
    mean, std = (torch.tensor(ODD[name])[:, None, None] for name in ("mean", "std"))
    pixels = ((seen * std + mean) * 255)[~outside]
    torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-3)  # the whole numbers that the file holds
