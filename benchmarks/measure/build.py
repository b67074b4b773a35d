"""`litheseg build` against FPN on the same pretrained Lite0, trained for the same minutes at the same time.

A part of the labelled images is held out from both. Both train at once, each on its own threads, so that load from
other programs falls on both alike: the build for so many minutes with everything that it does, FPN for as many minutes
of training alone, on the images, size and crop of the build's plan, with our trainer. Then both are exported and label
the held-out images, and are timed in turns, each through its best runtime and precision. With --coco, what both may see
is written as COCO first, and comes back by `litheseg data import`.

    python benchmarks/measure build --data data/camvid --leave-out 0006R0 --minutes 20 --threads 1 --work runs/compare
    python benchmarks/measure build --data data/membrane --every 5 --minutes 20 --threads 1 --work runs/compare-membrane
    python benchmarks/measure build --data data/camvid --leave-out 0001TP --coco --minutes 20 --work runs/compare-coco
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from records import save

from litheseg.budget.measure import score
from litheseg.building.plan import read_plan
from litheseg.building.result import read_result
from litheseg.bundle.exported import load_export
from litheseg.data import open_source
from litheseg.data.sources.base import Sample, Source
from litheseg.data.sources.folder import FolderSource
from litheseg.data.sources.splits import belongs
from litheseg.deploy.quantize import calibration_samples
from litheseg.files import atomic_folder, write_text
from litheseg.machine import interleave
from litheseg.masks.classes import class_file_text
from litheseg.masks.pictures import encode_mask, encode_png
from litheseg.models.bundle import load_bundle
from litheseg.runtime.engines import open_engine
from litheseg.runtime.pipeline import Pipeline
from measure import peer_models  # noqa: F401 - registers the peer
from measure.common import arguments, both_clocks, show
from measure.runtimes import EXPORTED, Deployed

LIBRARIES = ("torch", "timm", "segmentation-models-pytorch", "onnxruntime", "openvino", "nncf")
_PEER = "peer-fpn-lite0"
_TRAIN_PEER = """
import sys
sys.path.insert(0, sys.argv[1])
import measure.peer_models
from litheseg.cli import main
sys.exit(main(sys.argv[2:]))
"""


def main() -> None:
    """Divide, train both, score and time them, print a table, write records."""
    parser = arguments(__doc__, threads=1, rounds=20)
    parser.add_argument("--data", required=True)
    parser.add_argument("--leave-out", help="hold out the images of this sequence")
    parser.add_argument("--every", type=int, help="hold out every so many images, beginning with the first")
    parser.add_argument("--coco", action="store_true", help="by way of COCO's format")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--work", type=Path, required=True, help="of data, runs and exports, which are kept")
    options = parser.parse_args()
    work = options.work
    torch.set_num_threads(options.threads)
    divide(open_source("auto", options.data), work, options.leave_out, options.every)
    if options.coco and not (work / "coco").exists():
        (work / "seen").rename(work / "plain")
        write_coco(FolderSource(work / "plain", val_fraction=0), work / "coco")
        words = ["data", "import", str(work / "coco"), str(work / "seen"), "--unlabelled-as", "ignore"]
        subprocess.run([sys.executable, "-m", "litheseg", *words], check=True)
    train_both(work, options.minutes, options.threads)
    test = FolderSource(work / "test", val_fraction=0)
    networks = {"litheseg build": ours(work), "FPN, Lite0 (smp)": peer(work, test)}
    rows = [{"network": name, **facts} for name, facts in compared(networks, test, options).items()]
    show(
        rows,
        f"{options.minutes:g} minutes, {options.threads} thread(s) each, scored on {len(test.samples('train'))} images",
    )
    save(options, {"rows": rows}, *LIBRARIES, clock="CPU time and wall-clock time, in turns")


def divide(source: Source, work: Path, leave_out: str | None, every: int | None) -> None:
    """Two folders: what both may see, and what both are scored on."""
    samples = [sample for sample in source.samples("train") if sample.labelled]
    if every:
        test = samples[::every]
    else:
        test = [sample for sample in samples if belongs(sample.id, leave_out or "")]
    for name, chosen in (("seen", [s for s in samples if s not in test]), ("test", test)):
        if not (work / name).exists():
            with atomic_folder(work / name) as draft:
                write(source, chosen, draft)


def write(source: Source, samples: Sequence[Sample], folder: Path) -> None:
    """Images and masks as files."""
    write_text(folder / "classes.yaml", class_file_text(source.classes))
    for sample in samples:
        for kind, content in (
            ("images", encode_png(source.read_image(sample))),
            ("masks", encode_mask(source.read_mask(sample), source.classes)),
        ):
            path = folder / kind / f"{sample.id}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def write_coco(source: FolderSource, folder: Path) -> None:
    """Images, and one file with run lengths of every class in every image."""
    from pycocotools.mask import encode

    names = source.classes.names
    content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": index + 1, "name": name} for index, name in enumerate(names)]
    for number, sample in enumerate(source.samples("train"), 1):
        mask, file = source.read_mask(sample), f"{sample.id}.png"
        content["images"].append({"id": number, "file_name": file, "height": mask.shape[0], "width": mask.shape[1]})
        for index in range(len(names)):
            if (inside := mask == index).any():
                runs = encode(np.asfortranarray(inside, np.uint8))
                shape = {"size": runs["size"], "counts": runs["counts"].decode()}
                ids = {"id": len(content["annotations"]) + 1, "image_id": number, "category_id": index + 1}
                content["annotations"].append({**ids, "segmentation": shape, "iscrowd": 0, "area": int(inside.sum())})
        (folder / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / file).write_bytes(encode_png(source.read_image(sample)))
    write_text(folder / "annotations" / "instances_train.json", json.dumps(content))


def train_both(work: Path, minutes: float, threads: int) -> None:
    """At the same time, in processes of their own; the peer begins when the plan is there."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "litheseg", "build", str(work / "seen"), "--minutes", str(minutes)]
    command += ["--output", str(work / "ours"), f"--trainer.threads={threads}"]
    build = subprocess.Popen(command, env=environment)
    plan = work / "ours" / "plan.yaml"
    while not plan.exists() and build.poll() is None:
        time.sleep(1)
    fields = [option for option in read_plan(plan.read_text()).overrides if option.startswith("--data.")]
    fields += [f"--model.name={_PEER}", "--model.args={pretrained: auto}", "--widths=[1.0]", "--trainer.val_every=1000"]
    fields += [f"--trainer.minutes={minutes}", "--trainer.epochs=1000", f"--trainer.threads={threads}"]
    words = ["train", "--recipe", "supervised", *fields, "--output", str(work / "peer"), "--resume"]
    here = str(Path(__file__).parents[1])
    peer = subprocess.Popen([sys.executable, "-c", _TRAIN_PEER, here, *words], env=environment)
    if build.wait() or peer.wait():
        sys.exit("a training failed; the same command goes on")


