"""Every shipped recipe, and what benchmarks and documents change in one, gives the losses that it always gave.

Losses of each step and width, on a tiny network, are compared with those in `golden_losses.json`. To record them anew
after a change that means to change them: `python tests/training/test_golden_losses.py`, with tests/ on the path.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from pathlib import Path

import pytest
import tiny_training
import torch

from litheseg.data.sources.streets import Streets
from litheseg.models.bundle import BundleHeader, save_bundle
from litheseg.training import load_recipe, recipe_names, train

GOLDEN = Path(__file__).with_name("golden_losses.json")
SHORT = (  # one step per epoch, so that the learning curves hold each step's losses
    "--model.name=tiny",
    "--model.args={dropout: 0}",
    "--data.source=streets",
    "--data.options={train: 8, val: 2, size: [32, 32]}",
    "--data.batch_size=2",
    "--data.steps=1",
    "--trainer.epochs=4",
    "--trainer.val_every=4",
    "--trainer.accelerator=cpu",
    "--trainer.threads=1",
    "--trainer.loggers=[csv]",
    "--trainer.baseline=false",
    "--optimizer.lr=0.01",
)
FEW = ("--data.labelled=4", "--data.absent_classes=true")
TINY_TEACHERS = (
    "--teachers.deep={kind: frozen, epochs: 2, model: {name: tiny, args: {dropout: 0}}}",
    "--teachers.wide={kind: frozen, epochs: 2, model: {name: tiny, args: {norm: group, dropout: 0}}}",
)
BUNDLES = ("--teachers.deep.bundle={teacher}", "--teachers.wide.bundle={teacher}")
KD = (*FEW, "--data.unlabelled=rest", "--teachers.deep={kind: frozen, bundle: {teacher}}")
GROUPED = ("--model.efficient.groups=4", "--model.efficient.where=body.0", "--model.efficient.shuffle=false")
ELASTIC = "--model.divisor=2"

CASES: dict[str, tuple[str, ...]] = {
    # the recipes
    "supervised": ("supervised",),
    "slimseg": ("slimseg", ELASTIC),
    "demo": ("demo",),
    "mgd": ("mgd", *FEW, *BUNDLES),
    "lithe": ("lithe", *FEW, *TINY_TEACHERS, ELASTIC),
    "cps": ("cps", *FEW),
    "mean-teacher": ("mean-teacher", *FEW),
    "unimatch": ("unimatch", *FEW, "--objectives.pseudo.confidence=0.2", "--objectives.perturbed.confidence=0.2"),
    "label-assisted": ("label-assisted",),
    "unimatch-v2": ("unimatch-v2", *FEW, "--objectives.pseudo.confidence=0.2"),
    "gradual-grouping": ("gradual-grouping", *GROUPED, "--grouping.start=0.2"),
    # benchmarks/slimseg.yaml and benchmarks/ablation.yaml
    "one-narrow-width": ("supervised", "--widths=[0.5]"),
    "no-aux": ("supervised", "--objectives.aux=null"),
    "slimmable": ("slimseg", ELASTIC, "--objectives.band=null", "--objectives.kl=null", "--teachers.wider=null"),
    "widest": ("slimseg", ELASTIC, "--objectives.band=null", "--teachers.wider.kind=widest"),
    "boundary-head": (
        "slimseg",
        ELASTIC,
        "--objectives.band=null",
        "--objectives.head={loss: boundary-head, weight: 0.5}",
        "--objectives.kl.weight=3",
    ),
    # benchmarks/mgd.yaml
    "kd": ("supervised", *KD, "--objectives.kl={loss: kl, teacher: deep}"),
    "channel-wise": ("supervised", *KD, "--objectives.cwd={loss: channel-wise, teacher: deep, weight: 3}"),
    "pairwise": ("supervised", *KD, "--objectives.pairs={loss: pairwise, teacher: deep}"),
    "intra-class": ("supervised", *KD, "--objectives.intra={loss: intra-class, teacher: deep, weight: 200}"),
    "rising-cps": ("cps", *FEW, "--objectives.pseudo.weight=1", "--objectives.pseudo.warmup=0.5"),
    "pixel-labelled": (
        "mgd",
        *FEW,
        *BUNDLES,
        "--data.unlabelled=null",
        "--objectives.image=null",
        "--objectives.region=null",
    ),
    "mgd-deep-only": (
        "mgd",
        *FEW,
        *BUNDLES,
        *("--objectives.pixel-wide=null", "--objectives.region=null", "--teachers.wide=null"),
    ),
    # benchmarks/grouping.yaml
    "one-shot": ("gradual-grouping", *GROUPED, "--grouping.shape=step", "--grouping.start=0.5", "--grouping.length=0"),
    "assigned": ("gradual-grouping", *GROUPED, "--grouping.assignment=magnitude", "--grouping.refresh=1"),
    "distilled": (
        "gradual-grouping",
        *GROUPED,
        *("--teachers.dense={kind: frozen, bundle: {teacher}}", "--objectives.kl={loss: kl, teacher: dense}"),
    ),
    "slimmable-and-gradual": ("slimseg", ELASTIC, *GROUPED, "--grouping.shape=cosine", "--grouping.start=0.2"),
    # what the documents name besides
    "sandwich": ("slimseg", "--sandwich=1", ELASTIC),
    "ohem": ("supervised", "--objectives.labels={loss: ohem, threshold: 0.3}"),
    "region-losses": ("supervised", "--objectives.dice.loss=dice", "--objectives.lovasz.loss=lovasz"),
    "median-weights": (
        "slimseg",
        ELASTIC,
        *(f"--objectives.{name}.class_weights=median" for name in ("labels", "aux", "band")),
    ),
    "no-weights": ("supervised", "--objectives.labels.class_weights=none", "--objectives.aux.class_weights=none"),
    "ema-within": ("slimseg", ELASTIC, "--teachers.wider.kind=ema", "--objectives.kl.temperature=2"),
    "soft-labels": (
        "mgd",
        *FEW,
        *BUNDLES,
        *("--objectives.pixel-deep={loss: kl, teacher: deep}", "--objectives.pixel-wide={loss: kl, teacher: wide}"),
        *(f"--objectives.{name}.warmup=0.5" for name in ("pixel-deep", "pixel-wide", "image", "region")),
    ),
    "sure-labels": (
        "mgd",
        *FEW,
        *BUNDLES,
        "--objectives.pixel-deep.confidence=0.12",
        "--objectives.pixel-wide.confidence=0.12",
        "--objectives.pseudo-band={loss: pseudo-band, teacher: deep, confidence: 0.12}",
        "--objectives.region.grid=3",
    ),
}


def losses(case: str, folder: Path) -> dict[str, list[float]]:
    """Loss of each step by width, and by network where there are two."""
    teacher = folder / "teacher.safetensors"
    if not teacher.exists():
        torch.manual_seed(1)
        classes = Streets(train=1, val=1, size=(32, 32)).classes
        model = tiny_training.tiny(len(classes), dropout=0.0, aux_head=False)
        save_bundle(teacher, model, BundleHeader({"name": "tiny", "args": {"dropout": 0.0}}, classes))
    name, *overrides = CASES[case]
    overrides = [part.replace("{teacher}", str(teacher)) for part in overrides]
    train(load_recipe(name, [*SHORT, *overrides]), folder / case)
    with (folder / case / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/loss@0.5") or row.get("train/loss@1")]
    names = sorted(name for name in rows[0] if name.startswith("train/") and "loss@" in name)
    return {name: [round(float(row[name] or "nan"), 5) for row in rows] for name in names}


def test_every_recipe_is_here() -> None:
    assert set(recipe_names()) <= CASES.keys() == json.loads(GOLDEN.read_text()).keys()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_losses_are_as_they_were(case: str, tmp_path: Path) -> None:
    found, golden = losses(case, tmp_path), json.loads(GOLDEN.read_text())[case]
    assert found.keys() == golden.keys()
    for name, values in golden.items():
        assert found[name] == pytest.approx(values, rel=1e-3, nan_ok=True), name


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        content = {case: losses(case, Path(work)) for case in sys.argv[1:] or CASES}
    lines = [f"{json.dumps(case)}: {json.dumps(values)}" for case, values in content.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
