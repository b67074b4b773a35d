"""How a module runs outside of training: in evaluation mode, on some threads, in bfloat16 where that is fast.

Usage:
    >>> with evaluating(module), threads_limited(1), torch.inference_mode():
    ...     logits = module(image)
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["evaluating", "has_bfloat16", "threads_limited"]


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
    """Run with this many of PyTorch's CPU threads, then restore the former number; None changes nothing."""
    before = torch.get_num_threads()
    if threads is not None and threads != before:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a GPU or this CPU multiplies bfloat16; others can, slowly, by way of float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported())
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
