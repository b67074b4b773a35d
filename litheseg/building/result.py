"""A trained network for programs and notebooks: its scores, its frontier, pictures, and what can be made of it.

Usage:
    >>> result = litheseg.train("slimseg", data="data/camvid", size=(360, 480), minutes=60)
    >>> print(result.scores)
    >>> result.show("street.jpg").save("street.png")
    >>> result.fit("20ms", output="deployed").deployed
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from litheseg.budget import fit as budget
from litheseg.budget.fit_result import FitResult
from litheseg.bundle.cross_validation import CrossValidated, cross_validated
from litheseg.bundle.exported import Export
from litheseg.bundle.header import BundleHeader
from litheseg.bundle.model_file import read_model_file
from litheseg.bundle.verdicts import verdicts, worst_class
from litheseg.deploy.export import export_bundle
from litheseg.errors import DataError, LithesegError
from litheseg.files import atomic_path
from litheseg.masks.pictures import OverlayStyle, legend_strip, overlay, rgb_view
from litheseg.models.bundle import load_bundle
from litheseg.report.card import width_rows, width_table
from litheseg.report.plots import FrontierPoint, frontier
from litheseg.runtime.predictor import ImageLike, Predictor
from litheseg.runtime.rgb import to_pixels
from litheseg.tables import Table, html_table, terminal_table
from litheseg.values import parse_duration

if TYPE_CHECKING:
    import pandas

__all__ = ["BUILD_FILE", "BuildResult", "ScoreTable", "TrainedNetwork", "read_result"]

BUILD_FILE = "build.json"
_GAP = 8  # pixels between pictures
_WIDEST = 640  # pixels of one picture of several


class ScoreTable(Mapping[float, Mapping[str, Any]]):
    """Scores and costs by width, on val: `scores[0.5]["miou"]`; shown as a table, and what must be said of it below.

    Args:
        header: of the model.
    """

    def __init__(self, header: BundleHeader) -> None:
        self._header = header
        self._rows = {float(width): values for width, values in header.metrics.items()}

    def __getitem__(self, width: float) -> Mapping[str, Any]:
        """Of one width: miou, iou by class, boundary_iou, params, macs."""
        return self._rows[width]

    def __iter__(self) -> Iterator[float]:
        """The widths, the widest first."""
        return iter(sorted(self._rows, reverse=True))

    def __len__(self) -> int:
        """Widths."""
        return len(self._rows)

    def worst_class(self, width: float) -> tuple[str, float]:
        """Name and IoU of the class with the lowest IoU."""
        worst = worst_class(self._header.classes.names, self[width]["iou"])
        assert worst is not None, "labels hold some class"
        return worst

    def to_pandas(self) -> pandas.DataFrame:
        """A row for each width, a column for each score, cost and class.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        import pandas

        names = self._header.classes.names
        rows = {}
        for width in self:
            plain = {name: value for name, value in self[width].items() if not isinstance(value, (list, tuple, dict))}
            rows[width] = plain | {f"iou {name}": iou for name, iou in zip(names, self[width]["iou"], strict=True)}
        return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("width")

    @property
    def _table(self) -> Table:
        return width_table(width_rows(self._header))

    def __repr__(self) -> str:
        console = Console(width=120, force_terminal=False, color_system=None)
        with console.capture() as text:
            console.print(terminal_table(self._table))
        lines = [line.rstrip() for line in text.get().splitlines()]
        return "\n".join([*filter(None, lines), *(f"warning: {sentence}" for sentence in verdicts(self._header))])

    def _repr_html_(self) -> str:
        warnings = [f"<p>warning: {escape(sentence)}</p>" for sentence in verdicts(self._header)]
        return "\n".join([html_table(self._table), *warnings])


