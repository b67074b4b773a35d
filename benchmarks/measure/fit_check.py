"""Do fits keep their promises? Ten fits of one model, each promise timed again in a process of its own.

The first fit has a budget that everything keeps; it shows what the model can do. Ten budgets are spread over that
range, in equal ratios. What each fit delivers is then opened and timed again, alone, end to end, for as long as a whole
proof lasts: the promise holds if the two percentiles are within 10 % of each other. No promise can be better kept than
the machine keeps its own speed, so that is measured too, likewise: each network is timed a second time, in a
further process (repeated), and the two halves of one timing are compared (steady). Fits share a cache, as a user's do,
so later ones time little but their proof. Leave the machine alone meanwhile.

    python benchmarks/measure fit_check model.safetensors --data data/camvid --output benchmarks/results/fit_check.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from records import save

from litheseg.budget.candidates import Candidate
from litheseg.budget.choose import PROOF_MS
from litheseg.deploy.torch_engine import bundle_engine
from litheseg.evaluation.bundle import open_bundle_data
from litheseg.machine import host_facts
from litheseg.models.bundle import load_bundle
from litheseg.runtime.engines import open_engine
from litheseg.runtime.latency import Latency, Scope, measure
from litheseg.runtime.pipeline import Pipeline
from measure.common import arguments, show

TOLERANCE, TARGET = 0.10, 9
JUDGED = ("kept", "repeated", "steady")  # the promise; the machine's own speed between processes, and within one
PROGRAM = [sys.executable, str(Path(__file__).parent), "fit_check"]
EVERYTHING = "100000ms"
MARGIN = 1.5  # the least budget, of the fastest network's time: the first fit does not time it often enough to be exact


def main() -> None:
    """Parse, fit and time again, print a table, write records."""
    options = parse()
    if options.again:
        return print(json.dumps(time_again(options)))
    with tempfile.TemporaryDirectory() as folder:
        rows = check(options, Path(folder))
    report = {"tolerance": TOLERANCE, "target": TARGET, **{name: sum(row[name] for row in rows) for name in JUDGED}}
    show([{name: row[name] for name in ("budget_ms", "ratios", *JUDGED)} for row in rows], f"fits: {report}")
    save(options, report | {"rows": rows}, host=host_facts())


def parse() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fits", type=int, default=10)
    parser.add_argument("--percentile", type=float, default=95.0)
    parser.add_argument("--sizes", help="as of `litheseg fit`")
    parser.add_argument("--precision", default="fp32", help="as of `litheseg fit`")
    parser.add_argument("--threads", help="as of `litheseg fit`")
    parser.add_argument("--fps", type=float, help="as of `litheseg fit`")
    parser.add_argument("--cache", type=Path, help="kept between runs of this script [a temporary one]")
    parser.add_argument("--again", type=Path, help="time what lies in this folder, and print the percentile")
    return parser.parse_args()


def check(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One row per fit."""
    options.cache = options.cache or folder / "cache"
    whole = fit(options, f"{options.fps}fps" if options.fps else EVERYTHING, folder / "all")
    name = f"p{options.percentile:g}_ms"
    costs = [point[name] for point in whole["points"] if point["miou"] is not None]
    low = MARGIN * min(costs)
    high = max(low_of(whole, name), 1.1 * low)
    steps = [low * (high / low) ** (index / (options.fits - 1)) for index in range(options.fits)]
    return [row(options, budget, folder / f"fit-{index}") for index, budget in enumerate(steps)]


def low_of(whole: dict[str, Any], name: str) -> float:
    """What the most accurate network takes in its fastest runtime."""
    best = max(point["miou"] or 0 for point in whole["points"])
    return float(min(point[name] for point in whole["points"] if point["miou"] == best))


def row(options: argparse.Namespace, budget: float, folder: Path) -> dict[str, Any]:
    """A fit, and what it promised timed again."""
    promise = fit(options, f"{budget:.3f}ms", folder)["promise"]
    words = [str(options.model), "--data", str(options.data), "--percentile", str(options.percentile)]
    again, once_more = (json.loads(run([*PROGRAM, *words, "--again", str(folder)])) for _ in range(2))
    ratios = {
        "kept": again["milliseconds"] / promise["milliseconds"],
        "repeated": once_more["milliseconds"] / again["milliseconds"],
        "steady": again["second_half"] / again["first_half"],
    }
    return {
        "budget_ms": round(budget, 3),
        "promise": promise,
        "again": again,
        "once_more": once_more,
        "ratios": {name: round(ratio, 4) for name, ratio in ratios.items()},
        **{name: abs(ratio - 1) <= TOLERANCE for name, ratio in ratios.items()},
    }


def fit(options: argparse.Namespace, budget: str, folder: Path) -> dict[str, Any]:
    """The fit.json of `litheseg fit`, as a user runs it."""
    words = ["fit", options.model, "--budget", budget, "--percentile", options.percentile, "--data", options.data]
    words += ["--precision", options.precision, "--cache", options.cache, "--output", folder]
    for name in ("sizes", "threads", "fps"):
        words += [f"--{name}", getattr(options, name)] if getattr(options, name) else []
    run([sys.executable, "-m", "litheseg", *map(str, words)])
    content: dict[str, Any] = json.loads((folder / "fit.json").read_text())
    return content


def run(words: list[str]) -> str:
    print("+", " ".join(words), file=sys.stderr)
    return subprocess.run(words, check=True, text=True, stdout=subprocess.PIPE).stdout


def time_again(options: argparse.Namespace) -> dict[str, Any]:
    """The percentile of what a fit delivered, alone."""
    promise = json.loads((options.again / "fit.json").read_text())["promise"]
    candidate = Candidate.from_dict(promise)
    network, threads = candidate.network, candidate.threads
    how: dict[str, Any] = {"precision": network.precision, "threads": threads}
    if candidate.runtime == "torch":
        engine = bundle_engine(load_bundle(options.again / "model.safetensors"), network.width, "torch", **how)
    else:
        engine = open_engine(options.again / "export", width=network.width, runtime=candidate.runtime, **how)
    source = open_bundle_data(load_bundle(options.model), options.data).source
    images = [source.read_image(sample) for sample in source.samples("val")[:4]]
    pipeline = Pipeline(engine, network.size, threads)
    repeats = max(promise["repeats"], math.ceil(PROOF_MS / max(promise["p50_ms"], 1000 / (promise["fps"] or math.inf))))
    stages = measure({"": pipeline}, images, repeats=repeats, warmup=10, fps=promise["fps"])[""]
    times = stages[Scope.END_TO_END].ms
    parts = {"milliseconds": times, "first_half": times[: repeats // 2], "second_half": times[repeats // 2 :]}
    found = {name: Latency(Scope.END_TO_END, part).percentile(options.percentile) for name, part in parts.items()}
    found["p50_ms"] = Latency(Scope.END_TO_END, times).percentile(50)
    return {name: round(value, 3) for name, value in found.items()}
