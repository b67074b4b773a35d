"""A server under more and more load: what is answered, how late, at which width, what is refused, and what it weighs.

`litheseg serve` runs an export as a process of its own; requests come at fixed times, whether or not earlier ones were
answered (an open loop: a slow server does not slow its clients down). The rates are multiples of what the server
answers at width 1 when it is never idle. The same load meets a server that holds a target by narrowing and one whose
width is fixed. Then as many clients as the server says it can hold at each width ask without a break, and many clients
that pause about as long as common servers keep idle connections. Client and server share the machine. A request counts
as lost if it got no answer at all. Whether the target was held is judged after the first third of a load, which the
controller has to react; the report has the whole too. Memory is that of the server's process (Linux only), before the
first request and at its highest. The network is not trained, and its masks, which say nothing, are noisier than a
trained one's: encoding them takes longer.

    python benchmarks/measure serve_load --output benchmarks/results/serve_load.jsonl
    python benchmarks/measure serve_load --export exports/street
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
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
from PIL import Image
from records import save

from litheseg.bundle.exported import load_export
from litheseg.deploy.export import export_bundle
from litheseg.streets import render_street
from measure.common import arguments, ddrnet_file, memory, show

LIBRARIES = ("onnxruntime", "openvino", "numpy", "fastapi", "uvicorn", "httpx")
WIDTHS = (1.0, 0.75, 0.5, 0.25)
SIZE = (360, 480)
PICTURES = 8
CAPACITY_SECONDS = 4.0
WAIT = 60.0  # seconds until a request counts as lost
READY_SECONDS, MEGABYTES = 2.0, 200.0  # what a server may take to be ready, and of memory under load
PAUSE = (4.9, 5.1)  # seconds: Uvicorn, as it comes, closes connections that idle for five
SPARE = 0.8  # of the narrowest width's capacity: beyond that share no width can be expected to hold a target


@dataclass(frozen=True)
class Answer:
    """What became of a request: `status` 0 if nothing came back."""

    at: float
    status: int
    ms: float
    width: float | None


@dataclass
class Running:
    """A server; megabytes where /proc has them.

    Attributes:
        ready_s: from the command to the first request that would be taken.
        rest_mb: resident before the first request.
        load_mb: resident at most, until it ended.
    """

    url: str
    ready_s: float
    rest_mb: float | None
    load_mb: float | None = None


def main() -> None:
    """Parse, measure, print tables, write records."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        export = options.export or make_export(Path(folder), options)
        header = load_export(export).header
        report = measure(export, header.widths, options)
    network = {"architecture": header.architecture, "widths": header.widths, "size": header.size}
    kept = ("server", "rate", "lost", "refused", "settled")
    show([{name: row[name] for name in kept} for row in report["rows"]], f"target {report['target_ms']:g} ms")
    show([{name: report[name] for name in ("processes", "pausing", "verdict")}], "the whole")
    save(options, report, *LIBRARIES, network=network | {"trained": options.export is not None})


def parse() -> argparse.Namespace:
    parser = arguments(__doc__, seed=0)
    parser.add_argument("--seconds", type=float, default=20, help="of each load")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 1, 1.5, 2, 4], help="multiples of capacity")
    parser.add_argument("--target-ms", type=float, help="default: four times what a busy server takes at width 1")
    parser.add_argument("--export", type=Path, help="default: one that is made here, of a network that is not trained")
    parser.add_argument("--clients", type=int, default=50, help="that pause between their requests")
    parser.add_argument("--base", type=int, default=16, help="channels of the network")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--queue", type=int, default=16)
    return parser.parse_args()


def make_export(folder: Path, options: argparse.Namespace) -> Path:
    bundle = ddrnet_file(folder / "ddrnet.safetensors", options.base, WIDTHS, SIZE, options.seed)
    return export_bundle(bundle, folder / "export", check=False).path


def pictures(seed: int) -> list[bytes]:
    """Streets as JPEG."""
    made = []
    for number in range(PICTURES):
        buffer = BytesIO()
        Image.fromarray(render_street(np.random.default_rng(seed + number), SIZE)[0]).save(buffer, "JPEG", quality=90)
        made.append(buffer.getvalue())
    return made


def measure(export: Path, widths: Sequence[float], options: argparse.Namespace) -> dict[str, Any]:
    """Capacity by width, every load on both servers, then what the second says of itself."""
    images = pictures(options.seed)
    with server(export, options, "--width", f"{widths[0]:g}") as fixed:
        capacity = {width: closed_loop(fixed.url, images, width, options.workers) for width in widths}
        # A target is a multiple of this, so that it means the same on a slower machine.
        target = options.target_ms or round(4 * capacity[widths[0]]["p50_ms"], -1)
        rates = [load * capacity[widths[0]]["per_second"] for load in options.loads]
        rows = [row("fixed", fixed.url, images, rate, target, options) for rate in rates]
    with server(export, options, "--target-ms", str(target)) as narrowing:
        said = {entry["width"]: entry for entry in httpx.get(f"{narrowing.url}/v1/model").json()["widths"]}
        claims = [claim(narrowing.url, images, width, entry) for width, entry in said.items() if entry["clients"]]
        rows += [row("narrowing", narrowing.url, images, rate, target, options) for rate in rates]
        pausing = asyncio.run(pauses(narrowing.url, images, options))
    for entry in rows:
        entry["in_reach"] = entry["rate"] <= SPARE * capacity[widths[-1]]["per_second"]
    processes = {"fixed": process(fixed), "narrowing": process(narrowing)}
    report = {"target_ms": target, "capacity": capacity, "claims": claims, "pausing": pausing, "processes": processes}
    return report | {"rows": rows, "verdict": verdict(report, rows, target)}


