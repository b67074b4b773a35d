"""Demonstrate litheseg in a few minutes, offline: a trained network on photographs, then the training of a small one.

The first is of the zoo, and is drawn at each of its widths. The second learns procedural streets and runs at five
widths; that is what `litheseg train`, `profile` and `report` do, one after the other (`recipes/demo.yaml`).

Usage:
    >>> draw_photographs("runs/demo/photographs.png", demo_photographs())
    >>> result = run_demo("runs/demo")
    >>> [(row.width, row.miou) for row in result.rows]
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from litheseg.bundle.zoo import checkout_folder
from litheseg.errors import TrainingError
from litheseg.locks import folder_lock
from litheseg.models.bundle import load_bundle
from litheseg.report.card import WidthRow, width_rows
from litheseg.runtime.predictor import Predictor
from litheseg.runtime.profiling import profile
from litheseg.runtime.rgb import to_rgb
from litheseg.training.recipe import load_recipe

__all__ = ["ZOO_MODEL", "DemoResult", "demo_photographs", "draw_photographs", "run_demo"]

ZOO_MODEL = "zoo:camvid-lite0"


@dataclass(frozen=True)
class DemoResult:
    """What the demo leaves behind.

    Attributes:
        bundle: the model file.
        report: the HTML page.
        rows: accuracy and measured cost, the widest first.
        reused: whether a finished demo was found, so that nothing was trained.
    """

    bundle: Path
    report: Path
    rows: tuple[WidthRow, ...]
    reused: bool


def demo_photographs() -> list[Path]:
    """The photographs beside the zoo, free to be shared; none where litheseg was installed without its zoo."""
    zoo = checkout_folder()
    return sorted((zoo / "photos").glob("*.jpg")) if zoo else []


def draw_photographs(path: str | Path, photographs: Iterable[Path]) -> None:
    """Draw what the zoo's network sees on photographs, at each of its widths: nothing has to be trained for that.

    Args:
        path: the figure, .png or .svg.
        photographs: files, at least one. The network knows streets.

    Raises:
        LithesegError: no photograph, a file that is none, or no zoo.
    """
    from litheseg.report.plots import GalleryRow, gallery

    predictor = Predictor(ZOO_MODEL, threads=1)
    rows = []
    for photograph in photographs:
        image = to_rgb(photograph)
        predictions = {f"width {width:g}": predictor.predict_rgb(image, width=width) for width in predictor.widths}
        rows.append(GalleryRow(image, predictions=predictions))
    gallery(path, rows, predictor.classes)


def run_demo(
    output: str | Path = "runs/demo", overrides: Sequence[str] = (), *, force: bool = False, threads: int | None = None
) -> DemoResult:
    """Train (or go on, or only measure again where the training is done) and report.

    Args:
        output: folder of the run.
        overrides: changes of the recipe, as on the command line.
        force: begin anew, removing the folder of an earlier demo.
        threads: CPU threads while measuring milliseconds; by default PyTorch's own choice.

    Raises:
        TrainingError: the folder is not one of a demo.
        LithesegError: what `litheseg.training.train` raises.
    """
    from litheseg.report.run_report import report_run  # Lightning takes its time, which --help need not wait for
    from litheseg.training.run import train

    folder = Path(output)
    bundle = folder / "model.safetensors"
    if force and folder.exists():
        if not (folder / "recipe.yaml").exists():
            raise TrainingError(f"{folder} is not the folder of a run and is left alone; choose another --output")
        with folder_lock(folder):
            shutil.rmtree(folder)
    reused = bundle.exists()
    if not reused:
        train(load_recipe("demo", list(overrides)), folder, resume=True)
    loaded = load_bundle(bundle)
    costs = profile(loaded, threads=threads)
    report = report_run(folder, costs=costs, command="litheseg demo", title="litheseg demo")
    return DemoResult(bundle, report, width_rows(loaded.header, costs), reused)
