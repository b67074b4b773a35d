"""Which encoder and decoder give most for their time: every encoder with the default decoder, one with every decoder.

Each pair is timed at widths 1, .5 and .25, or at width 1 alone where `slim` refuses the encoder, in float32 and int8,
in ONNX Runtime and OpenVINO, on 360x480 images of rendered streets: from the raw image to logits, in CPU time, which
other programs lengthen least, and on the wall's clock. All networks of a pair take turns with the default pair, so that
the load falls on both alike: pairs are compared by their times over those of the default pair in the same turns.
Weights are random (batch norms have seen the images): they change no time. Accuracies come from the rows that
`benchmarks/run.py pairs` trains.

Every pair is one record, written when it is done; a call does what is missing until its minutes are over. Exports stay
in the work folder.

    python benchmarks/measure pairs --minutes 5 --output benchmarks/results/pairs_time.jsonl
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from records import append, origin, read

from litheseg.cost import count
from litheseg.deploy.quantize import calibration_samples
from litheseg.errors import LithesegError
from litheseg.machine import interleave
from litheseg.models.bundle import Bundle
from litheseg.models.segmenter import BACKBONES, DECODERS
from litheseg.runtime.latency import street_frames
from measure.common import arguments, both_clocks, show
from measure.runtimes import Deployed, untrained

DEFAULT = ("efficientnet_lite0", "swiftnet")
PAIRS = (
    *((DEFAULT[0], decoder) for decoder in sorted(DECODERS, key=DEFAULT[1].__ne__)),
    *((encoder, DEFAULT[1]) for encoder in BACKBONES if encoder != DEFAULT[0]),
)
WIDTHS = (1.0, 0.5, 0.25)
LIBRARIES = ("torch", "timm", "onnxruntime", "openvino", "nncf")


def main() -> None:
    """Parse, measure what is missing, write records, print a table."""
    options = parse()
    torch.set_num_threads(options.threads)
    end = time.monotonic() + 60 * options.minutes
    done = {record["key"] for record in read(options.output)} if options.output else set()
    missing = [pair for pair in PAIRS if "-".join(pair) not in done - set(options.again)]
    rows: list[dict[str, Any]] = []
    bench = Bench(options.work, tuple(options.size), options.threads, options.rounds)
    for number, pair in enumerate(missing):
        if rows and time.monotonic() > end:
            print(f"out of time; {len(missing) - number} pairs are left for the next call", file=sys.stderr)
            break
        print(f"{', '.join(pair)}: {number + 1} of {len(missing)}", file=sys.stderr)
        rows.append(bench.measured(pair))
        if options.output:
            head = {"table": options.output.stem, "key": "-".join(pair), "seed": options.seed, "metrics": rows[-1]}
            append(options.output, head | origin(options, *LIBRARIES, clock="CPU time and wall-clock time, in turns"))
    show([line for row in rows for line in shown(row)], "milliseconds of CPU time, median")


def parse() -> argparse.Namespace:
    parser = arguments(__doc__, size=(360, 480), rounds=15, threads=1, seed=0)
    parser.add_argument("--work", type=Path, default=Path("runs/pairs"), help="where exports are kept")
    parser.add_argument("--again", nargs="+", default=[], metavar="ENCODER-DECODER", help="these are measured again")
    parser.add_argument("--minutes", type=float, default=600, help="no pair is begun after so many")
    return parser.parse_args()


@dataclass(frozen=True)
class Bench:
    """What all pairs have in common.

    Attributes:
        folder: of exports and images.
        size: height and width of images and networks.
        threads: of the CPU.
        rounds: timed images of each network.
    """

    folder: Path
    size: tuple[int, int]
    threads: int
    rounds: int

    @cached_property
    def frames(self) -> list[np.ndarray]:
        """The images; also written, to calibrate int8 on."""
        frames = street_frames(self.size, 10)
        (self.folder / "images").mkdir(parents=True, exist_ok=True)
        for index, frame in enumerate(frames):
            Image.fromarray(frame).save(self.folder / f"images/{index}.png")
        return frames

    @cached_property
    def default(self) -> Deployed:
        """The default pair at width 1, which every pair takes turns with."""
        return self.exported(self.model(*DEFAULT)[0], 1.0)

    def measured(self, pair: tuple[str, str]) -> dict[str, Any]:
        """What a pair costs and takes at each of its widths, and what the default pair took in the same turns."""
        bundle, refused = self.model(*pair)
        networks, widths = {"default": self.default}, {}
        for width in bundle.header.widths:
            cost = count(bundle.plain(width), self.size)
            widths[f"{width:g}"] = {"params": cost.params, "macs": cost.macs}
            try:
                networks[f"{width:g}"] = self.exported(bundle, width)
            except LithesegError as error:
                widths[f"{width:g}"] |= {"times": {}, "refused": {"export": str(error)}}
        times = self.times(networks)
        for name in networks.keys() - {"default"}:
            widths[name] |= {"times": times[name], "refused": networks[name].reasons}
        elastic = {} if refused is None else {"one width": refused}
        return {"encoder": pair[0], "decoder": pair[1], **elastic, "widths": widths, "default": times["default"]}

    def model(self, encoder: str, decoder: str) -> tuple[Bundle, str | None]:
        """The pair with random weights, elastic where it can be; else also why not."""
        arguments = {"encoder": encoder, "decoder": decoder, "pretrained": "none"}
        try:
            return untrained("segmenter", arguments, WIDTHS, self.size, self.frames[:2]), None
        except LithesegError as error:
            return untrained("segmenter", arguments, (1.0,), self.size, self.frames[:2]), str(error)

    def exported(self, bundle: Bundle, width: float) -> Deployed:
        """One width as files; int8 is calibrated on two images, which change no time."""
        args = bundle.header.architecture["args"]
        place = f"{args['encoder']}-{args['decoder']}-{width:g}-{self.size[0]}x{self.size[1]}"
        found = Deployed(bundle, width, self.size, self.folder / place)
        found.export(*(samples.thinned(2) for samples in calibration_samples(bundle, self.folder / "images")))
        return found

    def times(self, networks: dict[str, Deployed]) -> dict[str, dict[str, Any]]:
        """By network, and runtime and precision."""
        engines = {
            (name, " ".join(choice)): engine
            for name, network in networks.items()
            for choice, engine in network.engines(self.threads).items()
        }
        calls = {key: partial(engine, self.frames[0]) for key, engine in engines.items()}
        times: dict[str, dict[str, Any]] = {name: {} for name in networks}
        for (name, choice), passes in interleave(calls, self.rounds, timed=both_clocks).items():
            times[name][choice] = summary(passes)
        return times


def summary(passes: list[tuple[float, float]]) -> dict[str, float]:
    """Fastest and median on both clocks."""
    cpu, wall = zip(*passes, strict=True)
    return {"cpu_min": min(cpu), "cpu_median": median(cpu), "min": min(wall), "median": median(wall)}


def shown(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Columns of the table on the console."""
    name = f"{row['encoder']}, {row['decoder']}"
    return [
        {"pair": name, "width": width, **{choice: time["cpu_median"] for choice, time in found["times"].items()}}
        for width, found in row["widths"].items()
    ]
