"""Our widths against light networks of other libraries: same machine, same images, one run, end to end.

Every network is timed from a uint8 image to its uint8 mask, through every runtime and precision at hand, in turns; the
fastest counts. A peer is deployed as its users deploy it: labels at its full-size output, taken inside the graph. Ours
give logits at their own stride, and labels come from these (lazy upsampling). Two settings:

- scored: as trained and scored. Images of the data's own size are resized to the training size, masks come back at the
  images' size; mIoU is measured here, as deployed, on val.
- full: the network sees 384x480 pixels, as large as a camera's picture, and nothing is resized.

A network that cannot become int8, or whose int8 a runtime cannot run, goes without it: that is reported, and the others
count. Peak memory is by how much a fresh process grows that loads the runtime and the network and labels three images
by the fastest. A network that was not trained has random weights and no mIoU.

    python benchmarks/measure peers --data data/camvid --output benchmarks/results/peers_time.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

import numpy as np
import torch
from pages.peers import peers_tables
from records import save
from rich.console import Console
from rich.markdown import Markdown

from litheseg.budget.measure import score
from litheseg.bundle.exported import Artefact, Export, load_export
from litheseg.cost import count
from litheseg.data import open_source
from litheseg.data.source import Source
from litheseg.deploy.export import export_bundle
from litheseg.deploy.quantize import Quantizer, Tolerance, calibration_samples
from litheseg.deploy.torch_engine import bundle_engine
from litheseg.errors import LithesegError
from litheseg.models import build_model
from litheseg.models.bundle import Bundle, BundleHeader, load_bundle
from litheseg.runtime.engines import Engine, open_engine
from litheseg.runtime.latency import Scope, measure
from litheseg.runtime.pipeline import Pipeline
from measure import peer_models
from measure.common import arguments, memory

PROTOCOL, TRAINING_SIZE, FULL_SIZE = "camvid-half", (180, 240), (384, 480)
OURS = {  # name -> row of benchmarks/rows/grouping.yaml
    "ddrnet (base 16)": "ddrnet-slim",
    "ddrnet (base 16), grouped": "ddrnet-slim-gradual",
    "ERFNet": "erfnet-erfnet",
}
PAIRS = (
    ("torch", "fp32"),
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("onnxruntime", "int8"),
    ("openvino", "int8"),
)
LIBRARIES = ("torch", "torchvision", "segmentation-models-pytorch", "onnxruntime", "openvino", "nncf")
FORMATS = ("onnx", "openvino")
CALIBRATION = {TRAINING_SIZE: 32, FULL_SIZE: 8}  # images; fewer where only the time counts
ANY = Tolerance(miou=100, class_iou=None, agreement=0)  # int8 throughout: its mIoU is in the row


@dataclass(frozen=True)
class Network:
    """One width of what is compared; `ours` says by whom it is, `trained` whether its weights are worth a score."""

    name: str
    bundle: Bundle
    width: float
    ours: bool
    trained: bool


def main() -> None:
    """Parse, measure both settings, print the tables, write JSON."""
    options = parse()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        return print(peak_memory(**json.loads(options.memory_of)))
    source = open_source("camvid", options.data)
    networks = all_networks(options.work, source, options.networks)
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            name: setting(networks, size, source, Path(folder) / name, options)
            for name, size in (("scored", TRAINING_SIZE), ("full", FULL_SIZE))
        }
    Console(width=200).print(Markdown(peers_tables(settings)))
    save(options, {"protocol": PROTOCOL, **settings}, *LIBRARIES, clock="wall-clock time, in turns")


def parse() -> argparse.Namespace:
    parser = arguments(__doc__, rounds=40, threads=2)
    parser.add_argument("--data", type=Path, help="the CamVid folder")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="where the runs are kept")
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="some of them only")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args()


def all_networks(work: Path, source: Source, chosen: Sequence[str] | None) -> list[Network]:
    """Ours at every width, and the peers, trained where the work folder has a trained model."""
    networks = []
    for name, row in OURS.items():
        bundle = load_bundle(work / f"{PROTOCOL}-{row}-seed0" / "model.safetensors")
        networks += [Network(name, bundle, width, True, True) for width in bundle.header.available_widths]
    for key, (name, _) in peer_models.PEERS.items():
        path = work / f"{PROTOCOL}-{key}-{key.removeprefix('peer-')}-seed0" / "model.safetensors"
        bundle = load_bundle(path) if path.exists() else random_bundle(key, source)
        networks.append(Network(name, bundle, 1.0, False, path.exists()))
    return [network for network in networks if not chosen or network.name in chosen]


def random_bundle(key: str, source: Source) -> Bundle:
    """A peer that nobody trained: good for its time only."""
    torch.manual_seed(0)
    weights = build_model(key, num_classes=len(source.classes)).state_dict()
    return Bundle(BundleHeader({"name": key, "args": {}}, source.classes, size=TRAINING_SIZE), weights)


def setting(
    networks: Sequence[Network], size: tuple[int, int], source: Source, folder: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row per network: what it costs, how long each runtime and precision takes, how right the fastest is."""
    exports = [exported(network, size, folder / str(index), source) for index, network in enumerate(networks)]
    pipelines = {}
    for (index, network), pair in itertools.product(enumerate(networks), PAIRS):
        if found := engine(network, exports[index], *pair, options.threads):
            pipelines[index, *pair] = Pipeline(found, size, options.threads)
    stages = measure(pipelines, camera(source, size), repeats=options.rounds)
    times = {name: found[Scope.END_TO_END].ms for name, found in stages.items()}
    rows = []
    for index, network in enumerate(networks):
        own = {pair: pipelines[index, *pair] for pair in PAIRS if (index, *pair) in pipelines}
        took = {pair: summary(times[index, *pair]) for pair in own}
        rows.append(row(network, size, took, exports[index], own, source))
    return rows


