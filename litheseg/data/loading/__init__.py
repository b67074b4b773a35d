"""From a source to batches for training and validation: decoded once, augmented on the device.

In the order of the way: `cache` decodes, `views` chooses what is cut out of an image, `transforms` computes it,
`batches` puts images together, and `datamodule` is what Lightning takes. Only this part of `data` needs PyTorch.
"""

from __future__ import annotations

__all__: list[str] = []
