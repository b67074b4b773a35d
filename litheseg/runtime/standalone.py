"""Time the networks of a kit on this machine; write measurements.json for `litheseg fit --measured`.

This one file needs Python 3.9 or newer, NumPy, and onnxruntime or openvino (or both); neither litheseg nor PyTorch.
`litheseg measure` puts it into a kit as measure.py, beside kit.json and the networks, and litheseg itself times with
the functions below, so that numbers from here and from elsewhere mean the same.

What is timed is the network alone: a uint8 image of the network's size in, float32 logits out. Decoding, resizing and
the mask at full size are left out: on a target box they are done by whatever is used there.

    python measure.py                           every network, in every runtime that is installed
    python measure.py --threads 1,2,4           with other numbers of CPU threads than 1 and all
    python measure.py --only w0.5-180x240-fp32 --repeats 300      some again, with more repeats
    python measure.py --fps 15                  as for a camera: an image every 67 ms, and nothing to do meanwhile

Networks take turns, round after round, in rotating order: whatever else the machine does slows all of them alike. A
turn waits until the threads of the network before have stopped spinning; then come passes that are not timed, since the
processor knows the others' data and branches, and then a few that are: as when one network runs alone. Passes follow
each other at once. Where images come at a pace, cores rest between them and threads must be woken, which takes time:
--fps.
"""

from __future__ import annotations

import argparse
import functools
import gc
import hashlib
import importlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

__all__ = [
    "KIT_FILE",
    "PERCENTILES",
    "RESULT_FILE",
    "SCHEMA",
    "Unusable",
    "cores",
    "host_facts",
    "interleave",
    "main",
    "measure_kit",
    "milliseconds",
    "settle",
    "summary",
    "write_measurements",
]

SCHEMA = 1
"""Of kit.json and measurements.json."""
KIT_FILE, RESULT_FILE = "kit.json", "measurements.json"
PERCENTILES = (5, 25, 50, 75, 90, 95, 99)
_BURST, _TURNS = 3, 20  # a turn has so many timed passes at least, a network so many turns at most
_AGAIN = 0.02  # seconds of passes that are not timed, at the beginning of a turn
_WINDOW, _IDLE = 0.005, 0.2  # seconds; the share of one core below which no thread spins

Call = Callable[[], Any]
Network = Callable[[np.ndarray], Any]
K = TypeVar("K")
T = TypeVar("T")


class Unusable(Exception):
    """A kit that cannot be timed, or a runtime that cannot run it; the message says how to mend it."""


# --- measuring -------------------------------------------------------------------------------------------------------


def milliseconds(call: Call) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


def interleave(
    calls: Mapping[K, Call],
    repeats: int,
    *,
    warmup: int = 3,
    fps: float | None = None,
    timed: Callable[[Call], T] = milliseconds,  # type: ignore[assignment]
) -> dict[K, list[T]]:
    """Time each call `repeats` times, all of them in turns.

    A turn is at least three timed passes, more where otherwise there would be more than twenty turns. Before it, this
    waits for idle threads, see `settle`, and runs the call for 20 ms, once at least, untimed: after the others' turns
    the first passes of a small network are slower.

    Args:
        calls: by name.
        repeats: timed passes of each, >= 1.
        warmup: untimed passes of each before anything is timed.
        fps: of the passes of one turn so many begin in a second, as a camera's images come; one that cannot, since the
            pass before it took longer, begins at once, and only one is untimed. None: each follows the one before.
        timed: makes a timed call and says how long it took.

    Returns:
        What `timed` said, by name, in the order in which it was measured.
    """
    names = list(calls)
    burst = max(_BURST, math.ceil(repeats / _TURNS))
    times: dict[K, list[T]] = {name: [] for name in names}
    for name in names:
        for _ in range(warmup):
            calls[name]()
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()  # the collector is kept out, as timeit does
    try:
        for turn in range(math.ceil(repeats / burst)):
            for name in _rotated(names, turn):
                settle()
                began = _run_again(calls[name], 0.0 if fps else _AGAIN)
                for _ in range(min(burst, repeats - turn * burst)):
                    if fps:
                        time.sleep(max(0.0, began + 1 / fps - time.monotonic()))
                    began = time.monotonic()
                    times[name].append(timed(calls[name]))
    finally:
        if enabled:
            gc.enable()
    return times


