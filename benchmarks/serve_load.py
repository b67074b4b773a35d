"""A server under more and more load: what is answered, how late, at which width, and what is refused.

`litheseg serve` runs as a process of its own; requests come at fixed times, whether or not earlier ones were answered
(an open loop: a slow server does not slow its clients down). The rates are multiples of what the server answers at
width 1 when it is never idle. The same load meets a server that holds a target by narrowing and one whose width is
fixed. Client and server share the machine. A request counts as lost if it got no answer at all. Whether the target
was held is judged after the first third of a load, which the controller has to react; the report has the whole too.
The network is not trained, and its masks, which say nothing, are noisier than a trained one's: encoding them takes
longer.

    python benchmarks/serve_load.py --output benchmarks/results/serve_load.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image
from reports import provenance, write_report
from rich.console import Console
from rich.table import Table

from litheseg.masks.classes import CAMVID_CLASSES
from litheseg.models import build_model
from litheseg.models.bundle import BundleHeader, save_bundle
from litheseg.nn import slim
from litheseg.streets import render_street

LIBRARIES = ("torch", "numpy", "fastapi", "uvicorn", "httpx")
WIDTHS = (1.0, 0.75, 0.5, 0.25)
SIZE = (360, 480)
PICTURES = 8
CAPACITY_SECONDS = 4.0
WAIT = 60.0  # seconds until a request counts as lost
SPARE = 0.8  # of the narrowest width's capacity: beyond that share no width can be expected to hold a target


@dataclass(frozen=True)
class Answer:
    """What became of a request: `status` 0 if nothing came back."""

    at: float
    status: int
    ms: float
    width: float | None


def main() -> None:
    """Parse, measure, print a table, write JSON."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder) / "ddrnet.safetensors", options)
        report = measure(bundle, options)
    network = {"name": "ddrnet", "base": options.base, "widths": WIDTHS, "size": SIZE, "trained": False}
    report |= provenance(options, *LIBRARIES, network=network)
    show(report)
    write_report(options.output, report)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="of each load")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 1, 1.5, 2, 4], help="multiples of capacity")
    parser.add_argument("--target-ms", type=float, help="default: four times what a busy server takes at width 1")
    parser.add_argument("--base", type=int, default=16, help="channels of the network")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--queue", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="where to write JSON")
    return parser.parse_args()


def make_bundle(path: Path, options: argparse.Namespace) -> Path:
    torch.manual_seed(options.seed)
    model = slim(build_model("ddrnet", num_classes=len(CAMVID_CLASSES), base=options.base), WIDTHS)
    architecture = {"name": "ddrnet", "args": {"base": options.base}}
    save_bundle(path, model, BundleHeader(architecture, CAMVID_CLASSES, widths=WIDTHS, size=SIZE))
    return path


def pictures(seed: int) -> list[bytes]:
    """Streets as JPEG."""
    made = []
    for number in range(PICTURES):
        buffer = BytesIO()
        Image.fromarray(render_street(np.random.default_rng(seed + number), SIZE)[0]).save(buffer, "JPEG", quality=90)
        made.append(buffer.getvalue())
    return made


