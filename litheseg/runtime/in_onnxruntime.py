"""Runs ONNX files in ONNX Runtime.

A benchmark kit holds this file beside its script, so it needs Python 3.9 or newer, NumPy and the runtime, no litheseg.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["open_network", "session_options"]


def open_network(
    path: str, *, precision: str = "fp32", threads: int | None = None, device: str = "cpu"
) -> Callable[[np.ndarray], np.ndarray]:
    """A session, which is safe to be shared; see `litheseg.runtime.engines.open_engine`."""
    import onnxruntime

    providers = _providers(path, device)
    first = providers[0][0]
    if first not in onnxruntime.get_available_providers():
        raise NotImplementedError(f"this ONNX Runtime has no '{device}'; install onnxruntime-gpu, or choose cpu")
    session = onnxruntime.InferenceSession(path, session_options(threads), providers=providers)
    if session.get_providers()[0] != first:  # it says nothing, and takes the next
        raise NotImplementedError(
            f"ONNX Runtime cannot start '{device}' here: libraries of CUDA, cuDNN or TensorRT are missing or of "
            f"another version than {onnxruntime.__version__} wants; see docs/targets/tensorrt.md, or choose cpu"
        )
    name = session.get_inputs()[0].name
    return lambda batch: np.asarray(session.run(None, {name: batch})[0])


def _providers(path: str, device: str) -> list[tuple[str, dict[str, str]]]:
    """What computes on a device, and what takes over the operators that it lacks."""
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda", "tensorrt"):
        raise NotImplementedError(f"ONNX Runtime runs on cpu, cuda or tensorrt here, not on '{device}'; choose one")
    providers: list[tuple[str, dict[str, str]]] = [("CPUExecutionProvider", {})]
    if kind != "cpu":  # in 32 bits, as certified: products in 19 bits (TF32) are faster
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": number or "0", "use_tf32": "0"}))
    if kind == "tensorrt":  # what it built in minutes is kept beside the network
        cache = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(Path(path).parent / "tensorrt")}
        providers.insert(0, ("TensorrtExecutionProvider", {"device_id": number or "0", **cache}))
    return providers


def session_options(threads: int | None = None) -> Any:
    """Options of an ONNX Runtime session; the sessions of a process share one memory arena.

    Otherwise each keeps what its largest pass took, and all widths together several times what one of them needs.
    """
    import onnxruntime

    _share_memory()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.enable_mem_pattern = False  # a plan of each network's own, kept besides
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    return options


@cache
def _share_memory() -> None:
    """Once for the process."""
    import onnxruntime

    kind, default = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
    onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", kind, 0, default), None)