def _run_again(call: Call, seconds: float) -> float:
    """Run it once, and again until so much time has passed; when the last pass began."""
    began = first = time.monotonic()
    call()
    while time.monotonic() - first < seconds:
        began = time.monotonic()
        call()
    return began


def settle(limit: float = 2.0) -> bool:
    """Wait until this process computes no more: runtimes let their threads spin for a while after a pass.

    ONNX Runtime's spin for a fixed number of loops, which takes tens of milliseconds or more, OpenMP's for some; who
    runs meanwhile has as many cores fewer.

    Args:
        limit: seconds to wait at most.

    Returns:
        Whether it is idle now.
    """
    end = time.monotonic() + limit
    while time.monotonic() < end:
        used = time.process_time()
        time.sleep(_WINDOW)
        if time.process_time() - used < _IDLE * _WINDOW:
            return True
    return False


def summary(milliseconds: Sequence[float]) -> dict[str, float]:
    """Percentiles, mean and number."""
    values = np.asarray(milliseconds, dtype=np.float64)
    found = {f"p{percent}": round(float(np.percentile(values, percent)), 4) for percent in PERCENTILES}
    return {**found, "mean": round(float(values.mean()), 4), "repeats": len(values)}


def _rotated(names: Sequence[K], turn: int) -> Iterator[K]:
    """Nobody always has the same neighbour."""
    for position in range(len(names)):
        yield names[(position + turn) % len(names)]


# --- the machine -----------------------------------------------------------------------------------------------------


def host_facts() -> dict[str, Any]:
    """What a measurement depends on: processor, cores, system, versions."""
    packages = ("numpy", "onnxruntime", "openvino", "torch")
    return {
        "cpu": _cpu_name(),
        "cores": cores(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: found for name in packages if (found := _version(name))},
    }


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        facts = dict(line.split(":", 1) for line in lines if ":" in line)
        named = {key.strip(): value.strip() for key, value in facts.items()}
        found = named.get("model name") or named.get("Model") or named.get("Hardware")
        if found:
            return found
    except OSError:
        pass
    if platform.system() == "Darwin":
        told = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        if told.stdout.strip():
            return told.stdout.strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    # Not importlib.metadata alone: packages that were copied to a box have no metadata.
    metadata = importlib.import_module("importlib.metadata")
    try:
        return str(metadata.version(package))
    except metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(package), "__version__", ""))


def _load() -> list[float] | None:
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


# --- runtimes --------------------------------------------------------------------------------------------------------


def _in_onnxruntime(path: Path, threads: int) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})[0]


def _in_openvino(path: Path, threads: int) -> Network:
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    settings["INFERENCE_PRECISION_HINT"] = "f32"
    request = _openvino_core().compile_model(str(path), "CPU", settings).create_infer_request()
    return lambda image: request.infer({0: image}, share_inputs=True)[0]


@functools.cache  # one for all: where cores come and go, OpenVINO leaves signals without a stack
def _openvino_core() -> Any:
    import openvino

    return openvino.Core()


_RUNTIMES: dict[str, Callable[[Path, int], Network]] = {"onnxruntime": _in_onnxruntime, "openvino": _in_openvino}


