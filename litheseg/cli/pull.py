"""Fetch a model by name, and print where it lies.

Nothing has to be pulled before it is used: wherever a model is named, zoo:NAME and hf:OWNER/NAME are fetched when they
are not here. They are kept in ~/.cache/litheseg (LITHESEG_CACHE names another folder), those of the hub in its cache.

Examples:
  litheseg pull zoo:camvid-lite0
  litheseg pull zoo:camvid-lite0/onnx            an export, for the box
  litheseg pull hf:owner/name@v1.0               of the Hugging Face hub: a branch, tag or commit
"""

from __future__ import annotations

from litheseg.bundle.names import is_named, model_path
from litheseg.cli.printing import show

__all__ = ["pull"]


def pull(name: str) -> None:
    """Print the path of the model file or of the export's folder.

    Args:
        name: zoo:NAME or NAME, zoo:NAME/EXPORT, or hf:OWNER/NAME.
    """
    show(str(model_path(name if is_named(name) else f"zoo:{name}")))