@contextmanager
def server(export: Path, options: argparse.Namespace, *more: str) -> Iterator[Running]:
    """`litheseg serve` in a process of its own."""
    command = [sys.executable, "-m", "litheseg", "serve", str(export), "--port", "0", *more]
    command += ["--workers", str(options.workers), "--queue", str(options.queue)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        url = next(match[1] for line in process.stdout if (match := re.match(r"page +(http://\S+)", line)))
        running = Running(url, time.perf_counter() - started, megabytes(process.pid, "VmRSS"))
        yield running
        running.load_mb = megabytes(process.pid, "VmHWM")
    finally:
        process.terminate()
        if process.wait(30) != 0:
            raise SystemExit(f"the server ended with status {process.returncode}")


def megabytes(pid: int, name: str) -> float | None:
    found = memory(pid, name)
    return None if found is None else found / 1e6


def process(running: Running) -> dict[str, float | None]:
    return {"ready_s": running.ready_s, "rest_mb": running.rest_mb, "load_mb": running.load_mb}


def closed_loop(url: str, images: Sequence[bytes], width: float, clients: int) -> dict[str, float]:
    """So many clients, each with one request after the other: what the server can do at a width."""

    async def one(client: httpx.AsyncClient) -> list[Answer]:
        answers = []
        while time.perf_counter() < end:
            answers.append(await ask(client, images[len(answers) % len(images)], f"?width={width}", end))
        return answers

    async def all_of_them() -> list[list[Answer]]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=WAIT, limits=limits) as client:
            return await asyncio.gather(*(one(client) for _ in range(clients)))

    end = time.perf_counter() + CAPACITY_SECONDS
    answers = [answer for run in asyncio.run(all_of_them()) for answer in run]
    p50, p95 = np.percentile([answer.ms for answer in answers], [50, 95]).tolist()
    refused = sum(answer.status != 200 for answer in answers)
    return {"per_second": len(answers) / CAPACITY_SECONDS, "p50_ms": p50, "p95_ms": p95, "not_answered": refused}


def claim(url: str, images: Sequence[bytes], width: float, said: dict[str, Any]) -> dict[str, Any]:
    """What a width is said to hold, and what as many clients meet."""
    met = closed_loop(url, images, width, said["clients"])
    return {"width": width, "clients": said["clients"], "said_per_second": said["images_per_second"], **met}


async def pauses(url: str, images: Sequence[bytes], options: argparse.Namespace) -> dict[str, Any]:
    """Clients with a connection each, which they keep for as long as the server does; two more ask without a break."""

    async def one(number: int) -> list[Answer]:
        generator, answers = random.Random(options.seed + number), []
        limits = httpx.Limits(keepalive_expiry=None)
        async with httpx.AsyncClient(base_url=url, timeout=WAIT, limits=limits) as client:
            while time.perf_counter() < end:
                answers.append(await ask(client, images[number % len(images)], "", end))
                await asyncio.sleep(generator.uniform(*PAUSE) if number >= 2 else 0)
        return answers

    end = time.perf_counter() + 3 * options.seconds
    answers = [answer for run in await asyncio.gather(*map(one, range(2 + options.clients))) for answer in run]
    statuses = Counter(answer.status for answer in answers)
    return {"clients": options.clients, "requests": len(answers), "broken": statuses[0], "statuses": named(statuses)}


def named(statuses: Counter[int]) -> dict[str, int]:
    return {str(status): count for status, count in sorted(statuses.items())}


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
        "statuses": named(statuses),
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
        "widths": {f"{width:g}": count / len(good) for width, count in sorted(widths.items())},
    }


def verdict(report: dict[str, Any], rows: Sequence[dict[str, Any]], target: float) -> dict[str, bool]:
    """What the server promises."""
    narrowing = [entry for entry in rows if entry["server"] == "narrowing"]
    reachable = [entry for entry in narrowing if entry["in_reach"]]
    processes = report["processes"].values()
    return {
        f"ready in {READY_SECONDS:g} s": all(entry["ready_s"] <= READY_SECONDS for entry in processes),
        f"{MEGABYTES:g} MB at most": all((entry["load_mb"] or np.inf) <= MEGABYTES for entry in processes),
        "no request lost": all(entry["lost"] == 0 for entry in rows),
        "no connection broken after a pause": report["pausing"]["broken"] == 0,
        "no error but 503": all(set(entry["statuses"]) <= {"200", "503"} for entry in rows),
        "p95 held where a width can": all(entry["settled"]["p95_ms"] <= target for entry in reachable),
        "nothing refused where a width can": all(entry["refused"] == 0 for entry in reachable),
        "p95 held with as many clients as it says": all(entry["p95_ms"] <= target for entry in report["claims"]),
    }