# --- the kit ---------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 0 for success, 2 with one line on standard error where that is not possible."""
    options = _parser().parse_args(arguments)
    try:
        content = measure_kit(_read_kit(options.kit), options.kit, **_passes(options))
    except Unusable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_measurements(options.output, content)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).resolve().parent
    parser.add_argument("--kit", type=Path, default=here, metavar="DIR", help="folder of kit.json [where this file is]")
    parser.add_argument("--output", type=Path, default=here / RESULT_FILE, metavar="FILE", help=f"[{RESULT_FILE}]")
    parser.add_argument("--repeats", type=_positive, default=90, metavar="N", help="timed passes of each [90]")
    parser.add_argument("--fps", type=_rate, metavar="N", help="images a second, as of a camera [no pause]")
    parser.add_argument("--warmup", type=_positive, default=5, metavar="N", help="untimed passes of each before [5]")
    parser.add_argument("--threads", type=_positives, metavar="N,N", help="CPU threads to try [1 and all]")
    parser.add_argument(
        "--runtime",
        dest="runtimes",
        choices=tuple(_RUNTIMES),
        action="append",
        help="[those that are installed]",
    )
    parser.add_argument("--only", action="append", metavar="ID", help="a network of the kit, may be repeated [all]")
    parser.add_argument(
        "--together", type=_positive, default=24, metavar="N", help="networks in memory that take turns at once [24]"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is no rate; write images a second, such as 15")
    return value


def _positives(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_positive(part.strip()) for part in text.split(",")))


def _passes(options: argparse.Namespace) -> dict[str, Any]:
    """What `measure_kit` takes of the options."""
    names = ("only", "runtimes", "threads", "repeats", "warmup", "fps", "together")
    return {name: getattr(options, name) for name in names}


