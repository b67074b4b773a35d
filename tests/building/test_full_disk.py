"""A disk that fills while a build is under way: one error that says what to do, and the same command goes on."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any

import pytest
from test_whole_build import FIELDS, build, data

from litheseg import files
from litheseg.building.result import BuildResult
from litheseg.errors import LithesegError
from litheseg.files import names_full_disk

__all__ = ["build", "data"]

SOME = {"wishes.json", "training/checkpoints/last.ckpt", "fit.json"}


def filling(folder: Path, full: list[str], only: set[str]) -> Any:
    """A `_sync_file` that fails once for each file, or for those that are named; `full` holds the names."""
    sync = files._sync_file

    def fail(path: Path) -> None:
        name = re.sub(r"\.([^./]+)\.[0-9a-f]{8}", r"\1", path.relative_to(folder).as_posix())
        name = re.sub(r"[0-9a-f]{12,}", "*", name)
        if name not in full and (not only or name in only):
            full.append(name)
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        sync(path)

    return fail


@pytest.mark.parametrize("only", [SOME, pytest.param(set(), marks=pytest.mark.slow)], ids=["some", "all"])
def test_a_build_goes_on_once_there_is_space(
    build: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only: set[str]
) -> None:
    full, out, result = list[str](), tmp_path / "out", None
    monkeypatch.setenv("LITHESEG_CACHE", str(out / "cache"))
    monkeypatch.setattr(files, "_sync_file", filling(out, full, only))
    while result is None:
        tried = len(full)
        try:
            result = build(data, *FIELDS, "--trainer.epochs=1", minutes=30.0, budget=1000.0)
        except LithesegError as error:
            assert len(full) == tried + 1, "one after the other"
            assert str(error).startswith(f"the disk is full: cannot write {out}") and Path(full[-1]).name in str(error)
            assert str(error).endswith(f"is kept in {out}: free some space, and the same command goes on")
        assert not [path for path in out.rglob(".*") if path.is_file()], "nothing half-written is left"
    assert isinstance(result, BuildResult) and only <= set(full) and len(full) >= len(only)


def test_what_a_full_disk_is_called() -> None:
    def raised(cause: BaseException) -> LithesegError:
        try:
            raise LithesegError("cannot write a.png") from cause
        except LithesegError as error:
            return error

    assert names_full_disk(raised(OSError(errno.ENOSPC, "")))
    assert names_full_disk(raised(RuntimeError("I/O error: No space left on device (os error 28)")))
    assert not names_full_disk(raised(PermissionError(errno.EACCES, ""))) and not names_full_disk(None)
