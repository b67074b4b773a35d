"""Runs Core ML's packages (.mlpackage) on a Mac, on whatever Core ML chooses: processor, GPU or Neural Engine.

A benchmark kit holds this file beside its script, so it needs Python 3.9 or newer, NumPy, Pillow and the runtime, no
litheseg.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

__all__ = ["open_network"]


def open_network(
    path: str, *, precision: str = "fp32", threads: int | None = None, device: str = "cpu"
) -> Callable[[np.ndarray], np.ndarray]:
    """A compiled model, which threads may share, in turns; see `litheseg.runtime.engines.open_engine`.

    Core ML has no number of threads to set; `threads` says nothing to it.
    """
    import coremltools
    from PIL import Image

    if device != "cpu":
        raise NotImplementedError(f"Core ML chooses where it runs by itself; leave out --device {device}")
    model, lock = coremltools.models.MLModel(path), threading.Lock()
    takes_pictures = model.get_spec().description.input[0].type.WhichOneof("Type") == "imageType"

    def run(batch: np.ndarray) -> np.ndarray:
        image = Image.fromarray(batch[0]) if takes_pictures else batch.transpose(0, 3, 1, 2).astype(np.float32)
        with lock:
            return np.asarray(model.predict({"image": image})["logits"])

    return run
