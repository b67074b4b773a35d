"""Runs ncnn's own files, on CPUs from phones to servers.

A benchmark kit holds this file beside its script, so it needs Python 3.9 or newer, NumPy and the runtime, no litheseg.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["open_network"]

_PIXELS = {1: "PIXEL_GRAY", 3: "PIXEL_RGB", 4: "PIXEL_RGBA"}


def open_network(
    path: str, *, precision: str = "fp32", threads: int | None = None, device: str = "cpu"
) -> Callable[[np.ndarray], np.ndarray]:
    """A network that threads may share; see `litheseg.runtime.engines.open_engine`."""
    import ncnn

    if device != "cpu":
        raise NotImplementedError(f"ncnn runs on the CPU here, not on '{device}'; choose cpu, or --runtime torch")
    if precision == "fp16" and not ncnn.cpu_support_arm_asimdhp():
        raise NotImplementedError("this CPU has no fp16 (ncnn would compute in fp32); choose fp32")
    network = ncnn.Net()
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
        setattr(network.opt, option, precision == "fp16")
    if threads is not None:
        network.opt.num_threads = threads
    if network.load_param(path):
        raise RuntimeError(_unknown(ncnn, Path(path)) or "it cannot be read: it is damaged")
    if network.load_model(str(Path(path).with_suffix(".bin"))):
        raise RuntimeError("its weights cannot be read: they are damaged, or not beside it")
    [source], [result] = network.input_names(), network.output_names()

    def run(batch: np.ndarray) -> np.ndarray:
        extractor = network.create_extractor()
        image = _matrix(ncnn, batch[0])
        extractor.input(source, image)
        failed, output = extractor.extract(result)
        if failed:
            raise MemoryError("it ran out of memory")
        return np.array(output)[None]

    return run


def _matrix(ncnn: Any, image: np.ndarray) -> Any:
    """The image, h x w x C, as float32 planes."""
    height, width, channels = image.shape
    if image.dtype == np.uint8 and channels in _PIXELS:
        return ncnn.Mat.from_pixels(image, getattr(ncnn.Mat.PixelType, _PIXELS[channels]), width, height)
    planes = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)
    return ncnn.Mat(planes).clone()  # which does not keep the array, but borrows its memory


def _unknown(ncnn: Any, path: Path) -> str:
    """The first operator that this ncnn lacks, with its layer."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[2:]:
        words = line.split()
        if len(words) > 3 and words[0] != "litheseg" and ncnn.layer_to_index(words[0]) < 0:
            return f"it has no operator '{words[0]}', which layer '{words[1]}' needs: pip install --upgrade ncnn"
    return ""