def camera(source: Source, size: tuple[int, int]) -> list[np.ndarray]:
    """A few images: the data's own where the network resizes them, else cut or repeated to the network's size."""
    images = [source.read_image(sample) for sample in source.samples("val")[::30]]
    if size == TRAINING_SIZE:
        return images
    return [np.ascontiguousarray(np.pad(image, pads(image, size), mode="reflect")) for image in images]


def pads(image: np.ndarray, size: tuple[int, int]) -> list[tuple[int, int]]:
    return [(0, wanted - extent) for wanted, extent in zip(size, image.shape[:2], strict=True)] + [(0, 0)]


def exported(network: Network, size: tuple[int, int], folder: Path, source: Source) -> Path:
    """The network as files for each runtime and precision: ours with logits, a peer with labels."""

    def int8_networks(export: Export) -> Iterator[tuple[Artefact, Mapping[str, Any]]]:
        """As `Quantizer` itself, but what fails is printed and left out."""
        calibration, check = calibration_samples(network.bundle, source, count=CALIBRATION[size])
        make = Quantizer(network.bundle, calibration, check.thinned(1), tolerance=ANY)
        for original in export.artefacts:
            try:
                yield make.quantize(export, original)[0], {}
            except LithesegError as error:
                print(f"{network.name}: {error}", file=sys.stderr)

    export_bundle(
        network.bundle,
        folder,
        formats=FORMATS,
        widths=(network.width,),
        size=size,
        output_kind="logits" if network.ours else "labels",
        check=False,
        further=int8_networks,
    )
    return folder


def engine(network: Network, export: Path, runtime: str, precision: str, threads: int) -> Engine | None:
    """None where the network's int8 could not be made for this runtime."""
    if runtime == "torch":
        return bundle_engine(network.bundle, network.width, "torch", threads=threads)
    if precision not in {found.precision for found in load_export(export).artefacts if runtime in found.runtimes}:
        return None
    return open_engine(export, runtime=runtime, precision=precision, threads=threads)


def summary(milliseconds: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    cuts = quantiles(milliseconds, n=20, method="inclusive")
    return {"p50": cuts[9], "p95": cuts[18]}


def row(
    network: Network,
    size: tuple[int, int],
    times: Mapping[tuple[str, str], dict[str, float]],
    export: Path,
    pipelines: Mapping[tuple[str, str], Pipeline],
    source: Source,
) -> dict[str, Any]:
    cost = count(network.bundle.plain(network.width), size)
    scored = network.trained and size == TRAINING_SIZE
    timed = []
    for precision in dict.fromkeys(precision for _, precision in times):
        fastest = min((pair for pair in times if pair[1] == precision), key=lambda pair: times[pair]["p50"])
        timed.append(
            {
                "runtime": fastest[0],
                "precision": precision,
                **times[fastest],
                "miou": score(pipelines[fastest], source, source.samples("val")) if scored else None,
                "peak_mib": grown_memory(network, fastest, export, size),
            }
        )
    facts = {"network": network.name, "width": network.width, "ours": network.ours, "trained": network.trained}
    every = {f"{runtime} {precision}": value for (runtime, precision), value in times.items()}
    return {**facts, "params": cost.params, "macs": cost.macs, "ways": timed, "all": every}


def grown_memory(network: Network, pair: tuple[str, str], export: Path, size: tuple[int, int]) -> float | None:
    """MiB that labelling three images takes in a fresh process; None in PyTorch, which keeps weights of its own."""
    if pair[0] == "torch":
        return None
    job = json.dumps({"export": str(export), "runtime": pair[0], "precision": pair[1], "size": size})
    command = [sys.executable, str(Path(__file__).parent), "peers", "--memory-of", job]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_memory(export: str, runtime: str, precision: str, size: tuple[int, int]) -> float:
    """What `grown_memory` starts: MiB by which the resident set grows at most, modules imported before left out."""
    before = memory("self", "VmRSS") or 0.0
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    pipeline = Pipeline(open_engine(export, runtime=runtime, precision=precision), (size[0], size[1]))
    for seed in range(3):
        pipeline(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))
    return ((memory("self", "VmHWM") or 0.0) - before) / 2**20
