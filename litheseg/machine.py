"""This machine: its cores, facts about it, and how to time calls on it in turns.

A benchmark kit holds this file beside its script, so it needs Python 3.9 or newer and nothing else.

Calls take turns, round after round, in rotating order: whatever else the machine does slows all of them alike. A turn
waits until the threads of the call before have stopped spinning, then runs untimed passes that fill the processor's
caches and branch predictors, and then a few timed ones: as when one network runs alone.

Usage:
    >>> times = interleave({"narrow": lambda: narrow(image), "wide": lambda: wide(image)}, repeats=90)
"""

from __future__ import annotations

import gc
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["cores", "free_memory", "host_facts", "interleave", "memory", "milliseconds", "package_version", "settle"]

_BURST, _TURNS = 3, 20  # a turn has so many timed passes at least, a call so many turns at most
_AGAIN = 0.02  # seconds of passes that are not timed, at the beginning of a turn
_WINDOW, _IDLE = 0.005, 0.2  # seconds; the share of one core below which no thread spins

_PACKAGES = ("numpy", "onnxruntime", "openvino", "torch")

Call = Callable[[], Any]
K = TypeVar("K")
T = TypeVar("T")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> float:
    """Bytes of memory that this machine has; infinite where it does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):  # Windows
        return math.inf


def free_memory() -> int:
    """Bytes of memory that processes may still take; where nothing says so, half of what there is, or 2 GB."""
    found = []
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        found += [int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable:")]
        limits = Path("/sys/fs/cgroup")  # a container's
        found.append(int((limits / "memory.max").read_text()) - int((limits / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no Linux; or no container, or one without a limit
    total = memory()
    return max(0, min(found, default=int(total // 2) if math.isfinite(total) else 2 * 10**9))


def host_facts(packages: Iterable[str] = ()) -> dict[str, Any]:
    """What a measurement depends on: processor, cores, system, versions.

    Args:
        packages: whose versions count, besides the usual ones; those that are installed are named.
    """
    return {
        "cpu": _cpu_name(),
        "cores": cores(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: found for name in (*_PACKAGES, *packages) if (found := package_version(name))},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    found = facts.get("model name") or facts.get("Model") or facts.get("Hardware")
    if not found and platform.system() == "Darwin":
        answer = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        found = answer.stdout.strip()
    return found or platform.processor() or platform.machine()


def package_version(package: str) -> str:
    """The version of a package that is imported; "" where nothing says it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # copied to a box without metadata, or called onnxruntime-gpu
        return str(getattr(sys.modules.get(package), "__version__", ""))


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
    turned: Callable[[int, int], object] = lambda done, total: None,
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
        turned: called with (turns that are done, all of them) before each and at the end, when nothing is timed.

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
        rounds = math.ceil(repeats / burst) if names else 0
        for turn in range(rounds):
            first = turn % len(names)
            for done, name in enumerate(names[first:] + names[:first], turn * len(names)):  # changing neighbours
                turned(done, rounds * len(names))
                settle()
                began = _run_again(calls[name], 0.0 if fps else _AGAIN)
                for _ in range(min(burst, repeats - turn * burst)):
                    if fps:
                        time.sleep(max(0.0, began + 1 / fps - time.monotonic()))
                    began = time.monotonic()
                    times[name].append(timed(calls[name]))
        turned(rounds * len(names), rounds * len(names))
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

    ONNX Runtime's spin for a fixed number of loops, which takes tens of milliseconds or more, OpenMP's for some time; a
    call that runs meanwhile has as many cores fewer.

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
