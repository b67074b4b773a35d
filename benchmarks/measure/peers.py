"""Our widths against light networks of other libraries: same machine, same images, one run, end to end.

Every network is timed from a uint8 image to its uint8 mask, through every runtime and precision at hand, in turns; the
fastest counts: in CPU time, which other programs lengthen least, on one thread. Two settings:

- scored: as trained and scored. Images of the data's own size are resized to the training size, masks come back at the
  images' size.
- full: the network sees 384x480 pixels, as large as a camera's picture, and nothing is resized.

A network that was not trained has random weights here. Exports stay in the work folder: a call that is out of time
before all are there leaves the rest, and the timing, to the next. How accurate the networks are so deployed is measured
by `measure peer_scores`.

    python benchmarks/measure peers --data data/camvid --minutes 5 --output benchmarks/results/peers_time.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages.peers import peers_tables
from records import newest, results, save
from rich.console import Console
from rich.markdown import Markdown

from litheseg.cost import count
from litheseg.data import open_source
from litheseg.data.sources.base import Source
from litheseg.data.sources.redivided import LeaveOut
from litheseg.deploy.quantize import calibration_samples
from litheseg.machine import interleave
from litheseg.models.bundle import Bundle, model_digest
from litheseg.runtime.pipeline import Pipeline
from measure.common import both_clocks, summary
from measure.contenders import PROTOCOL, SIZE, Contender, contenders, parse
from measure.runtimes import CHOICES, Choice, Deployed

SETTINGS = {"scored": SIZE, "full": (384, 480)}
THREADS = 1
CALIBRATION = {"scored": 32, "full": 8}  # images; fewer where only the time counts
LIBRARIES = ("torch", "torchvision", "segmentation-models-pytorch", "timm", "onnxruntime", "openvino", "nncf")


def main() -> None:
    """Parse, export what is missing, time both settings, print the tables, write records."""
    options = parse(__doc__, "export", rounds=20)
    torch.set_num_threads(THREADS)
    source = open_source("camvid", options.data)
    found = contenders(options.work, options.networks)
    exports = all_exports(found, source, options)
    settings = {
        name: rows(found, [own[name] for own in exports], size, source, options) for name, size in SETTINGS.items()
    }
    Console(width=200).print(Markdown(peers_tables(settings, newest(results("peers_scores")))))
    save(options, {"protocol": PROTOCOL, **settings}, *LIBRARIES, clock="CPU time and wall-clock time, in turns")


def all_exports(
    found: Sequence[Contender], source: Source, options: argparse.Namespace
) -> list[dict[str, tuple[Deployed, bool]]]:
    """By network and setting: its files, and whether its weights are trained."""
    end = time.monotonic() + 60 * options.minutes
    exports = []
    for number, contender in enumerate(found, 1):
        print(f"exports {number}/{len(found)}: {contender.name}, width {contender.width:g}", file=sys.stderr)
        bundle, fold = contender.any_weights(camera(source, SIZE)[:2])
        seen = LeaveOut(source, fold) if fold else source
        own = {}
        for name, size in SETTINGS.items():
            own[name] = exported(contender, bundle, size, seen, options.work, CALIBRATION[name]), fold is not None
            if time.monotonic() > end:
                sys.exit("out of time; exports are kept, the next call goes on")
        exports.append(own)
    return exports


def exported(
    contender: Contender, bundle: Bundle, size: tuple[int, int], source: Source, work: Path, images: int
) -> Deployed:
    """The network as files for each runtime and precision, kept by the digest of its weights."""
    place = f"{contender.row.model}-w{contender.width:g}-{size[0]}x{size[1]}-{model_digest(bundle)[:12]}"
    deployed = Deployed(bundle, contender.width, size, work / "exports" / place, contender.output_kind)
    calibration, check = calibration_samples(bundle, source, count=images)
    deployed.export(calibration, check.thinned(1))
    return deployed


def rows(
    found: Sequence[Contender],
    exports: Sequence[tuple[Deployed, bool]],
    size: tuple[int, int],
    source: Source,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """One row per network: what it costs, and how long each runtime and precision takes, in turns."""
    pipelines = {
        (index, choice): Pipeline(engine, size, THREADS)
        for index, (deployed, _) in enumerate(exports)
        for choice, engine in deployed.engines(THREADS, CHOICES).items()
    }
    images = itertools.cycle(camera(source, size))
    calls = {key: partial(_next, pipeline, images) for key, pipeline in pipelines.items()}
    times: list[dict[Choice, Any]] = [{} for _ in found]
    for (index, choice), passes in interleave(calls, options.rounds, timed=both_clocks).items():
        times[index][choice] = summary(passes)
    return [row(contender, *one, size, own) for contender, one, own in zip(found, exports, times, strict=True)]


def camera(source: Source, size: tuple[int, int]) -> list[np.ndarray]:
    """A few images: the data's own where the network resizes them, else cut or repeated to the network's size."""
    images = [source.read_image(sample) for sample in source.samples("val")[::30]]
    if size == SIZE:
        return images
    return [np.ascontiguousarray(np.pad(image, pads(image, size), mode="reflect")) for image in images]


def pads(image: np.ndarray, size: tuple[int, int]) -> list[tuple[int, int]]:
    return [(0, wanted - extent) for wanted, extent in zip(size, image.shape[:2], strict=True)] + [(0, 0)]


def _next(pipeline: Pipeline, images: Iterator[np.ndarray]) -> np.ndarray:
    return pipeline(next(images))


def row(
    contender: Contender, deployed: Deployed, trained: bool, size: tuple[int, int], times: Mapping[Choice, Any]
) -> dict[str, Any]:
    cost = count(deployed.bundle.plain(contender.width), size)
    facts = {"network": contender.name, "width": contender.width, "ours": contender.ours, "trained": trained}
    named = {" ".join(choice): value for choice, value in times.items()}
    return {**facts, "params": cost.params, "macs": cost.macs, "times": named, "refused": deployed.reasons}
