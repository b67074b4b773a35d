"""How accurate our widths and the peers are as deployed: mIoU of every left-out sequence, in float32 and int8.

Each trained model of `benchmarks/run.py peers` (and of ddrnet's row in the SlimSeg table) is exported, turned into int8
with nothing held back, and labels every frame of the sequence that it was trained without, through the runtimes. A
model that is not trained yet is named and left out; what is there already is not scored again.

    python benchmarks/measure peer_scores --data data/camvid --minutes 5 --output benchmarks/results/peers_scores.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from typing import Any

import torch
from records import append, newest, origin

from litheseg.budget.measure import score
from litheseg.data import open_source
from litheseg.data.sources.base import Source
from litheseg.data.sources.redivided import LeaveOut
from litheseg.models.bundle import Bundle, model_digest
from litheseg.runtime.pipeline import Pipeline
from measure.common import show
from measure.contenders import FOLDS, PROTOCOL, SIZE, Contender, contenders, parse
from measure.peers import CALIBRATION, LIBRARIES, exported

SCORED = (("openvino", "fp32"), ("onnxruntime", "int8"), ("openvino", "int8"))  # fp32 is the same in all


def main() -> None:
    """Parse, score what is missing, write records, print a table."""
    options = parse(__doc__, "model", threads=1)
    torch.set_num_threads(options.threads)
    end = time.monotonic() + 60 * options.minutes
    source = open_source("camvid", options.data)
    done = {(record["key"], record["digest"]) for record in newest(options.output)} if options.output else set()
    lines: list[dict[str, Any]] = []
    for contender, fold in itertools.product(contenders(options.work, options.networks), FOLDS):
        key = f"{contender.name}-w{contender.width:g}-{fold}"
        bundle = contender.trained(fold)
        if bundle is None:
            print(f"not trained: {key}", file=sys.stderr)
            continue
        digest = model_digest(bundle)
        if (key, digest) in done:
            continue
        if lines and time.monotonic() > end:
            print("out of time; the next call goes on", file=sys.stderr)
            break
        print(key, file=sys.stderr)
        found = scores(contender, bundle, LeaveOut(source, fold), options)
        lines.append({"network": contender.name, "width": contender.width, "fold": fold, "miou": found})
        if options.output:
            head = {"table": options.output.stem, "key": key, "seed": 0, "protocol": PROTOCOL, "metrics": lines[-1]}
            append(options.output, head | {"digest": digest} | origin(options, *LIBRARIES))
    show(lines, "mIoU as deployed")


def scores(contender: Contender, bundle: Bundle, source: Source, options: argparse.Namespace) -> dict[str, float]:
    """Of each runtime and precision that the network runs in."""
    deployed = exported(contender, bundle, SIZE, source, options.work, CALIBRATION["scored"])
    return {
        " ".join(choice): score(Pipeline(engine, SIZE, options.threads), source, source.samples("val"))
        for choice, engine in deployed.engines(options.threads, SCORED).items()
    }
