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

from litheseg.data.streets import Streets
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
    "--mgd.deep.model={name: tiny, args: {dropout: 0}}",
    "--mgd.wide.model={name: tiny, args: {norm: group, dropout: 0}}",
)
BUNDLES = ("--mgd.deep.bundle={teacher}", "--mgd.wide.bundle={teacher}")
KD = (*FEW, "--data.unlabelled=rest", "--teacher.kind=frozen", "--teacher.bundle={teacher}")
GROUPED = ("--model.efficient.groups=4", "--model.efficient.where=body.0", "--model.efficient.shuffle=false")
ELASTIC = "--widths.divisor=2"

CASES: dict[str, tuple[str, ...]] = {
    # the recipes
    "supervised": ("supervised",),
    "slimseg": ("slimseg", ELASTIC),
    "demo": ("demo",),
    "mgd": ("mgd", *FEW, *BUNDLES),
    "lithe": ("lithe", *FEW, *TINY_TEACHERS, "--mgd.teacher_epochs=2", ELASTIC),
    "cps": ("cps", *FEW),
    "mean-teacher": ("mean-teacher", *FEW),
    "unimatch": ("unimatch", *FEW, "--loss.confidence=0.2"),
    "gradual-grouping": ("gradual-grouping", *GROUPED, "--grouping.start=0.2"),
    # benchmarks/slimseg.yaml and benchmarks/ablation.yaml
    "one-narrow-width": ("supervised", "--widths.values=[0.5]"),
    "no-aux": ("supervised", "--loss.aux=0"),
    "slimmable": ("slimseg", ELASTIC, "--loss.boundary_band=0", "--loss.kl=0", "--teacher.kind=none"),
    "widest": ("slimseg", ELASTIC, "--loss.boundary_band=0", "--teacher.kind=widest"),
    "boundary-head": ("slimseg", ELASTIC, "--loss.boundary_band=0", "--loss.boundary_head=0.5", "--loss.kl=3"),
    # benchmarks/mgd.yaml
    "kd": ("supervised", *KD, "--loss.kl=1"),
    "channel-wise": ("supervised", *KD, "--loss.channel_wise=3"),
    "pairwise": ("supervised", *KD, "--loss.pairwise=1"),
    "intra-class": ("supervised", *KD, "--loss.intra_class=200"),
    "rising-cps": ("cps", *FEW, "--loss.pseudo=1", "--loss.warmup=0.5"),
    "pixel-labelled": (
        "mgd",
        *FEW,
        *BUNDLES,
        "--data.unlabelled=null",
        *(
            "--mgd.deep.pixel_unlabelled=0",
            "--mgd.wide.pixel_unlabelled=0",
            "--mgd.deep.image=0",
            "--mgd.wide.region=0",
        ),
    ),
    "mgd-deep-only": (
        "mgd",
        *FEW,
        *BUNDLES,
        *("--mgd.wide.pixel_labelled=0", "--mgd.wide.pixel_unlabelled=0", "--mgd.wide.region=0"),
    ),
    # benchmarks/grouping.yaml
    "one-shot": ("gradual-grouping", *GROUPED, "--grouping.shape=step", "--grouping.start=0.5", "--grouping.length=0"),
    "assigned": ("gradual-grouping", *GROUPED, "--grouping.assignment=magnitude", "--grouping.refresh=1"),
    "distilled": (
        "gradual-grouping",
        *GROUPED,
        *("--teacher.kind=frozen", "--teacher.bundle={teacher}", "--loss.kl=1"),
    ),
    "slimmable-and-gradual": ("slimseg", ELASTIC, *GROUPED, "--grouping.shape=cosine", "--grouping.start=0.2"),
    # what the documents name besides
    "sandwich": ("slimseg", "--widths.sampling=sandwich", "--widths.samples=1", ELASTIC),
    "ohem": ("supervised", "--loss.main=ohem", "--loss.ohem_threshold=0.3"),
    "region-losses": ("supervised", "--loss.dice=1", "--loss.lovasz=1"),
    "median-weights": ("slimseg", ELASTIC, "--loss.class_weights=median"),
    "no-weights": ("supervised", "--loss.class_weights=none", "--loss.kl=0"),
    "ema-within": ("slimseg", ELASTIC, "--teacher.kind=ema", "--loss.temperature=2"),
    "soft-labels": ("mgd", *FEW, *BUNDLES, "--mgd.labels=soft", "--mgd.warmup=0.5"),
    "sure-labels": ("mgd", *FEW, *BUNDLES, "--mgd.threshold=0.12", "--mgd.deep.boundary=1", "--mgd.grid=3"),
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