def measure_kit(
    kit: Mapping[str, Any],
    folder: Path,
    *,
    only: Sequence[str] | None = None,
    runtimes: Sequence[str] | None = None,
    threads: Sequence[int] | None = None,
    repeats: int = 90,
    warmup: int = 5,
    fps: float | None = None,
    together: int = 24,
) -> dict[str, Any]:
    """Time networks alone, in turns.

    Args:
        kit: ``model`` (a digest), ``name`` and ``networks``, each with ``id``, ``width``, ``size``, ``precision``,
            ``layout``, ``path`` and ``files``, and, where not every runtime takes it, ``runtimes``.
        folder: where the paths begin.
        only: ids of the networks; None for all.
        runtimes: "onnxruntime", "openvino" or both; None for those that are installed.
        threads: numbers of CPU threads; None for 1 and all.
        repeats: timed passes of each.
        warmup: untimed passes of each before.
        fps: images a second, as of a camera; None for no pause.
        together: networks in memory that take turns at once.

    Returns:
        The content of measurements.json.

    Raises:
        Unusable: nothing that could be timed.
    """
    chosen = _chosen(kit["networks"], only)
    counts = threads or tuple(sorted({1, cores()}))
    installed, skipped = _installed(runtimes or tuple(_RUNTIMES))
    loaded, started = _load(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    jobs = [
        (entry, runtime, count)
        for entry in chosen
        for runtime in installed
        if runtime in entry.get("runtimes", _RUNTIMES)
        for count in counts
    ]
    rows: list[dict[str, Any]] = []
    for first in range(0, len(jobs), together):
        part = jobs[first : first + together]
        _say(f"{first + 1} to {first + len(part)} of {len(jobs)} in turns, {repeats} repeats ...")
        calls = _opened_all(folder, part, skipped)
        rows += _rows(part, interleave(calls, repeats, warmup=warmup, fps=fps))
    if not rows:
        raise Unusable("nothing could be timed: " + "; ".join(entry["reason"] for entry in skipped))
    return {
        "litheseg": "measurements",
        "schema": SCHEMA,
        "model": kit["model"],
        "name": kit.get("name", ""),
        "scope": "network",
        "fps": fps,
        "host": host_facts(),
        "started": started,
        "load_average": {"before": loaded, "after": _load()},
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "rows": rows,
        "skipped": skipped,
    }


def _read_kit(folder: Path) -> dict[str, Any]:
    path = folder / KIT_FILE
    try:
        kit = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unusable(
            f"{path} cannot be read ({error}); copy the whole folder that `litheseg measure` wrote"
        ) from error
    if not isinstance(kit, dict) or kit.get("litheseg") != "kit" or kit.get("schema") != SCHEMA:
        raise Unusable(f"{path} is no kit of this version; write it anew with `litheseg measure`")
    for entry in kit["networks"]:
        for name, digest in entry["files"].items():
            _check(folder / name, digest)
    return kit


def _check(path: Path, digest: str) -> None:
    try:
        actual = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise Unusable(f"{path} is missing ({error.strerror}); copy the whole folder") from error
    if actual != digest:
        raise Unusable(f"{path} is not the file that was written (its checksum differs); copy the folder again")


def _chosen(networks: Sequence[dict[str, Any]], only: Sequence[str] | None) -> Sequence[dict[str, Any]]:
    known = [entry["id"] for entry in networks]
    for name in only or ():
        if name not in known:
            raise Unusable(f"--only {name}: the kit has {', '.join(known)}")
    return [entry for entry in networks if not only or entry["id"] in only]


def _installed(names: Sequence[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """Those that can be imported, and why others cannot."""
    found, missing = [], []
    for name in names:
        try:
            importlib.import_module(name)
            found.append(name)
        except ImportError as error:
            missing.append({"runtime": name, "reason": f"{name} cannot be imported ({error}): pip install {name}"})
    if not found:
        raise Unusable("; ".join(entry["reason"] for entry in missing))
    return found, missing


def _opened_all(folder: Path, jobs: Sequence[tuple[Any, str, int]], skipped: list[dict[str, Any]]) -> dict[str, Call]:
    """Calls by name; what cannot be opened or run goes to `skipped`."""
    calls: dict[str, Call] = {}
    for entry, runtime, threads in jobs:
        try:
            calls[f"{entry['id']} {runtime} {threads}"] = _opened(folder, entry, runtime, threads)
        except Exception as error:  # whatever a runtime says of a network that it cannot run
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            skipped.append({"id": entry["id"], "runtime": runtime, "threads": threads, "reason": reason})
    return calls


def _rows(jobs: Sequence[tuple[Any, str, int]], times: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    facts = ("id", "width", "size", "precision", "files")
    return [
        {
            **{name: entry[name] for name in facts},
            "runtime": runtime,
            "threads": threads,
            **summary(times[key]),
            "ms": [round(value, 4) for value in times[key]],
        }
        for entry, runtime, threads in jobs
        if (key := f"{entry['id']} {runtime} {threads}") in times
    ]


def _opened(folder: Path, entry: Mapping[str, Any], runtime: str, threads: int) -> Call:
    height, width = entry["size"]
    shape = (1, height, width, 3) if entry["layout"] == "NHWC" else (1, 3, height, width)
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    network = _RUNTIMES[runtime](folder / entry["path"], threads)
    network(image)  # fails now rather than among the others
    return lambda: network(image)


def write_measurements(path: Path, content: Mapping[str, Any]) -> None:
    """Write measurements.json, whole or not at all, and show what it holds."""
    _write(path, content)
    _show(content)
    print(f"\nwritten: {path}\nnext, where litheseg is: litheseg fit MODEL --measured {path.name} ...")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise SystemExit(f"error: cannot write {path} ({error.strerror}); give another file with --output") from error


def _show(content: Mapping[str, Any]) -> None:
    host = content["host"]
    pace = f", {content['fps']:g} images a second" if content["fps"] else ""
    print(f"{host['cpu']}, {host['cores']} cores; the network alone{pace}, milliseconds\n")
    print(f"{'network':<28}{'runtime':<13}{'threads':>7}{'p50':>9}{'p95':>9}{'p99':>9}")
    for row in content["rows"]:
        times = "".join(f"{row[name]:>9.2f}" for name in ("p50", "p95", "p99"))
        print(f"{row['id']:<28}{row['runtime']:<13}{row['threads']:>7}{times}")
    for entry in content["skipped"]:
        print(f"left out: {entry.get('id', '')} {entry['runtime']}: {entry['reason']}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
