"""Models on the way back from a borrowed machine: half as large, and model files again at home.

Weights of more than one dimension are rounded to half precision; norms and biases, which are small, are not. Neither
end loads PyTorch before it must.

Usage:
    >>> halve(Path("runs/gpu/slimseg/KEY/model.safetensors"), Path("out/KEY.half.safetensors"), LARGEST)
    >>> restore(Path("out/KEY.half.safetensors"), Path("zoo/KEY.safetensors"))
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from litheseg.errors import LithesegError
from litheseg.files import atomic_path

__all__ = ["LARGEST", "halve", "restore"]

LARGEST = 16 * 2**20  # bytes of a file that may come back
_BUNDLE, _HALF = "litheseg", "litheseg-half"  # entries of a file's metadata


def halve(bundle: Path, target: Path, largest: int) -> int:
    """Write a model file's weights in half precision; returns the bytes.

    Raises:
        LithesegError: more bytes than `largest`.
    """
    with safe_open(bundle, framework="numpy") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # it is no mapping
        metadata = {_HALF: json.dumps(json.loads(file.metadata()[_BUNDLE])["header"])}
    small = {
        name: value.astype(np.float16) if value.dtype == np.float32 and value.ndim > 1 else value
        for name, value in state.items()
    }
    size = sum(value.nbytes for value in small.values())
    if size > largest:
        raise LithesegError(f"{bundle} has {size / 2**20:.1f} MiB in half precision, more than {largest / 2**20:g}")
    with atomic_path(target) as temporary:
        save_file(small, temporary, metadata)
    return target.stat().st_size


def restore(half: Path, target: Path) -> None:
    """Write a model file from what `halve` wrote.

    Raises:
        LithesegError: another kind of file.
    """
    import torch

    from litheseg.bundle.header import BundleHeader
    from litheseg.models.bundle import Bundle, save_bundle

    with safe_open(half, framework="numpy") as file:
        header = (file.metadata() or {}).get(_HALF)
        if header is None:
            raise LithesegError(f"{half} is no model in half precision; give a file that a GPU run brought back")
        tensors = {name: torch.from_numpy(file.get_tensor(name)) for name in file.keys()}
    state = {name: value.float() if value.dtype == torch.float16 else value for name, value in tensors.items()}
    content = BundleHeader.from_json(json.dumps(json.loads(header)))
    save_bundle(target, Bundle(content, state).model(), content)
