"""What a box pays to run a network: processor time, memory and disk, from an install that holds no PyTorch.

The package is installed with pip into an environment of its own, as `pip install .` does on a box, and its commands run
there as processes, several times each; what is reported are medians of whole processes, from start to end. The export
is of an untrained `ddrnet` at 360x480, made here, on the workstation: weights change no time. `litheseg serve` is
measured under load by `serve_load.py`. Processor time rather than wall-clock time, since other work may share the
machine.

    python benchmarks/measure light --output benchmarks/results/light.jsonl
    python benchmarks/measure light --repeats 3 --environment runs/box    (one that is there already is used)
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from records import save

from litheseg.streets import render_street
from measure.common import arguments, show
from measure.serve_load import SIZE, make_export

ROOT = Path(__file__).parents[2]
# What was to be reached: seconds of processor time, megabytes of memory, megabytes on disk.
TARGETS = {"help": (0.4, 60.0), "import": (0.1, None), "predict": (1.0, 150.0)}
DISK_MB = 300.0
LAUNCHER = """
import json, resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="processes of each kind [9]")
    parser.add_argument("--environment", type=Path, metavar="DIR", help="of the install [a new one, for this run]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        python = _environment(options.environment or work / "box")
        export = make_export(work / "model", argparse.Namespace(base=16, seed=0))
        photo = work / "photo.png"
        Image.fromarray(render_street(np.random.default_rng(0), SIZE)[0]).save(photo)
        predict = ["-m", "litheseg", "predict", str(export), str(photo), "--output", str(work / "masks"), "--force"]
        lines = {
            "python": ["-c", "pass"],
            "import": ["-c", "import litheseg"],
            "help": ["-m", "litheseg", "--help"],
            "predict": predict,
            "import onnxruntime": ["-c", "import onnxruntime"],
        }
        rows = {name: _median([_run(python, line) for _ in range(options.repeats)]) for name, line in lines.items()}
        rows["import"]["seconds"] -= rows["python"]["seconds"]  # what Python takes by itself is not the package's
        megabytes = _megabytes(python.parents[1])
    show([rows | {"disk": {"megabytes": megabytes}}], "processor time and memory")
    report = {"rows": rows, "disk_mb": megabytes, "targets": _targets(rows, megabytes)}
    clock = "processor time, user and system; highest resident memory"
    save(options, report, "numpy", "onnxruntime", clock=clock)


def _environment(folder: Path) -> Path:
    """The interpreter of an environment with the base install and ONNX Runtime."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(ROOT)]
        subprocess.run(command, check=True)
    return python


def _run(python: Path, line: Sequence[str]) -> dict[str, float]:
    """Run a process to its end; a small one starts it, since until it runs its program it is as large as its parent."""
    command = [str(python), "-c", LAUNCHER, str(python), *line]
    seconds, memory = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    return {"seconds": seconds, "megabytes": memory * (1 if sys.platform == "darwin" else 1024) / 1e6}


def _median(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]}


def _megabytes(environment: Path) -> float:
    """Of the installed packages, compiled Python included; pip and setuptools, with which they came, left out."""
    files = [file for file in environment.rglob("*") if file.is_file() and not file.is_symlink()]
    tools = ("pip", "setuptools")
    counted = [file for file in files if not any(part.split("-")[0] in tools for part in file.parts)]
    return round(sum(file.stat().st_size for file in counted) / 1e6, 1)


def _targets(rows: dict[str, dict[str, float]], megabytes: float) -> dict[str, Any]:
    """By name: what was to be reached, and whether it was."""
    judged: dict[str, Any] = {}
    for name, (seconds, memory) in TARGETS.items():
        met = rows[name]["seconds"] <= seconds and (memory is None or rows[name]["megabytes"] <= memory)
        judged[name] = {"seconds": seconds, "megabytes": memory, "met": met}
    judged["disk"] = {"megabytes": DISK_MB, "met": megabytes <= DISK_MB}
    return judged