def measure(bundle: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Capacity by width, then every load on both servers."""
    images = pictures(options.seed)
    with server(bundle, options, "--width", "1") as url:
        capacity = {width: asyncio.run(closed_loop(url, images, width, options)) for width in WIDTHS}
        # A target is a multiple of this, so that it means the same on a slower machine.
        target = options.target_ms or round(4 * capacity[1.0]["p50_ms"], -1)
        rates = [load * capacity[1.0]["per_second"] for load in options.loads]
        rows = [row("fixed", url, images, rate, target, options) for rate in rates]
    with server(bundle, options, "--target-ms", str(target)) as url:
        rows += [row("narrowing", url, images, rate, target, options) for rate in rates]
    for entry in rows:
        entry["in_reach"] = entry["rate"] <= SPARE * capacity[WIDTHS[-1]]["per_second"]
    return {"target_ms": target, "capacity": capacity, "rows": rows, "verdict": verdict(rows, target)}


@contextmanager
def server(bundle: Path, options: argparse.Namespace, *more: str) -> Iterator[str]:
    """`litheseg serve` in a process of its own; yields its URL."""
    command = [sys.executable, "-m", "litheseg", "serve", str(bundle), "--port", "0", *more]
    command += ["--workers", str(options.workers), "--queue", str(options.queue)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        yield next(match[1] for line in process.stdout if (match := re.match(r"page +(http://\S+)", line)))
    finally:
        process.terminate()
        if process.wait(30) != 0:
            raise SystemExit(f"the server ended with status {process.returncode}")


async def closed_loop(url: str, images: Sequence[bytes], width: float, options: argparse.Namespace) -> dict[str, float]:
    """As many clients as workers, each with one request after the other: what the server can do at a width."""

    async def one(client: httpx.AsyncClient) -> list[Answer]:
        answers = []
        while time.perf_counter() < end:
            answers.append(await ask(client, images[len(answers) % len(images)], f"?width={width}", end))
        return answers

    end = time.perf_counter() + CAPACITY_SECONDS
    async with httpx.AsyncClient(base_url=url, timeout=WAIT) as client:
        runs = await asyncio.gather(*(one(client) for _ in range(options.workers)))
    milliseconds = [answer.ms for run in runs for answer in run]
    return {"per_second": len(milliseconds) / CAPACITY_SECONDS, "p50_ms": float(np.median(milliseconds))}


async def open_loop(url: str, images: Sequence[bytes], rate: float, seconds: float) -> list[Answer]:
    """Requests at fixed times."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=url, timeout=WAIT, limits=limits) as client:
        start, waiting = time.perf_counter(), []
        for number in range(round(rate * seconds)):
            await asyncio.sleep(start + number / rate - time.perf_counter())
            waiting.append(asyncio.create_task(ask(client, images[number % len(images)], "", start)))
        return list(await asyncio.gather(*waiting))


async def ask(client: httpx.AsyncClient, image: bytes, query: str, start: float) -> Answer:
    sent = time.perf_counter()
    try:
        response = await client.post(f"/v1/segment/mask{query}", files={"image": ("street.jpg", image)})
    except httpx.HTTPError:
        return Answer(sent - start, 0, 1e3 * (time.perf_counter() - sent), None)
    width = response.headers.get("litheseg-width")
    return Answer(sent - start, response.status_code, 1e3 * (time.perf_counter() - sent), width and float(width))


def row(
    kind: str, url: str, images: Sequence[bytes], rate: float, target: float, options: argparse.Namespace
) -> dict[str, Any]:
    """One load on one server."""
    answers = asyncio.run(open_loop(url, images, rate, options.seconds))
    settled = [answer for answer in answers if answer.at >= options.seconds / 3]
    statuses = Counter(answer.status for answer in answers)
    entry = {
        "server": kind,
        "rate": rate,
        "requests": len(answers),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "lost": statuses[0],
        "refused": statuses[503] / len(answers),
        "whole": summary(answers, target),
        "settled": summary(settled, target),
    }
    print(json.dumps(entry), file=sys.stderr)
    time.sleep(1)
    return entry


def summary(answers: Sequence[Answer], target: float) -> dict[str, Any]:
    """Latency at the client of what was answered, and the widths it ran at."""
    good = [answer for answer in answers if answer.status == 200]
    milliseconds = [answer.ms for answer in good]
    widths = Counter(answer.width for answer in good)
    p50, p95, p99 = np.percentile(milliseconds, [50, 95, 99]).tolist() if good else (None, None, None)
    return {
        "answered": len(good),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "within_target": sum(ms <= target for ms in milliseconds) / max(1, len(good)),
        "widths": {f"{width:g}": widths[width] / max(1, len(good)) for width in WIDTHS},
    }


def verdict(rows: Sequence[dict[str, Any]], target: float) -> dict[str, bool]:
    """What the server promises."""
    narrowing = [entry for entry in rows if entry["server"] == "narrowing"]
    reachable = [entry for entry in narrowing if entry["in_reach"]]
    return {
        "no request lost": all(entry["lost"] == 0 for entry in rows),
        "no error but 503": all(set(entry["statuses"]) <= {"200", "503"} for entry in rows),
        "p95 held where a width can": all(entry["settled"]["p95_ms"] <= target for entry in reachable),
        "nothing refused where a width can": all(entry["refused"] == 0 for entry in reachable),
    }


def show(report: dict[str, Any]) -> None:
    table = Table(title=f"target {report['target_ms']:g} ms")
    for column in ("server", "requests/s", "answered", "refused", "lost", "p50", "p95", "mean width"):
        table.add_column(column, justify="right")
    for entry in report["rows"]:
        settled = entry["settled"]
        mean = sum(float(width) * share for width, share in settled["widths"].items())
        cells = [entry["server"], f"{entry['rate']:.0f}", f"{entry['whole']['answered']}", f"{entry['refused']:.1%}"]
        times = [f"{settled[name]:.0f}" if settled[name] else "-" for name in ("p50_ms", "p95_ms")]
        table.add_row(*cells, str(entry["lost"]), *times, f"{mean:.2f}")
    Console().print(table)
    for promise, kept in report["verdict"].items():
        print(f"{'yes' if kept else 'NO ':4} {promise}")


if __name__ == "__main__":
    main()
