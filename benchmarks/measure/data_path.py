"""What fraction of a training step the data path costs, by ratio within one run.

Each step is timed in two parts, one after the other, so that load from other programs falls on both alike: the data
path (draw the batch from the cache, move it, augment it) and the training step (forward, cross entropy, backward, SGD).
Images lie in memory from the start: what is left out is the first epoch's decoding, which a cached run pays once.

    python benchmarks/measure data_path --size 180 240 --batch-size 8 --output benchmarks/results/data_path.jsonl
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from records import save
from torch import Tensor

from litheseg.data import open_source
from litheseg.data.loading.datamodule import SegmentationData
from litheseg.masks.classes import IGNORE_INDEX
from litheseg.models.ddrnet import DDRNet
from measure.common import arguments, show

TARGET = 0.10


def main() -> None:
    """Parse, measure each cache, print a table, write records."""
    parser = arguments(__doc__, size=(180, 240), batch_size=8, threads=1, seed=0)
    parser.add_argument("--base", type=int, default=32, help="DDRNet's base channels")
    parser.add_argument("--steps", type=int, default=10, help="timed steps, after two for warming up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--caches", nargs="+", default=["ram", "device"], choices=["ram", "device", "none"])
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    rows = [{"cache": cache} | measure(options, cache, device) for cache in options.caches]
    show(rows, f"data path and training step (target: at most {TARGET:.0%})")
    save(options, {"target": TARGET, "rows": rows}, "torch", device=options.device)


def measure(options: argparse.Namespace, cache: Any, device: torch.device) -> dict[str, float]:
    """Median milliseconds of both parts, and the data path's fraction of their sum (median over steps, and worst)."""
    size, batch_size = tuple(options.size), options.batch_size
    source = open_source("streets", train=4 * batch_size, val=1, size=size)
    data = SegmentationData(source, batch_size=batch_size, cache=cache, seed=options.seed)
    model = DDRNet(len(source.classes), base=options.base).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    batches, times = endless(data), []
    for _ in range(2 + options.steps):
        started = now(device)
        batch = {key: value.to(device, non_blocking=True) for key, value in next(batches).items()}
        batch = data.on_after_batch_transfer(batch)
        loaded = now(device)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(batch["image"]), batch["mask"], ignore_index=IGNORE_INDEX).backward()
        optimizer.step()
        times.append((loaded - started, now(device) - loaded))
    times = times[2:]
    fractions = [data_time / (data_time + step_time) for data_time, step_time in times]
    return {
        "data_ms": 1e3 * median(data_time for data_time, _ in times),
        "step_ms": 1e3 * median(step_time for _, step_time in times),
        "fraction": median(fractions),
        "worst_fraction": max(fractions),
    }


def endless(data: SegmentationData) -> Iterator[dict[str, Tensor]]:
    loader: Any = data.train_dataloader()
    epoch = 0
    while True:
        loader.sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def now(device: torch.device) -> float:
    """Seconds, after the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