@dataclass(frozen=True, repr=False)
class TrainedNetwork:
    """A network that was trained, and the folder that holds all of it.

    Attributes:
        folder: of the run.
        bundle: the model file.
    """

    folder: Path
    bundle: Path

    @cached_property
    def scores(self) -> ScoreTable:
        """By width, on val."""
        return ScoreTable(read_model_file(self.bundle).header)

    @cached_property
    def predictor(self) -> Predictor:
        """What `predict` and `show` run."""
        return Predictor(str(self._source))

    def __repr__(self) -> str:
        return "\n".join([f"{type(self).__name__} in {self.folder}", repr(self.scores), *self._words])

    def _repr_html_(self) -> str:
        title = f"<p>{type(self).__name__} in <code>{escape(str(self.folder))}</code></p>"
        return "\n".join([title, self.scores._repr_html_(), *(f"<p>{escape(line)}</p>" for line in self._words)])

    @property
    def _source(self) -> Path:
        return self.bundle

    @property
    def _words(self) -> tuple[str, ...]:
        """What is to be said below the scores."""
        return ()

    def predict(self, image: ImageLike, width: float | None = None) -> np.ndarray:
        """The mask of an image, uint8 H x W of class ids.

        Args:
            image: a file, an array H x W x 3 (RGB), or a Pillow image.
            width: to run at; by default the widest that there is.

        Raises:
            WidthError: a width that the model does not have.
            DataError: an image that cannot be read.
        """
        return self.predictor(image, width=width)

    def show(self, images: ImageLike | Sequence[ImageLike], widths: Sequence[float] | None = None) -> Image.Image:
        """One row for each image: itself, and its overlay at each width; the colours of the classes stand below.

        Args:
            images: a file, an array or a Pillow image; or a list of such.
            widths: to show; by default the widest and the narrowest.

        Raises:
            DataError: an image that cannot be read, or an empty list.
            WidthError: a width that the model does not have.
        """
        several: Sequence[Any] = images if isinstance(images, (list, tuple)) else [images]
        if not several:
            raise DataError("no images to show; give a file, or a list of files")
        predictor = self.predictor
        widths = widths or tuple(dict.fromkeys((predictor.widths[0], predictor.widths[-1])))
        rows, seen = [], np.zeros(256, np.int64)
        for image in several:
            pixels = to_pixels(image, predictor.header.images)
            masks = [predictor(pixels, width=width) for width in widths]
            seen += sum(np.bincount(mask.ravel(), minlength=256) for mask in masks)
            rows.append([rgb_view(pixels), *(overlay(pixels, mask, predictor.classes) for mask in masks)])
        grid = _grid(["image", *(f"width {width:g}" for width in widths)], rows)
        shown = [index for index in OverlayStyle().painted(predictor.classes) if seen[index]]
        return Image.fromarray(np.concatenate([grid, legend_strip(predictor.classes, shown, grid.shape[1])]))

    def frontier(self) -> Image.Image:
        """Accuracy against cost, one point for each width."""
        points = [
            FrontierPoint(width, values["macs"], values["miou"], worst=self.scores.worst_class(width))
            for width, values in self.scores.items()
            if values.get("miou") is not None
        ]
        path = self.folder / "figures" / "frontier.png"
        frontier(path, {self.folder.name: points}, cost_label="MACs of one image", score_label="mIoU (%)")
        return Image.open(path)

    def fit(self, limit: str | float, *, output: str | Path | None = None, **options: Any) -> FitResult:
        """The most accurate network within a budget, exported.

        In the run's own folder it replaces one that is there.

        Args:
            limit: milliseconds of one image, or a text such as 20ms or 15fps.
            output: folder of the export; by default named after the budget, in the run's folder.
            options: of `litheseg.budget.fit.fit`.

        Raises:
            BudgetError: nothing is that fast.
        """
        milliseconds = parse_duration(limit) if isinstance(limit, str) else limit
        own = {"output": self.folder / f"fit-{milliseconds:g}ms", "force": True}
        return budget.fit(
            self.bundle, budget=milliseconds, **((own if output is None else {"output": output}) | options)
        )

    def export(self, output: str | Path, **options: Any) -> Export:
        """All widths as ONNX, or in the formats that are named; see `litheseg.deploy.export.export_bundle`."""
        return export_bundle(load_bundle(self.bundle), output, **options)

    def save(self, path: str | Path) -> Path:
        """Copy the model file.

        Raises:
            LithesegError: it cannot be written.
        """
        target = Path(path)
        target = target if target.suffix == ".safetensors" else target.with_name(target.name + ".safetensors")
        with atomic_path(target) as temporary:
            shutil.copyfile(self.bundle, temporary)
        return target


@dataclass(frozen=True, repr=False)
class BuildResult(TrainedNetwork):
    """What `litheseg.build` made: the trained network, and the one that was chosen of it.

    Attributes:
        deployed: folder of the export, or a model file: what to take to the box.
        promise: of it: width, size, precision, runtime, threads, milliseconds, miou.
        sentence: the promise in words.
    """

    deployed: Path
    promise: Mapping[str, Any]
    sentence: str

    @cached_property
    def cross_validated(self) -> Mapping[float, CrossValidated]:
        """By width: how networks that were trained the same way score on images that they did not see.

        Empty where the build had no folds, as with 50 images and more.
        """
        return cross_validated(read_model_file(self.bundle).header)

    @property
    def _source(self) -> Path:
        return self.deployed

    @property
    def _words(self) -> tuple[str, ...]:
        checked = self.cross_validated.get(self.promise["width"])
        expected = () if checked is None else (f"to expect: {checked}",)
        return f"chosen: {self.sentence}", *expected, f"deploy: {self.deployed}"

    def frontier(self) -> Image.Image:
        """What was measured: accuracy against milliseconds, and the budget."""
        return Image.open(self.folder / "frontier.png")


def read_result(folder: str | Path) -> BuildResult:
    """The result of a build that is done.

    Raises:
        LithesegError: the folder holds none.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / BUILD_FILE).read_text(encoding="utf-8"))
        model = folder / "training" / "model.safetensors"
        return BuildResult(folder, model, folder / content["deploy"], content["promise"], content["sentence"])
    except (OSError, ValueError, KeyError) as error:
        raise LithesegError(f"{folder} holds no finished build; the same command goes on with one") from error


def _grid(titles: Sequence[str], rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Pictures in rows, uint8 H W 3, all columns as wide as the first picture, with titles above them."""
    width = min(rows[0][0].shape[1], _WIDEST)
    heights = [round(row[0].shape[0] * width / row[0].shape[1]) for row in rows]
    letter = max(11, width // 20)
    font, top = ImageFont.load_default(letter), letter * 3 // 2
    size = (len(titles) * (width + _GAP) - _GAP, top + sum(heights) + _GAP * (len(rows) - 1))
    whole = Image.new("RGB", size, "white")
    for column, title in enumerate(titles):
        ImageDraw.Draw(whole).text((column * (width + _GAP), letter), title, "black", font, anchor="ls")
    for row, height in zip(rows, heights, strict=True):
        for column, pixels in enumerate(row):
            whole.paste(Image.fromarray(pixels).resize((width, height)), (column * (width + _GAP), top))
        top += height + _GAP
    return np.asarray(whole)
