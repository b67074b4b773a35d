from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from litheseg.errors import DataError, LithesegError
from litheseg.masks.classes import Classes
from litheseg.report.plots import FrontierPoint, GalleryRow, frontier, gallery, learning_curves, read_history

POINTS = [FrontierPoint(1.0, 4e9, 0.68), FrontierPoint(0.5, 1e9, 0.61)]
LABELS = {"cost_label": "MACs", "score_label": "mIoU (%)"}
CLASSES = Classes(names=("road", "car"), colors=((200, 0, 0), (0, 0, 100)))
LOG = """epoch,step,train/loss,val/miou@0.5,val/miou@1.0
0,0,4.0,,
0,1,2.0,,
0,1,,0.2,0.3
1,2,1.0,,
1,3,nan,,
1,3,,0.4,0.5
"""


def row(**changes: object) -> GalleryRow:
    mask = np.zeros((6, 8), dtype=np.uint8)
    parts = {"image": np.zeros((6, 8, 3), np.uint8), "target": mask, "predictions": {"width 1": mask}, "title": "a"}
    return GalleryRow(**(parts | changes))  # type: ignore[arg-type]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.csv"
    path.write_text(LOG)
    return path


@pytest.mark.parametrize("log_x", [False, True])
def test_frontier_names_every_width_and_model(tmp_path: Path, log_x: bool) -> None:
    path = tmp_path / "new" / "f.svg"
    frontier(path, {"lithe": POINTS, "slimseg": POINTS[:1]}, log_x=log_x, title="CamVid <val>", **LABELS)
    text = path.read_text()
    # Text in the SVG is drawn as outlines, each preceded by a comment that holds it.
    for word in ("0.5x", "1x", "lithe", "slimseg", "MACs", "mIoU (%)", "CamVid &lt;val&gt;"):
        assert f"<!-- {word} -->" in text


def test_frontier_shows_the_worst_class_below(tmp_path: Path) -> None:
    points = [
        FrontierPoint(width, cost=9 * width, score=0.6 * width, worst=(name, 0.1 * width))
        for width, name in ((1.0, "pole"), (0.5, "pole"), (0.25, "bird"))
    ]
    frontier(tmp_path / "f.svg", {"lithe": points}, cost_label="ms", score_label="mIoU (%)")
    text = (tmp_path / "f.svg").read_text()
    assert text.count("worst: pole") == text.count("worst: bird") == 1, "named where it changes"


def test_frontier_shows_a_limit(tmp_path: Path) -> None:
    frontier(tmp_path / "f.svg", {"lithe": POINTS}, limit=(2e9, "budget 2G"), **LABELS)
    assert "<!-- budget 2G -->" in (tmp_path / "f.svg").read_text()


def test_figures_are_repeatable_and_leave_nothing_beside(tmp_path: Path) -> None:
    for suffix in ("svg", "png"):
        one, two = tmp_path / f"1.{suffix}", tmp_path / f"2.{suffix}"
        for path in (one, two):
            frontier(path, {"lithe": POINTS}, **LABELS)
        assert one.read_bytes() == two.read_bytes()
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    ("curves", "log_x", "message"),
    [
        ({}, False, "no points"),
        ({"lithe": []}, False, "no points"),
        ({"lithe": [FrontierPoint(1, 1, float("nan"))]}, False, "not finite"),
        ({"lithe": [FrontierPoint(1, 0, 0.5)]}, True, "logarithmic"),
    ],
)
def test_frontier_refuses_what_cannot_be_drawn(
    tmp_path: Path, curves: dict[str, list[FrontierPoint]], log_x: bool, message: str
) -> None:
    with pytest.raises(LithesegError, match=message):
        frontier(tmp_path / "f.png", curves, log_x=log_x, **LABELS)
    assert not list(tmp_path.iterdir())


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LithesegError, match=r"\.png or \.svg"):
        frontier(tmp_path / "f.pdf", {"lithe": POINTS}, **LABELS)


def test_history_averages_epochs_and_skips_empty_and_nan(log: Path) -> None:
    axis, history = read_history(log)
    assert axis == "epoch"
    assert history["train/loss"] == [(0.0, 3.0), (1.0, 1.0)]
    assert history["val/miou@1.0"] == [(0.0, 0.3), (1.0, 0.5)]


def test_history_of_one_epoch_counts_steps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("\n".join(LOG.splitlines()[:4]))
    axis, history = read_history(path)
    assert (axis, history["train/loss"]) == ("step", [(0.0, 4.0), (1.0, 2.0)])


@pytest.mark.parametrize("content", [None, b"", b"epoch,step\n", b"a,b\n1,2\n", b"\xff\xfe\x00"])
def test_history_refuses_other_files(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "metrics.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"metrics\.csv"):
        read_history(path)


def test_learning_curves_draw_a_panel_per_quantity_and_a_line_per_width(tmp_path: Path, log: Path) -> None:
    path = tmp_path / "curves.svg"
    learning_curves(path, log)
    text = path.read_text()
    assert text.index("<!-- train/loss -->") < text.index("<!-- val/miou -->")
    assert text.index("<!-- 1.0x -->") < text.index("<!-- 0.5x -->")


def test_learning_curves_of_nothing_say_so(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss\n0,0,nan\n")
    with pytest.raises(LithesegError, match="no finite values"):
        learning_curves(tmp_path / "c.png", path)


def test_gallery_has_room_for_every_row_and_column(tmp_path: Path) -> None:
    gallery(tmp_path / "1.png", [row()], CLASSES)
    gallery(tmp_path / "2.png", [row(), row()], CLASSES)
    (width, height), (width_2, height_2) = (Image.open(tmp_path / f"{n}.png").size for n in (1, 2))
    assert width == width_2 and height_2 > 1.4 * height


def test_gallery_names_columns_and_colours(tmp_path: Path) -> None:
    mask = np.ones((6, 8), dtype=np.uint8)
    gallery(tmp_path / "g.svg", [row(predictions={"w 1": mask, "w 0.5": mask})], CLASSES)
    text = (tmp_path / "g.svg").read_text()
    for word in ("image", "truth", "w 1", "w 0.5", "errors, w 1", "road", "car", "wrong", "ignored", "a"):
        assert f"<!-- {word} -->" in text


def test_gallery_of_images_without_labels_has_neither_truth_nor_errors(tmp_path: Path) -> None:
    mask = np.ones((6, 8), dtype=np.uint8)
    gallery(tmp_path / "g.svg", [row(target=None, predictions={"w 1": mask})], CLASSES)
    text = (tmp_path / "g.svg").read_text()
    assert "<!-- w 1 -->" in text and "<!-- truth -->" not in text and "<!-- wrong -->" not in text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([row(target=np.zeros((3, 3), np.uint8))], "resize"),
    ],
)
def test_gallery_refuses_what_does_not_fit(tmp_path: Path, rows: list[GalleryRow], message: str) -> None:
    with pytest.raises(LithesegError, match=message):
        gallery(tmp_path / "g.png", rows, CLASSES)
    assert not list(tmp_path.iterdir())
