"""One session on the machine with the GPU: what to do, side by side, and what to bring back.

Brought back are few, small files: `rows.jsonl`, `table.txt`, `logs.txt`, and at most `MODELS` models in half precision.
Runs with their checkpoints stay in the work folder, where a second call on the same machine goes on with them. The
GPU is asked its name and memory; nothing about it is set.

Usage:
    >>> run_session(minutes=9, out=Path("brought-back"), pack=Path("benchmarks/gpu-pack"))
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from gpu.jobs import Job, Place, read_jobs
from gpu.models import LARGEST, halve
from gpu.pack import source_digest
from gpu.side_by_side import Outcome, SideBySide, tail
from litheseg.errors import LithesegError
from litheseg.files import atomic_path

__all__ = ["MODELS", "run_session"]

MODELS = 5  # that are brought back
_SLOTS = 8
_CORES_EACH = 2  # of a row: one thread goes forward, one backward
_GIB_EACH = 8  # of GPU memory; four widths at 16 images of 360x480 keep 2.2 for the backward pass
_GRACE = 25.0  # seconds at the end, to save, to score, to write
_LOG_END = 3000  # characters of each log that are brought back
ROOT = Path(__file__).parents[2]
WISHES = Path(__file__).with_name("wishes.yaml")


def run_session(
    *,
    minutes: float,
    out: Path,
    pack: Path,
    data: Path | None = None,
    work: Path = Path("runs/gpu"),
    wishes: Path = WISHES,
    slots: int | None = None,
    tiny: bool = False,
) -> int:
    """Do the most wanted missing rows until the time is up; 0 if at least one is done and none failed.

    Raises:
        SystemExit: no data, or wishes that cannot be read.
    """
    end = time.monotonic() + 60 * minutes
    data = data or pack / "camvid"
    if not (data / "train").is_dir():
        raise SystemExit(f"{data} holds no CamVid; give --data, or run `python benchmarks/gpu pack` first")
    place = Place(str(data.resolve()), work.resolve() / "tiny" if tiny else work.resolve(), tiny)
    place.work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    jobs = read_jobs(wishes, place)
    number = slots or slots_of(gpu_memory(), os.cpu_count() or 1)
    print(f"{len(jobs)} jobs are wanted; {number} at a time", flush=True)
    bringer = _Bringer(place, out)
    runner = SideBySide(
        jobs,
        slots=number,
        seconds=end - time.monotonic() - 2,
        logs=place.work / "logs",
        grace=_GRACE,
        environment=environment(pack, number),
        finished=bringer,
    )
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: runner.stop())
    outcomes = runner.run()
    bringer(None)
    table = summary(outcomes, place)
    (out / "table.txt").write_text(table + "\n")
    print(table, flush=True)
    states = {outcome.state for outcome in outcomes}
    return int("failed" in states or (bool(jobs) and "done" not in states))


def gpu_memory() -> float | None:
    """GiB of the first GPU; None without one."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        return float(answer.split()[0]) / 1024
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def slots_of(memory: float | None, cores: int) -> int:
    """How many rows at a time."""
    fitting = [_SLOTS, cores // _CORES_EACH] + ([int(memory / _GIB_EACH)] if memory else [])
    return max(1, min(fitting))


def environment(pack: Path, processes: int) -> dict[str, str]:
    """Of the rows: packed packages first, one CPU thread, and what the results are to say of where they come from."""
    paths = [str(path.resolve()) for path in (pack / "site", ROOT) if path.exists()]
    given = {
        **{name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONUNBUFFERED")},
        "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "BENCHMARK_PROCESSES": str(processes),
        "COLUMNS": "120",
    }
    if commit := packed_commit(pack):
        given["BENCHMARK_COMMIT"] = commit
    return {**os.environ, **given}


def packed_commit(pack: Path) -> str | None:
    """The commit that was packed, with `-dirty` where the code here is another; None without a pack."""
    try:
        content = json.loads((pack / "pack.json").read_text())
    except OSError:
        return None
    commit = str(content["commit"])
    same = content["digest"] == source_digest(ROOT)
    return commit if same or commit.endswith("-dirty") else f"{commit}-dirty"


class _Bringer:
    """Keeps the folder that is brought back up to date: a kill at any time loses little."""

    def __init__(self, place: Place, out: Path) -> None:
        self._place, self._out, self._kept = place, out, 0

    def __call__(self, job: Job | None) -> None:
        """After a job, and now and then."""
        if self._place.rows.exists():
            with atomic_path(self._out / "rows.jsonl") as temporary:
                shutil.copyfile(self._place.rows, temporary)
        with atomic_path(self._out / "logs.txt") as temporary:
            logs = sorted((self._place.work / "logs").glob("*.log"))
            temporary.write_text("".join(f"===== {log.stem}\n{tail(log, _LOG_END)}\n" for log in logs))
        if job is not None:
            print(f"done: {job.name}", flush=True)
            self._keep(job)

    def _keep(self, job: Job) -> None:
        if not job.keep or job.bundle is None or self._kept >= MODELS:
            return
        try:
            size = halve(job.bundle, self._out / f"{job.name.replace('*', 'star')}.half.safetensors", LARGEST)
        except LithesegError as error:
            print(f"its model stays: {error}", file=sys.stderr)
        else:
            self._kept += 1
            print(f"its model comes along, {size / 2**20:.1f} MiB", flush=True)


def summary(outcomes: Sequence[Outcome], place: Place) -> str:
    """A line per job that was begun: state, minutes, mean mIoU over its widths, name; and counts of the rest."""
    lines = place.rows.read_text().splitlines() if place.rows.exists() else []
    scores = {record["key"]: record["metrics"] for record in map(json.loads, lines)}
    shown = [f"{'state':8} {'minutes':>7} {'mIoU':>6}  row"]
    for outcome in outcomes:
        if outcome.state in ("not begun", "waiting"):
            continue
        metrics = scores.get(outcome.job.name, {})
        score = f"{100 * mean(values['miou'] for values in metrics.values()):.2f}" if metrics else ""
        shown.append(f"{outcome.state:8} {outcome.seconds / 60:7.2f} {score:>6}  {outcome.job.name}")
        if outcome.state == "failed":
            end = tail(outcome.log).strip().splitlines()
            shown.append(f"         {end[-1][:160] if end else 'it printed nothing'}")
    rest = [f"{sum(o.state == state for o in outcomes)} {state}" for state in ("not begun", "waiting")]
    return "\n".join([*shown, ", ".join(rest)])
