"""Runs OpenVINO's own files, and ONNX, in OpenVINO.

A benchmark kit holds this file beside its script, so it needs Python 3.9 or newer, NumPy and the runtime, no litheseg.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

__all__ = ["open_network", "openvino_core"]


def open_network(
    path: str, *, precision: str = "fp32", threads: int | None = None, device: str = "cpu"
) -> Callable[[np.ndarray], np.ndarray]:
    """A compiled model, of which every thread has a request of its own; see `litheseg.runtime.engines.open_engine`."""
    core = openvino_core()
    if device != "cpu":
        raise NotImplementedError(f"OpenVINO runs on the CPU here, not on '{device}'; choose cpu, or --runtime torch")
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise NotImplementedError("this CPU has no bf16 (OpenVINO would compute in fp32); choose fp32 or int8")
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_PRECISION_HINT"] = "bf16" if precision == "bf16" else "f32"
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    model, own = core.compile_model(path, "CPU", settings), threading.local()

    def run(batch: np.ndarray) -> np.ndarray:
        if not hasattr(own, "request"):
            own.request = model.create_infer_request()
        own.request.infer([batch], share_inputs=True)
        return np.array(own.request.get_output_tensor(0).data)  # a copy: the next call overwrites it

    return run


@cache
def openvino_core() -> Any:
    """The one `openvino.Core` of this process that compiles networks.

    With two, the next signal can end the process: OpenVINO's CPU plugin, one per core, gives the thread that loads it a
    stack for signal handlers, and when the core goes restores the one before, though that may have gone earlier.
    """
    import openvino

    return openvino.Core()