def ours(work: Path) -> dict[str, Pipeline]:
    """What the build deploys, as it is."""
    result = read_result(work / "ours")
    width, size, precision = (result.promise[name] for name in ("width", "size", "precision"))
    runtime = result.promise["runtime"]
    engine = open_engine(load_export(result.deployed), width=width, runtime=runtime, precision=precision, threads=1)
    return {f"width {width:g}, {size[0]}x{size[1]}, {precision} {runtime}": Pipeline(engine, tuple(size), 1)}


def peer(work: Path, test: FolderSource) -> dict[str, Pipeline]:
    """The peer in every runtime and precision."""
    bundle = load_bundle(work / "peer" / "model.safetensors")
    size = bundle.header.size
    deployed = Deployed(bundle, 1.0, size, work / "peer-export")
    calibration, check = calibration_samples(bundle, FolderSource(work / "seen", val_fraction=0.1), count=32)
    deployed.export(calibration, check.thinned(1))
    engines = deployed.engines(1, EXPORTED)
    return {f"{size[0]}x{size[1]}, {choice[1]} {choice[0]}": Pipeline(e, size, 1) for choice, e in engines.items()}


def compared(networks: dict[str, dict[str, Pipeline]], test: FolderSource, options: Any) -> dict[str, dict[str, Any]]:
    """Scores and times; of the peer's variants the fastest whose mIoU is within half a point of the best."""
    samples = test.samples("train")
    images = itertools.cycle([test.read_image(sample) for sample in samples[:4]])
    calls = {
        (name, variant): partial(lambda pipeline: pipeline(next(images)), pipeline)
        for name, variants in networks.items()
        for variant, pipeline in variants.items()
    }
    times = interleave(calls, options.rounds, timed=both_clocks)
    result: dict[str, dict[str, Any]] = {}
    for name, variants in networks.items():
        found = {}
        for variant, pipeline in variants.items():
            scores = score(pipeline, test, samples)
            worst, index = min((iou, i) for i, iou in enumerate(scores["iou"]) if iou is not None)
            found[variant] = {
                "as": variant,
                "miou": scores["miou"],
                "worst": worst,
                "worst_class": test.classes.names[index],
                "cpu_ms": median(cpu for cpu, _ in times[name, variant]),
                "p50_ms": median(wall for _, wall in times[name, variant]),
            }
        best = max(facts["miou"] for facts in found.values())
        result[name] = min((f for f in found.values() if f["miou"] >= best - 0.005), key=lambda f: f["cpu_ms"])
    return result


if __name__ == "__main__":
    main()
