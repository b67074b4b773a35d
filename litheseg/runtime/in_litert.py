"""Runs LiteRT files (.tflite) in LiteRT's interpreter, with its kernels of XNNPACK.

A benchmark kit holds this file beside its script, so it needs Python 3.9 or newer, NumPy and the runtime, no litheseg.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["open_network"]


def open_network(
    path: str, *, precision: str = "fp32", threads: int | None = None, device: str = "cpu"
) -> Callable[[np.ndarray], np.ndarray]:
    """An interpreter for each thread that asks, for they cannot be shared; see `litheseg.runtime.engines.open_engine`.

    LiteRT's own choice would be one thread of the CPU; here, as in other runtimes, it is all of its cores.
    """
    from ai_edge_litert.interpreter import Interpreter

    if device != "cpu":
        raise NotImplementedError(f"LiteRT runs on the CPU here, not on '{device}'; choose cpu, or --runtime torch")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    content, own = Path(path).read_bytes(), threading.local()  # the file may be gone when another thread comes

    def opened() -> Any:
        interpreter = Interpreter(model_content=content, num_threads=threads or cores)
        interpreter.allocate_tensors()
        (image,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
        own.network = interpreter, image["index"], output["index"]
        return own.network

    def run(batch: np.ndarray) -> np.ndarray:
        interpreter, image, output = getattr(own, "network", None) or opened()
        interpreter.set_tensor(image, batch)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(output))  # a copy

    opened()  # what is wrong with the file is said now
    return run
