"""Time networks alone, on a machine with or without litheseg; write measurements.json for `litheseg fit --measured`.

`litheseg measure` times an export with `measure_export`. For a machine without litheseg it copies this file into a
benchmark kit, as measure.py, beside machine.py, kit.json, the networks, and what opens them in each runtime (in_*.py).
There it needs Python 3.9 or newer, NumPy, and one of the runtimes.

What is timed is the network alone: a uint8 image of the network's size in, float32 logits out. Decoding, resizing and
the mask at full size are left out: on a target box they are done by whatever is used there. Before that, networks of
a kit label a few images, and those that do so unlike PyTorch are left out: a device may compute what it does wrongly.

    python measure.py                           every network, in every runtime that is installed
    python measure.py --threads 1,2,4           with other numbers of CPU threads than 1 and all
    python measure.py --only w0.5-180x240-fp32 --repeats 300      some again, with more repeats
    python measure.py --device tensorrt         ONNX networks on an NVIDIA GPU: cuda, or tensorrt
    python measure.py --fps 15                  as for a camera: an image every 67 ms, and nothing to do meanwhile

Networks take turns (see machine.py), and passes follow each other at once. --fps measures with pauses instead, as with
a camera: then cores idle between images, and waking threads takes time.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if __name__ == "__main__":  # in a kit
    from machine import cores, host_facts, interleave  # type: ignore[import-not-found]

    _OPENERS = ""
else:
    from litheseg.machine import cores, host_facts, interleave

    _OPENERS = "litheseg.runtime."

if TYPE_CHECKING:
    from litheseg.bundle.exported import Artefact, Export

__all__ = [
    "KIT_FILE",
    "PERCENTILES",
    "RESULT_FILE",
    "SCHEMA",
    "Unusable",
    "check_path",
    "main",
    "measure_export",
    "measure_kit",
    "network_entry",
    "summary",
    "write_measurements",
]

SCHEMA = 1
"""Of kit.json and measurements.json."""
KIT_FILE, RESULT_FILE = "kit.json", "measurements.json"
_LINE_EVERY = 10.0  # seconds between lines about how far it is
PERCENTILES = (5, 25, 50, 75, 90, 95, 99)
_AGREEMENT = 0.999  # of the places that a network must label as PyTorch does; as of `litheseg.deploy.parity`


class Unusable(Exception):
    """A kit that cannot be timed, or a runtime that cannot run it; the message says how to mend it."""


def summary(milliseconds: Sequence[float]) -> dict[str, float]:
    """Percentiles, mean and number."""
    values = np.asarray(milliseconds, dtype=np.float64)
    found = {f"p{percent}": round(float(np.percentile(values, percent)), 4) for percent in PERCENTILES}
    return {**found, "mean": round(float(values.mean()), 4), "repeats": len(values)}


# --- measuring -------------------------------------------------------------------------------------------------------


def measure_export(
    export: Export | str | Path,
    output: str | Path = RESULT_FILE,
    *,
    threads: Sequence[int] | None = None,
    runtimes: Sequence[str] | None = None,
    device: str = "cpu",
    repeats: int = 90,
    fps: float | None = None,
) -> dict[str, Any]:
    """Time the networks of an export, alone, in turns, and write and show the measurements.

    Args:
        export: a loaded one, or its path.
        output: the file to write.
        threads: numbers of CPU threads; None for 1 and all.
        runtimes: of those of the networks; None for those that are installed.
        device: "cpu", or, in ONNX Runtime, "cuda" or "tensorrt".
        repeats: timed passes of each.
        fps: images a second, as of a camera; None for no pause.

    Returns:
        What was written; milliseconds are of the network alone.

    Raises:
        LithesegError: nothing that could be timed here.
    """
    from litheseg.bundle.exported import load_export
    from litheseg.bundle.targets import TARGETS
    from litheseg.errors import LithesegError
    from litheseg.progress import work

    opened = load_export(export) if isinstance(export, (str, Path)) else export
    networks = [network_entry(opened, artefact) for artefact in opened.artefacts if artefact.format != "torch"]
    packages = {name: [target.imported, target.package] for name, target in TARGETS.items()}
    facts = {"model": opened.provenance.get("model", ""), "name": opened.path.name}
    kit = {**facts, "packages": packages, "networks": networks}
    how: dict[str, Any] = {"threads": threads, "runtimes": runtimes, "repeats": repeats, "fps": fps, "device": device}
    try:
        with work(f"timing networks in turns, {repeats} repeats", still=True) as job:
            content = measure_kit(kit, opened.folder, report=job.show, **how)
    except Unusable as error:
        raise LithesegError(f"{opened.path}: {error}") from error
    write_measurements(Path(output), content)
    return content


def network_entry(export: Export, artefact: Artefact, folder: str = "") -> dict[str, Any]:
    """A network as kit.json has it; one that takes any size is timed at the size that the model was trained at.

    Args:
        export: which the network is of.
        artefact: the network.
        folder: of the export in the kit, with / at its end.
    """
    size, images = artefact.size or export.header.size, export.header.images
    facts = {name: getattr(artefact, name) for name in ("width", "precision", "layout")}
    return {
        **facts,
        "id": f"w{artefact.width:g}-{size[0]}x{size[1]}-{artefact.precision}",
        "size": list(size),
        "channels": images.channels,
        "dtype": images.dtype,
        "path": folder + artefact.path,
        "files": {folder + path: digest for path, digest in artefact.files.items()},
        # The format made for a runtime is what runs there: OpenVINO reads ONNX only where there is nothing else.
        "runtimes": [name for name in artefact.runtimes if _is_own(export, artefact, name)],
    }


def _is_own(export: Export, artefact: Artefact, runtime: str) -> bool:
    return export.find(artefact.width, runtime, artefact.precision).format == artefact.format


def check_path(size: Sequence[int]) -> str:
    """Where a kit has images of this height and width, with their labels in PyTorch."""
    return f"checks/{size[0]}x{size[1]}.npz"


def measure_kit(
    kit: Mapping[str, Any],
    folder: Path,
    *,
    only: Sequence[str] | None = None,
    runtimes: Sequence[str] | None = None,
    threads: Sequence[int] | None = None,
    device: str = "cpu",
    repeats: int = 90,
    warmup: int = 5,
    fps: float | None = None,
    together: int = 24,
    report: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Time networks alone, in turns.

    Args:
        kit: ``model`` (a digest), ``name``, ``packages`` (by runtime: what is imported, and pip's name of it),
            ``networks``, see `network_entry`, and, of a kit, ``checks`` (digests of the files of `check_path`).
        folder: where the paths begin.
        only: ids of the networks; None for all.
        runtimes: of those of the networks; None for those that are installed.
        threads: numbers of CPU threads; None for 1 and all, and for 1 on other devices.
        device: "cpu", or, in ONNX Runtime, "cuda" or "tensorrt".
        repeats: timed passes of each.
        warmup: untimed passes of each before.
        fps: images a second, as of a camera; None for no pause.
        together: networks in memory that take turns at once.
        report: called with (networks that are timed, all of them) now and then; None for lines on standard error.

    Returns:
        The content of measurements.json.

    Raises:
        Unusable: nothing that could be timed.
    """
    chosen = _chosen(kit["networks"], only)
    installed, skipped = _installed(kit, runtimes)
    load, started = [_load()], time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    jobs = [
        (entry, runtime, count)
        for entry in chosen
        for runtime in installed
        if runtime in entry["runtimes"]
        for count in threads or sorted({1, cores() if device == "cpu" else 1})
    ]
    rows: list[dict[str, Any]] = []
    report = report or _lines()
    for first in range(0, len(jobs), together):
        part = jobs[first : first + together]

        def turned(done: int, total: int, first: int = first, count: int = len(part)) -> None:
            report(first + done * count // max(total, 1), len(jobs))  # 0 where none of them could be opened

        opened = _opened(folder, kit.get("checks", ()), device, part, skipped)
        calls = {index: call for index, (call, _) in opened.items()}
        times = interleave(calls, repeats, warmup=warmup, fps=fps, turned=turned)
        rows += [_row(part[index], values, opened[index][1]) for index, values in times.items()]
    if not rows:
        raise Unusable("nothing could be timed: " + "; ".join(entry["reason"] for entry in skipped))
    return {
        "litheseg": "measurements",
        "schema": SCHEMA,
        "model": kit["model"],
        "name": kit.get("name", ""),
        "scope": "network",
        "fps": fps,
        "host": {**host_facts(kit["packages"][name][1] for name in installed), **_gpu(device)},
        "started": started,
        "load_average": {"before": load[0], "after": _load()},
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "rows": rows,
        "skipped": skipped,
    }


def _gpu(device: str) -> dict[str, str]:
    """Device and name of the graphics card; nothing of the CPU."""
    if device == "cpu":
        return {}
    try:
        asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        found = subprocess.run(asked, capture_output=True, text=True, timeout=60).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        found = ""
    return {"device": device, "gpu": found}


def _lines() -> Callable[[int, int], None]:
    """A line on standard error at once, and then every ten seconds."""
    begun, last = time.monotonic(), -math.inf

    def line(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LINE_EVERY:
            last = now
            left = f", about {(now - begun) / done * (total - done):.0f} s left" if done else ""
            print(f"timing {total} networks in turns, {done} done{left} ...", file=sys.stderr, flush=True)

    return line


def _chosen(networks: Sequence[dict[str, Any]], only: Sequence[str] | None) -> Sequence[dict[str, Any]]:
    known = [entry["id"] for entry in networks]
    for name in only or ():
        if name not in known:
            raise Unusable(f"--only {name}: the kit has {', '.join(known)}")
    return [entry for entry in networks if not only or entry["id"] in only]


def _installed(kit: Mapping[str, Any], wanted: Sequence[str] | None) -> tuple[list[str], list[dict[str, Any]]]:
    """The runtimes of the networks that can be imported, and why others cannot."""
    known = list(dict.fromkeys(name for entry in kit["networks"] for name in entry["runtimes"]))
    found, missing = [], []
    for name in wanted or known:
        if name not in known:
            raise Unusable(f"--runtime {name}: the networks are for {', '.join(known)}")
        module, package = kit["packages"][name]
        try:
            importlib.import_module(module)
            found.append(name)
        except ImportError as error:
            reason = f"{package} cannot be imported ({error}): pip install {package}"
            missing.append({"runtime": name, "reason": reason})
    if not found:
        raise Unusable("; ".join(entry["reason"] for entry in missing))
    return found, missing


def _opened(
    folder: Path,
    checks: Container[str],
    device: str,
    jobs: Sequence[tuple[Any, str, int]],
    skipped: list[dict[str, Any]],
) -> dict[int, tuple[Callable[[], Any], float | None]]:
    """By the index of the job, one pass of each network, and what share it labels as in PyTorch where that is known.

    What cannot be opened or run, or labels unlike PyTorch, goes to `skipped`.
    """
    calls: dict[int, tuple[Callable[[], Any], float | None]] = {}
    for index, (entry, runtime, threads) in enumerate(jobs):
        last, channels = entry["layout"] == "NHWC", entry["channels"]
        shape = (1, *entry["size"], channels) if last else (1, channels, *entry["size"])
        image = np.random.default_rng(0).integers(0, 256, shape).astype(entry["dtype"])
        try:
            opener = importlib.import_module(f"{_OPENERS}in_{runtime}")
            network = opener.open_network(str(folder / entry["path"]), threads=threads, device=device)
            network(image)  # fails now rather than among the others
            path = check_path(entry["size"])
            agreement = _agreement(network, folder / path, entry["width"]) if path in checks else None
            calls[index] = functools.partial(network, image), agreement
        except Exception as error:  # whatever a runtime says of a network that it cannot run
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            skipped.append({"id": entry["id"], "runtime": runtime, "threads": threads, "reason": reason})
    return calls


def _agreement(network: Callable[[np.ndarray], np.ndarray], file: Path, width: float) -> float:
    """The share of places that are labelled as in PyTorch.

    Raises:
        ValueError: too few.
    """
    with np.load(file) as content:
        images, expected = content["images"], content[f"w{width:g}"]
    found = [np.asarray(network(image[None])[0]).argmax(0) for image in images]
    share = float(np.mean(np.stack(found) == expected))
    if share < _AGREEMENT:
        raise ValueError(
            f"it labels {100 * (1 - share):.2f} % of the places unlike PyTorch: this runtime, or this device, computes "
            "something else; try another version or another runtime"
        )
    return share


def _row(job: tuple[Any, str, int], times: Sequence[float], agreement: float | None) -> dict[str, Any]:
    entry, runtime, threads = job
    facts = {name: entry[name] for name in ("id", "width", "size", "precision", "files")}
    facts |= {} if agreement is None else {"agreement": agreement}
    milliseconds = [round(value, 4) for value in times]
    return {**facts, "runtime": runtime, "threads": threads, **summary(times), "ms": milliseconds}


def _load() -> list[float] | None:
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def write_measurements(path: Path, content: Mapping[str, Any]) -> None:
    """Write measurements.json, whole or not at all, and show what it holds."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise SystemExit(f"error: cannot write {path} ({error.strerror}); give another file with --output") from error
    host = content["host"]
    rate = f", {content['fps']:g} images a second" if content["fps"] else ""
    place = f", {host['device']} {host['gpu']}" if "device" in host else ""
    print(f"{host['cpu']}, {host['cores']} cores{place}; the network alone{rate}, milliseconds\n")
    print(f"{'network':<28}{'runtime':<13}{'threads':>7}{'p50':>9}{'p95':>9}{'p99':>9}")
    for row in content["rows"]:
        times = "".join(f"{row[name]:>9.2f}" for name in ("p50", "p95", "p99"))
        alike = f"   {100 * row['agreement']:.3f} % labelled as in PyTorch" if "agreement" in row else ""
        print(f"{row['id']:<28}{row['runtime']:<13}{row['threads']:>7}{times}{alike}")
    for entry in content["skipped"]:
        print(f"left out: {entry.get('id', '')} {entry['runtime']}: {entry['reason']}")
    print(f"\nwritten: {path}\nnext, where litheseg is: litheseg fit MODEL --measured {path.name} ...")


# --- the script of a kit ---------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure a kit; 0 for success, 2 with one line on standard error where that is not possible."""
    options = vars(_parser().parse_args(arguments))
    folder, output = options.pop("kit"), options.pop("output")
    try:
        content = measure_kit(_read_kit(folder), folder, **options)
    except Unusable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_measurements(output, content)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    here = Path(__file__).resolve().parent
    add = parser.add_argument
    add("--kit", type=Path, default=here, metavar="DIR", help="folder of kit.json [where this file is]")
    add("--output", type=Path, default=here / RESULT_FILE, metavar="FILE", help=f"[{RESULT_FILE}]")
    add("--repeats", type=_positive, default=90, metavar="N", help="timed passes of each [90]")
    add("--fps", type=_rate, metavar="N", help="images a second, as of a camera [no pause]")
    add("--warmup", type=_positive, default=5, metavar="N", help="untimed passes of each before [5]")
    add("--threads", type=_positives, metavar="N,N", help="CPU threads to try [1 and all]")
    add("--runtime", dest="runtimes", action="append", metavar="NAME", help="[those that are installed]")
    add("--device", default="cpu", help="cpu; of ONNX networks cuda or tensorrt as well [cpu]")
    add("--only", action="append", metavar="ID", help="a network of the kit, may be repeated [all]")
    add("--together", type=_positive, default=24, metavar="N", help="networks in memory that take turns at once [24]")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
    return int(text)


def _positives(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_positive(part.strip()) for part in text.split(",")))


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is no rate; write images a second, such as 15")
    return value


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
    for files in (kit.get("checks", {}), *(entry["files"] for entry in kit["networks"])):
        for name, digest in files.items():
            _check(folder / name, digest)
    return kit


def _check(path: Path, digest: str) -> None:
    try:
        actual = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise Unusable(f"{path} is missing ({error.strerror}); copy the whole folder") from error
    if actual != digest:
        raise Unusable(f"{path} is not the file that was written (its checksum differs); copy the folder again")


if __name__ == "__main__":
    sys.exit(main())
