"""The demo in miniature; its real size is tried by `make demo`."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tiny_training import tiny

from litheseg.cli import main
from litheseg.demo import demo_photographs, run_demo
from litheseg.errors import TrainingError

SMALL = [
    "--data.options={train: 4, val: 2, size: [32, 48]}",
    f"--model.name={tiny.__name__}",
    "--model.args={}",
    "--model.divisor=2",
    "--data.batch_size=2",
    "--trainer.epochs=1",
    "--trainer.threads=1",
]


def test_demo_trains_reports_and_reuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, photographs = tmp_path / "demo", tmp_path / "photographs"
    photographs.mkdir()
    Image.new("RGB", (96, 64), "grey").save(photographs / "fog.png")
    assert main(["demo", "--output", str(folder), "--photographs", str(photographs), *SMALL]) == 0
    text = capsys.readouterr().out
    for word in ("mIoU", "boundary IoU", "MACs", "ms", "0.6", "0.25", "report.html", "demo-photographs.png"):
        assert word in text
    with Image.open(tmp_path / "demo-photographs.png") as picture:
        assert picture.width > 5 * 96  # the photograph and four widths
    weights = (folder / "model.safetensors").stat().st_mtime_ns
    assert main(["demo", "--output", str(folder), *SMALL]) == 0
    assert "nothing was trained" in capsys.readouterr().out
    assert (folder / "model.safetensors").stat().st_mtime_ns == weights


def test_the_photographs_of_the_demo_are_in_a_checkout_with_their_licence() -> None:
    photographs = demo_photographs()
    assert len(photographs) >= 3
    licence = (photographs[0].parent / "README.md").read_text()
    assert all(photograph.name in licence for photograph in photographs)


def test_a_folder_without_photographs_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--output", str(tmp_path / "demo"), "--photographs", str(tmp_path / "none"), *SMALL]) == 2
    assert "none holds no image" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_force_begins_anew_but_spares_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("my only copy")
    with pytest.raises(TrainingError, match="left alone"):
        run_demo(tmp_path, SMALL, force=True)
    assert (tmp_path / "thesis.txt").exists()
    result = run_demo(tmp_path / "demo", SMALL, force=True)
    assert not result.reused and [row.width for row in result.rows] == [1.0, 0.75, 0.6, 0.5, 0.25]
