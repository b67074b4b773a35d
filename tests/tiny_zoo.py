"""A zoo of one tiny model and an export of it, made by the script that makes the real one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from tiny_export import CLASSES, tiny_bundle

from litheseg.deploy.export import export_bundle
from litheseg.models.bundle import load_bundle

METRICS = {"1": {"miou": 0.75, "iou": [0.9, 0.6, None]}, "0.5": {"miou": 0.5, "iou": [0.7, 0.3, None]}}
ABOUT = {"what": "streets, tiny", "licence": "Apache-2.0", "encoder": "none", "made_by": "litheseg train --recipe tiny"}


def publisher() -> ModuleType:
    """The script `zoo/publish.py`."""
    spec = importlib.util.spec_from_file_location("publish", Path(__file__).parents[1] / "zoo" / "publish.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_zoo(folder: Path) -> Path:
    """`folder/zoo`, with `tiny` and its export `onnx`; "tiny" must be in `MODELS`."""
    publish, zoo = publisher(), folder / "zoo"
    zoo.mkdir(parents=True)
    (zoo / "index.json").write_text('{"zoo": 1, "models": {}}')
    provenance = {"data": "noise", "data_licence": "CC0", "path": "/home/someone/data/noise"}
    recipe = {"data": {"root": "/home/someone/data/noise", "size": [24, 32]}}
    tiny_bundle(folder / "trained.safetensors", metrics=METRICS, provenance=provenance, recipe=recipe)
    publish.model(folder / "trained.safetensors", "tiny", **ABOUT, zoo=zoo)
    bundle = load_bundle(zoo / "tiny.safetensors")
    export_bundle(bundle, folder / "export", size=None, check=False)
    publish.export(folder / "export", "tiny", "onnx", zoo=zoo)
    assert bundle.header.classes == CLASSES
    return zoo
