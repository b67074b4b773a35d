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

import numpy as np
import torch
import torch.nn.functional as F
from records import save
from torch import Tensor, nn

from litheseg.data.datamodule import SegmentationData
from litheseg.data.source import Sample, Source
from litheseg.masks.classes import IGNORE_INDEX, Classes
from litheseg.models.ddrnet import DDRNet
from measure.common import arguments, show

TARGET = 0.10
CLASSES = 11


class NoiseSource(Source):
    """Random images and masks of one size; what they show does not matter here."""

    name, licence, citation = "noise", "none", "none"

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        self.classes = Classes(tuple(f"class {k}" for k in range(CLASSES)), ((0, 0, 0),) * CLASSES)
        self._count, self._size = count, size

    def splits(self) -> tuple[str, ...]:
        """One split."""
        return ("train",)

    def samples(self, split: str) -> tuple[Sample, ...]:
        """As many as asked for."""
        return tuple(Sample(f"{i:04}", None, None, split) for i in range(self._count))

    def read_image(self, sample: Sample) -> np.ndarray:
        """Noise, the same at each call."""
        return np.random.default_rng(int(sample.id)).integers(0, 256, (*self._size, 3), np.uint8)

    def read_mask(self, sample: Sample) -> np.ndarray:
        """Noise labels, the same at each call."""
        return np.random.default_rng(int(sample.id)).integers(0, CLASSES, self._size, np.uint8)

    def raw_mask(self, sample: Sample) -> np.ndarray:
        """The labels: there is no file."""
        return self.read_mask(sample)


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
    data = SegmentationData(NoiseSource(4 * batch_size, size), batch_size=batch_size, cache=cache, seed=options.seed)
    model = DDRNet(CLASSES, base=options.base).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    batches, times = endless(data), []
    for _ in range(2 + options.steps):
        started = now(device)
        batch = {key: value.to(device, non_blocking=True) for key, value in next(batches).items()}
        batch = data.on_after_batch_transfer(batch)
        loaded = now(device)
        train_step(model, optimizer, batch)
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


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> None:
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(model(batch["image"]), batch["mask"], ignore_index=IGNORE_INDEX).backward()
    optimizer.step()


def now(device: torch.device) -> float:
    """Seconds, after the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
