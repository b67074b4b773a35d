from __future__ import annotations

import csv
from pathlib import Path

import pytest

from litheseg.errors import LithesegError, TrainingError
from litheseg.training.storage import AtomicCheckpoints, Curves, read_checkpoint


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_one_row_per_step(tmp_path: Path) -> None:
    curves = Curves(tmp_path / "metrics.csv", keep=False)
    curves.log_metrics({"val/miou": 0.5, "epoch": 0}, step=3)
    curves.log_metrics({"train/loss": 2.0, "epoch": 0}, step=3)
    curves.save()
    curves.log_metrics({"train/loss": 1.0, "epoch": 1}, step=7)
    curves.finalize("success")
    first, second = rows(tmp_path / "metrics.csv")
    assert list(first) == ["epoch", "step", "train/loss", "val/miou"]
    assert (first["epoch"], first["step"], first["val/miou"]) == ("0", "3", "0.5")
    assert (second["epoch"], second["train/loss"], second["val/miou"]) == ("1", "1.0", "")


def test_a_resumed_run_goes_on_with_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    for keep, step, loss in ((False, 3, 3.0), (True, 7, 2.0), (True, 7, 2.5)):
        curves = Curves(path, keep=keep)
        curves.log_metrics({"loss": loss, "epoch": step // 4}, step=step)
        curves.save()
    assert [(row["epoch"], row["step"], row["loss"]) for row in rows(path)] == [("0", "3", "3.0"), ("1", "7", "2.5")]
    Curves(path, keep=False).save()
    assert len(rows(path)) == 2  # nothing new, nothing written


def test_curves_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(TrainingError, match=r"metrics\.csv: these learning curves"):
        Curves(tmp_path / "metrics.csv", keep=True)


def test_checkpoints_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "last.ckpt"
    files = AtomicCheckpoints()
    files.save_checkpoint({"epoch": 3}, path)
    assert read_checkpoint(path) == files.load_checkpoint(str(path)) == {"epoch": 3}
    files.remove_checkpoint(path)
    assert not path.exists()


def test_checkpoints_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LithesegError, match=r"cannot write .*last\.ckpt"):
        AtomicCheckpoints().save_checkpoint({}, tmp_path / "file" / "last.ckpt")


def test_checkpoints_that_hold_code_are_refused(tmp_path: Path) -> None:
    AtomicCheckpoints().save_checkpoint({"path": Path}, tmp_path / "bad.ckpt")
    with pytest.raises(TrainingError, match=r"bad\.ckpt is damaged"):
        read_checkpoint(tmp_path / "bad.ckpt")
