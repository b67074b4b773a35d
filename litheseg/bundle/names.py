"""Where a model lies that is given by name or path: the one place in which names become files.

Wherever a model is named, in Python, on the command line or in a recipe, it may be a path, `zoo:NAME` (of the zoo) or
`hf:OWNER/NAME` (of the Hugging Face hub). What opens model files and exports asks here.

Usage:
    >>> model_path("runs/street/model.safetensors")
    PosixPath('runs/street/model.safetensors')
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path, PurePath

__all__ = ["distinct_names", "is_named", "model_path"]

_SCHEMES = ("zoo:", "hf:")


def is_named(model: str | Path) -> bool:
    """Whether a model is given by a name of the zoo or the hub rather than by its path."""
    return str(model).startswith(_SCHEMES)


def model_path(model: str | Path) -> Path:
    """The file or folder of a model; what is named and is not here is fetched.

    Args:
        model: a path, ``zoo:NAME``, ``zoo:NAME/EXPORT``, or ``hf:OWNER/NAME``, with ``@REVISION`` if need be.

    Raises:
        BundleError: an unknown name, or a file of the zoo that was changed.
        DownloadError: it is not here and cannot be fetched.
        MissingExtraError: the hub's client is not installed.
    """
    if not is_named(model):
        return Path(model).expanduser()
    scheme, _, name = PurePath(model).as_posix().partition(":")
    if scheme == "zoo":
        from litheseg.bundle.zoo import zoo_path  # what fetches files is loaded when there may be some to fetch

        return zoo_path(name)
    from litheseg.bundle.hub import hub_path

    return hub_path(name)


def distinct_names(models: Sequence[str | Path], taken: Collection[str] = ()) -> list[str]:
    """Short names of models for tables: those of their files without ending, or of their folders; whole paths at worst.

    Args:
        models: paths, or names such as ``zoo:camvid-lite0``.
        taken: names of others.
    """
    paths = [Path(model) for model in models]
    for names in ([path.stem for path in paths], [path.resolve().parent.name for path in paths]):
        if len({*names, *taken}) == len(names) + len(taken):
            return names
    return [str(path) for path in paths]
