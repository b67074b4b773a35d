"""Run by `test_killed`: saves and exports in child processes that are killed, or that find the disk full.

Usage: python killed_writers.py FOLDER; prints one line of JSON per trial.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from tiny_export import build_tiny, randomise, tiny_bundle

from litheseg.bundle.exported import load_export
from litheseg.deploy.export import export_bundle
from litheseg.errors import LithesegError
from litheseg.models import MODELS
from litheseg.models.bundle import load_bundle, save_bundle

KILLED, FULL = (0.1, 0.4), (0, 2_000)  # seconds; bytes


def in_child(work: Callable[[], object], seconds: float | None, size: int | None) -> str:
    """How a child ends that works, over and over, for so long, or once with files of at most that size."""
    child = os.fork()
    if not child:
        if size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            work()
            while seconds is not None:
                work()
            os._exit(2)
        except LithesegError as error:
            os._exit(0 if "cannot write" in str(error) else 3)
        except BaseException:
            os._exit(4)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {0: "explained", 2: "written", -signal.SIGKILL: "killed"}.get(status, f"status {status}")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    bundle = tiny_bundle(folder / "model.safetensors")
    model = randomise(bundle.model(), 1)
    target = folder / "export"

    def export(*formats: str) -> object:
        return export_bundle(bundle, target, formats=formats, widths=[0.5], check=False, force=True)

    export("onnx")
    works: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "bundle": (
            lambda: save_bundle(folder / "model.safetensors", model, bundle.header),  # type: ignore[arg-type]
            lambda: load_bundle(folder / "model.safetensors").model(),
        ),
        "onnx": (lambda: export("onnx"), lambda: load_export(target)),
        "torch": (lambda: export("torch"), lambda: load_export(target)),
    }
    for name, (work, read) in works.items():
        trials = [(seconds, None) for seconds in KILLED if name != "torch"] + [(None, size) for size in FULL]
        for seconds, size in trials:
            ended = in_child(work, seconds, size)
            read()
            left = sorted(path.name for path in folder.iterdir() if path.name not in ("model.safetensors", "export"))
            print(json.dumps({"work": name, "ended": ended, "seconds": seconds, "left": left}), flush=True)
        work()
        read()


if __name__ == "__main__":
    with patch.dict(MODELS, tiny=build_tiny):
        main(Path(sys.argv[1]))
