"""Write a model or an export, and its card, to the Hugging Face hub.

A repository may hold both: push the model file and then its export. Wherever a model is named, hf:OWNER/NAME is the
model file, or, where PyTorch is not installed, the export. It needs the extra `hub` and a token of the hub that may
write: `hf auth login`, or the environment variable HF_TOKEN.

Examples:
  litheseg push runs/mine/model.safetensors hf:me/crops --licence apache-2.0
  litheseg push exports/mine hf:me/crops --licence apache-2.0
  litheseg push zoo:camvid-lite0 hf:me/camvid-lite0 --private
"""

from __future__ import annotations

from pathlib import Path

from litheseg.bundle.exported import is_export, load_export
from litheseg.bundle.header import BundleHeader
from litheseg.bundle.hub import MODEL_FILE, push_files
from litheseg.bundle.names import model_path
from litheseg.cli.printing import show
from litheseg.errors import LithesegError
from litheseg.lazy import workstation
from litheseg.progress import work
from litheseg.report.hub_card import hub_card

__all__ = ["push"]

_CARD = "README.md"


def push(model: Path, target: str, *, licence: str = "other", private: bool = False, message: str = "") -> None:
    """Print the address of the commit.

    Args:
        model: a model file, or the folder of an export.
        target: hf:OWNER/NAME, or hf:OWNER/NAME@BRANCH.
        licence: the hub's name of the model's licence, such as apache-2.0; what the data allows is for you to know.
        private: make a repository that only you see, if there is none yet.
        message: of the commit; by default says what was pushed.
    """
    name = target.removeprefix("hf:")
    if name == target:
        raise LithesegError(f"'{target}' is no repository of the hub; write hf:OWNER/NAME")
    header, files, more = _contents(model_path(model))
    files[_CARD] = hub_card(header, name.partition("@")[0], licence=licence, more=more).encode()
    with work(f"writing {len(files)} files to {target}"):
        address = push_files(name, files, private=private, message=message or f"{Path(model).name}, by litheseg")
    show(address)


def _contents(path: Path) -> tuple[BundleHeader, dict[str, Path | bytes], str]:
    """What a model says of itself, its files by their path in the repository, and what its own README says."""
    if not is_export(path):
        return workstation("models.bundle", f"reading {path}").load_bundle(path).header, {MODEL_FILE: path}, ""
    export = load_export(path)
    if not path.is_dir():
        raise LithesegError(f"{path} is one network of an export; give the folder")
    files: dict[str, Path | bytes] = {
        file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()
    }
    readme = files.pop(_CARD, None)
    return export.header, files, readme.read_text(encoding="utf-8") if isinstance(readme, Path) else ""
