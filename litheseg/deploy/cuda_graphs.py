"""Passes of a network on a GPU as CUDA graphs: recorded once per size of the input, then replayed in one launch.

A small network takes a GPU less time than the starting of its kernels takes the CPU; a graph starts all of them at
once. Recording takes the time of several passes and memory of its own, so only sizes that come again are recorded, and
only so many: others run as they would without, and so do those that cannot be recorded, or whose first replay does not
give what the network gives.

Usage:
    >>> passes = RecordedPasses(module, torch.device("cuda"))
    >>> logits = passes(images)  # N x h x w x C on the CPU -> what `module` gives, on the GPU, the caller's own
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from litheseg.errors import first_line

__all__ = ["RecordedPasses", "Recorder"]

_log = logging.getLogger(__name__)

_WORTH = 3  # times that a size has to come before it is recorded
_MOST = 16  # graphs
_APART = 0.01  # of the largest result, by which a replay may differ: libraries may choose other kernels
_WARMUP = 3  # passes before a recording, in which libraries choose their kernels


class Recorder(Protocol):
    """Records what a function starts on a GPU."""

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        """Run it, and return what starts the same again, and the tensor that then holds the result."""


class _GpuRecorder:
    """CUDA graphs of one device; they share memory, which is safe since results are copied before the next replay."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_WARMUP):
                function()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # What other threads start meanwhile (labels of other images) is not part of it, and no error.
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            result = function()
        return graph.replay, result


@dataclass(frozen=True)
class _Recorded:
    images: Tensor
    replay: Callable[[], Any]
    result: Tensor


class RecordedPasses:
    """Runs a function of images, recorded where that is worth it; several threads may call it.

    Args:
        function: images N x h x w x C on the device -> a tensor; the same operations for the same size, none of which
            waits for the GPU.
        device: a GPU.
        recorder: of what the function starts; None for CUDA graphs.

    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], device: torch.device, recorder: Recorder | None = None
    ) -> None:
        self._function, self._device = function, device
        self._recorder = recorder or _GpuRecorder(device)
        self._seen: Counter[tuple[int, ...]] = Counter()
        self._made: dict[tuple[int, ...], _Recorded | None] = {}
        self._lock = threading.Lock()

    @property
    def recorded(self) -> tuple[tuple[int, ...], ...]:
        """Sizes of the inputs, N x h x w x C, that have been recorded."""
        return tuple(size for size, made in self._made.items() if made is not None)

    def __call__(self, images: Tensor) -> Tensor:
        """The function's result.

        Args:
            images: N x h x w x C, on the CPU.
        """
        with self._lock:  # a graph has one input, which nobody may overwrite before it is computed
            made = self._graph(images)
            if made is None:
                return self._function(images.to(self._device))
            made.images.copy_(images)
            made.replay()
            return made.result.clone()

    def _graph(self, images: Tensor) -> _Recorded | None:
        """The recording for this size; None where there is none, or not yet."""
        size = tuple(images.shape)
        if size not in self._made:
            self._seen[size] += 1
            if self._seen[size] < _WORTH or len(self._made) == _MOST:
                return None
            self._made[size] = self._record(images)
        return self._made[size]

    def _record(self, images: Tensor) -> _Recorded | None:
        kept = images.to(self._device, copy=True)
        try:
            replay, result = self._recorder(lambda: self._function(kept))
            expected = self._function(kept)
            replay()
            apart, largest = (result - expected).abs().max(), expected.abs().max()
            problem = "" if bool(apart <= _APART * largest) else "what it gives is not what the network gives"
        except RuntimeError as error:  # an operation that waits for the GPU, or no memory left
            problem = first_line(error)
        if problem:
            _log.warning("images of %s run without a CUDA graph: %s", tuple(images.shape), problem)
            return None
        return _Recorded(kept, replay, result)
