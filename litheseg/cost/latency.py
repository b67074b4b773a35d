"""How long a forward pass takes: percentiles of several candidates measured side by side.

Candidates take turns, round after round, and the order rotates: a busy machine or a throttled clock then slows all of
them alike instead of the one that happened to be measured last. Compare by p50; promise p95.

It does not know models, widths or budgets: a candidate is any callable that takes the input, so an ONNX or OpenVINO
session is measured by the same clock as a PyTorch module.

Usage:
    >>> measure_latency({"wide": wide, "narrow": narrow}, size=(512, 1024))["narrow"].p50  # milliseconds
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from litheseg.errors import LithesegError

__all__ = ["Latency", "evaluating", "measure_latency", "threads_limited"]


@dataclass(frozen=True)
class Latency:
    """Wall-clock milliseconds of one forward pass over `repeats` passes."""

    p50: float
    p95: float
    mean: float
    repeats: int

    @classmethod
    def of(cls, nanoseconds: list[int]) -> Latency:
        """Summarise measured durations (at least one); percentiles are linearly interpolated."""
        values = torch.tensor(nanoseconds, dtype=torch.float64) / 1e6
        p50, p95 = torch.quantile(values, torch.tensor([0.5, 0.95], dtype=torch.float64)).tolist()
        return cls(p50=p50, p95=p95, mean=values.mean().item(), repeats=len(nanoseconds))


def measure_latency(
    modules: Mapping[str, Callable[[Any], Any]],
    size: tuple[int, int] = (512, 1024),
    *,
    repeats: int = 20,
    warmup: int = 3,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    channels_last: bool = False,
    batch: int = 1,
    example: Any = None,
) -> dict[str, Latency]:
    """Time each callable on the same input, interleaved.

    `nn.Module`s run in eval mode (their own mode is restored) and everything runs under `torch.inference_mode`; they
    must already be on `device`. On CUDA the device is synchronised around every pass.

    Args:
        modules: name -> callable taking the input.
        size: height and width of the input in pixels.
        repeats: timed passes per callable, >= 1.
        warmup: untimed passes per callable before the first timed one, >= 0.
        device: where the input lies.
        threads: intra-op CPU threads of PyTorch while measuring, restored afterwards; None leaves them as they are.
        channels_last: memory format of the input.
        batch: number of images in the input.
        example: the input to use instead of random float32 N3HW, for runtimes that take another kind.

    Returns:
        name -> milliseconds, in the order of `modules`.

    Raises:
        LithesegError: `repeats`, `warmup` or `threads` out of range.
    """
    if repeats < 1 or warmup < 0 or (threads is not None and threads < 1):
        raise LithesegError(
            f"latency needs repeats >= 1, warmup >= 0 and threads >= 1, not {repeats}, {warmup} and {threads}"
        )
    device = torch.device(device)
    image = _random_image(batch, size, device, channels_last) if example is None else example
    names = list(modules)
    times: dict[str, list[int]] = {name: [] for name in names}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(threads_limited(threads))
        stack.enter_context(_no_garbage_collection())
        for module in modules.values():
            if isinstance(module, nn.Module):
                stack.enter_context(evaluating(module))
        for turn in range(warmup + repeats):
            for position in range(len(names)):
                # Rotate, so that no candidate always inherits the caches of the same neighbour.
                name = names[(position + turn) % len(names)]
                elapsed = _time_once(modules[name], image, device)
                if turn >= warmup:
                    times[name].append(elapsed)
    return {name: Latency.of(values) for name, values in times.items()}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """Put a module into eval mode; on leaving, every submodule gets back the mode it had."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield module
    finally:
        for child, training in modes.items():
            child.training = training


@contextmanager
def threads_limited(threads: int | None) -> Iterator[None]:
    """Run with this many intra-op CPU threads, then restore the former number; None changes nothing."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect first, then keep the collector out of the timings, as `timeit` does."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _random_image(batch: int, size: tuple[int, int], device: torch.device, channels_last: bool) -> torch.Tensor:
    # An own generator: measuring must not disturb the random state of a training run.
    image = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    return image.contiguous(memory_format=torch.channels_last) if channels_last else image


def _time_once(call: Callable[[Any], Any], image: Any, device: torch.device) -> int:
    _synchronise(device)
    start = time.perf_counter_ns()
    call(image)
    _synchronise(device)
    return time.perf_counter_ns() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
