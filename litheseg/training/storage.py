"""What a run writes while it goes on, each file whole or absent: checkpoints and the learning curves.

Lightning's own writer moves a checkpoint over from the system's temporary folder, which on another disk is a copy that
a kill can cut in two; its CSV logger deletes the curves of a run that is resumed.

Usage:
    >>> Trainer(plugins=[AtomicCheckpoints()], logger=[Curves(folder / "metrics.csv", keep=resumed)])
"""

from __future__ import annotations

import csv
import io
import re
import threading
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from litheseg.errors import LithesegError, TrainingError
from litheseg.files import atomic_path

__all__ = ["AtomicCheckpoints", "Curves", "errors_of_writers_once", "read_checkpoint", "remove_drafts"]

_DYING = 5.0  # seconds
_DRAFT = re.compile(r"\.\w+\.[0-9a-f]{8}\.(ckpt|csv|safetensors|yaml)")  # what `atomic_path` writes before it renames


class AtomicCheckpoints(CheckpointIO):
    """Checkpoints that are written beside their target and renamed; they hold no code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; the one before stays until the new one is whole.

        Raises:
            LithesegError: the disk is full, or the folder cannot be written to.
        """
        # Through memory: on a full disk, torch's own file writer fails with an error that does not say so.
        memory = io.BytesIO()
        torch.save(checkpoint, memory)
        # The view is closed also on failure: one that is left to the garbage collector crashes Python 3.12.1.
        with memory.getbuffer() as content, atomic_path(path) as temporary:
            temporary.write_bytes(content)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint into the CPU's memory; `weights_only` is always on."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU.

    Raises:
        TrainingError: it cannot be read.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error of its own: OSError, EOFError, RuntimeError, KeyError, ...
        raise TrainingError(
            f"{path} is damaged and cannot be resumed from ({error.__class__.__name__}); delete the file to begin "
            "the run anew, or restore it from a copy"
        ) from error
    return content


def remove_drafts(*folders: Path) -> None:
    """Remove the unfinished files of a killed process; no other process may write there meanwhile.

    Args:
        folders: each; those below are left alone.
    """
    for folder in folders:
        for path in folder.glob(".*"):
            if _DRAFT.fullmatch(path.name):
                path.unlink()


@contextmanager
def errors_of_writers_once() -> Iterator[None]:
    """TensorBoard writes in a thread, whose errors the main thread raises too: leave out the thread's own traceback."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and _is_writer(args.thread)):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        for thread in threading.enumerate():
            if _is_writer(thread) and getattr(thread, "exception", None) is not None:
                thread.join(_DYING)  # the main thread may be ahead of it
        threading.excepthook = before


def _is_writer(thread: threading.Thread | None) -> bool:
    return type(thread).__module__.startswith("tensorboard.")


class Curves(Logger):
    """Logged numbers as a table: one row per step at which something was logged, so one per epoch.

    Args:
        path: of the CSV file.
        keep: go on with the rows that the file holds already; a step that is logged again takes its row's place.
    """

    def __init__(self, path: Path, *, keep: bool) -> None:
        super().__init__()
        self._path = path
        self._rows: dict[int, dict[str, Any]] = _read_rows(path) if keep and path.exists() else {}
        self._changed = False

    @property
    def name(self) -> str:
        """Of the logger."""
        return "curves"

    @property
    def version(self) -> str:
        """None is needed: there is one run per folder."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """They are in the run's recipe."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add numbers to a step's row."""
        row = self._rows.setdefault(int(step or 0), {})
        row.update({name: float(value) for name, value in metrics.items()})
        row["epoch"] = int(row.get("epoch", 0))
        self._changed = True

    @rank_zero_only
    def save(self) -> None:
        """Write the table if there is something new."""
        if not self._changed:
            return
        names = sorted({name for row in self._rows.values() for name in row} - {"epoch"})
        with atomic_path(self._path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["epoch", "step", *names])
            writer.writeheader()
            writer.writerows({"step": step, **self._rows[step]} for step in sorted(self._rows))
        self._changed = False

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left; after a failed run errors here are ignored, so that the run's own error is shown."""
        with suppress(LithesegError) if status == "failed" else nullcontext():
            self.save()


def _read_rows(path: Path) -> dict[int, dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            cells = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
        rows: dict[int, dict[str, Any]] = {}
        for row in cells:
            rows.setdefault(int(row.pop("step")), {}).update(row)
        return rows
    except (csv.Error, KeyError, OSError, TypeError, UnicodeDecodeError, ValueError) as error:
        raise TrainingError(f"{path}: these learning curves cannot be gone on with; move the file away") from error
