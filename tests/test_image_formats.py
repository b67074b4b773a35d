"""Images that are no photographs, from a folder to the labels of an export: the class shows in one channel only."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import tiny_training  # noqa: F401  (registers the network)
import torch
from PIL import Image
from tiny_channels import SIZE, folder, scene, write

from litheseg.bundle.exported import load_export
from litheseg.deploy.export import export_bundle
from litheseg.errors import DataError, LithesegError
from litheseg.evaluation.bundle import evaluate_bundle
from litheseg.models.bundle import Bundle, load_bundle
from litheseg.runtime.files import predict_files
from litheseg.runtime.predictor import Predictor
from litheseg.training import load_recipe, train


def trained(root: Path, output: Path, *more: str) -> Bundle:
    recipe = load_recipe(
        "slimseg",
        [
            *("--model.name=tiny", "--model.args={dropout: 0, aux_head: false}", "--widths=[1, 0.5]"),
            *(f"--data.root={root}", "--data.source=folder"),
            *(f"--data.size={list(SIZE)}", "--data.batch_size=3", "--trainer.epochs=12", "--trainer.accelerator=cpu"),
            *("--trainer.threads=1", "--trainer.loggers=[csv]", "--trainer.val_every=12", "--optimizer.lr=0.01"),
            *more,
        ],
    )
    train(recipe, output)
    return load_bundle(output / "model.safetensors")


@pytest.fixture(scope="module", params=[(5, "uint16", ".tif"), (2, "float32", ".npy"), (4, "uint8", ".tif")], ids=str)
def run(request: Any, tmp_path_factory: Any) -> tuple[Path, Bundle, tuple[int, str, str]]:
    path = tmp_path_factory.mktemp("run")
    root = folder(path / "data", *request.param)
    return root, trained(root, path / "run"), request.param


def plain_labels(bundle: Bundle, image: np.ndarray, width: float = 1.0) -> np.ndarray:
    """In plain PyTorch, with the numbers of the header alone."""
    header = json.loads(bundle.header.to_json())
    scale = {"uint8": 255, "uint16": 65535, "float32": 1}[header["dtype"]]
    ready = (image.astype(np.float64) / scale - header["mean"]) / header["std"]
    with torch.inference_mode():
        logits = bundle.plain(width)(torch.from_numpy(ready).float().permute(2, 0, 1)[None])
    return logits[0].argmax(0).numpy()


def test_the_class_of_the_last_channel_is_learned(run: Any) -> None:
    root, bundle, (channels, dtype, _) = run
    assert (bundle.header.images.channels, bundle.header.dtype) == (channels, dtype)
    assert bundle.header.architecture["args"]["in_channels"] == channels
    scores = evaluate_bundle(bundle, root, source="folder").scores
    assert min(scores[1.0].iou) > 0.8


def test_mean_and_deviation_are_those_of_the_training_images(run: Any) -> None:
    root, bundle, (channels, _, suffix) = run
    names = (root / "train.txt").read_text().split()
    read = np.load if suffix == ".npy" else tifffile.imread
    pixels = np.concatenate([read(root / "images" / f"{name}{suffix}").reshape(-1, channels) for name in names]).astype(
        np.float64
    )
    images = bundle.header.images
    np.testing.assert_allclose(np.array(images.mean) * images.scale, pixels.mean(0), rtol=1e-5)
    np.testing.assert_allclose(np.array(images.std) * images.scale, pixels.std(0), rtol=1e-5)


def test_exports_give_the_labels_of_pytorch(run: Any, tmp_path: Path) -> None:
    root, bundle, (_, dtype, suffix) = run
    others = {"uint16": {"openvino": "openvino"}, "float32": {"torch": "torch"}}
    runtimes = {"onnx": "onnxruntime", **others.get(dtype, {})}
    export = export_bundle(bundle, tmp_path / "e", formats=tuple(runtimes), widths=(0.5,), size=None, data=root)
    image, _ = scene(77, *run[2][:2])
    for runtime in runtimes.values():
        found = Predictor(load_export(export.path), size=None, runtime=runtime)(image)
        assert (found == plain_labels(bundle, image, 0.5)).mean() > 0.999
    write(tmp_path / f"a{suffix}", image)
    summary = predict_files(export.path, tmp_path / f"a{suffix}", tmp_path / "out", kind="both", size=None)
    assert summary.written == 2 and not summary.failed
    labels = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    assert (labels == plain_labels(bundle, image, 0.5)).mean() > 0.999
    assert np.asarray(Image.open(tmp_path / "out" / "a_overlay.png")).shape[2] == 3
    code = (export.path / "README.md").read_text().split("```python\n")[1].split("```")[0]
    np.save(tmp_path / "image.npy", image)
    found = {}
    with contextlib.chdir(export.path):
        exec(code.replace("image.npy", str(tmp_path / "image.npy")), found)
    assert found["labels"].shape[0] == 1


def test_other_images_are_refused(run: Any, tmp_path: Path) -> None:
    _, bundle, (channels, dtype, _) = run
    predictor = Predictor(bundle)
    with pytest.raises(DataError, match=f"has 3 channels of uint8, and the network's images {channels} channels of"):
        predictor(np.zeros((*SIZE, 3), np.uint8))
    Image.new("RGB", (48, 32)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=rf"a\.png has 3 channels of uint8, .*{channels} channels of {dtype}"):
        predictor(tmp_path / "a.png")
    other = folder(tmp_path / "other", channels + 1, dtype, ".npy", count=3)
    with pytest.raises(DataError, match=f"have {channels + 1} channels of {dtype}, but the network takes {channels}"):
        evaluate_bundle(bundle, other, source="folder", split="train")
    with pytest.raises(LithesegError, match="a camera or a video gives RGB of 8 bits"):
        bundle.header.images.require_rgb8("a camera or a video")
