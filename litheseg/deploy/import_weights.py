"""Weights from elsewhere: a PyTorch state dict of a registered architecture becomes a bundle.

Authors name their layers as they like but define them in the order in which they run, and so do the models here.
Tensors are therefore matched by position, and each must have the shape and the kind (weight, bias, running mean or
variance) that the model has there. All of them fit, or nothing is loaded. Reading a file executes no code in it.

A state dict does not hold classes, normalisation and size; the caller gives them.

Usage:
    >>> how = {"classes": "cityscapes", "extra_class": ["void"], "normalisation": "none"}
    >>> import_weights("erfnet.pth", "erfnet.safetensors", model="erfnet", **how)
"""

from __future__ import annotations

import hashlib
import inspect
import io
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from litheseg import __version__
from litheseg.cost.widths import width_costs
from litheseg.data.sources.public import CITYSCAPES_CLASSES, VOC_CLASSES
from litheseg.errors import BundleError, DataError, LithesegError, ModelError, did_you_mean
from litheseg.masks.classes import CAMVID_CLASSES, UNKNOWN_INDEX, Classes, read_class_file
from litheseg.masks.image_format import IMAGENET_MEAN, IMAGENET_STD
from litheseg.models import MODELS, SegmentationModel, build_model
from litheseg.models.bundle import Bundle, BundleHeader, save_bundle
from litheseg.models.weights import Entries, entries, first_misfit, weight_problem
from litheseg.values import Numbers, Size, YamlMapping

__all__ = ["KNOWN_CLASSES", "NORMALISATIONS", "import_weights", "read_classes", "read_normalisation"]

KNOWN_CLASSES = {"camvid": CAMVID_CLASSES, "cityscapes": CITYSCAPES_CLASSES, "voc": VOC_CLASSES}
"""Class lists that need no file."""

NORMALISATIONS = {"imagenet": (IMAGENET_MEAN, IMAGENET_STD), "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}
"""Mean and standard deviation per RGB channel of images in [0, 1]; "none" leaves them in [0, 1]."""

_WRAPPERS = ("state_dict", "model_state_dict", "model", "weights", "net")
_CODE = re.compile(r"GLOBAL (\S+)")


@dataclass(frozen=True)
class _File:
    """What a file holds: its tensors without counters, and whether their order is that of definition."""

    path: Path
    sha256: str
    entries: Entries
    ordered: bool


def import_weights(
    weights: Path | str,
    output: Path | str,
    *,
    model: str,
    args: YamlMapping | None = None,
    classes: Classes | str,
    extra_class: Sequence[str] = (),
    normalisation: str | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    size: Size = (512, 1024),
    source_note: str = "",
    licence: str = "",
    force: bool = False,
) -> Bundle:
    """Write a bundle of weights, whole or not at all.

    A classifier on the encoder (where the model's `aux_head` is) may be in the file; it is checked and left out.

    Args:
        weights: a state dict, alone or in the usual wrappers: a PyTorch file, or a .safetensors file, which keeps no
            order and must hence have the model's own names.
        output: the model file; .safetensors is appended to a name without it.
        model: the architecture, see `litheseg models`.
        args: its arguments, such as {up: bilinear}.
        classes: camvid, cityscapes or voc, a file, or names with commas between them.
        extra_class: an output behind these; may be given several times.
        normalisation: what the weights expect of images: imagenet or none.
        mean: instead, of images in [0, 1], one number for each of red, green and blue.
        std: likewise.
        size: height and width in pixels that images are resized to for the network; MACs are counted for it.
        source_note: where the weights come from; kept in the provenance.
        licence: of the weights; likewise.
        force: replace a file that exists.

    Raises:
        BundleError: a file that cannot be read, would run code, or does not fit the model and its classes.
        DataError: no class list.
        ModelError: an unknown architecture or arguments that it does not take.
        LithesegError: `output` exists, or cannot be written; no normalisation, or two.
    """
    means, stds = read_normalisation(normalisation, mean, std)
    known, given = read_classes(classes, extra_class), dict(args or {})
    target = _checked_output(output, force)
    file = _read_file(Path(weights).expanduser())
    network = _filled(file, model, len(known), given)
    header = BundleHeader(
        architecture={"name": model, "args": given},
        classes=known,
        size=size,
        mean=tuple(means),
        std=tuple(stds),
        provenance=_provenance(file, source_note, licence),
    )
    [cost] = width_costs(network, size=header.size)
    return save_bundle(target, network, replace(header, metrics={"1": {"params": cost.params, "macs": cost.macs}}))


def read_classes(given: Classes | str, extra: Iterable[str] = ()) -> Classes:
    """Classes as a user names them.

    Args:
        given: some; a key of `KNOWN_CLASSES`; a class file (.yaml, .yml or .json, see `litheseg.masks.classes`); any
            other file, one name a line; or names with commas between them.
        extra: names of further outputs behind these, drawn in black.

    Raises:
        DataError: none of these, or names that do not make a class list.
    """
    extra = tuple(extra)
    if isinstance(given, Classes):
        classes = given
    elif given in KNOWN_CLASSES:
        classes = KNOWN_CLASSES[given]
    elif (path := Path(given).expanduser()).is_file():
        named = path.suffix.lower() in (".yaml", ".yml", ".json")
        classes = read_class_file(path).scheme.classes if named else Classes.from_names(_lines(path))
    elif "," in given:
        classes = Classes.from_names(name.strip() for name in given.split(","))
    else:
        raise DataError(
            f"classes '{given}' are neither a known list nor a file.{did_you_mean(given, KNOWN_CLASSES)} "
            "Names are given with commas between them"
        )
    return Classes((*classes.names, *extra), (*classes.colors, *((0, 0, 0) for _ in extra)))


def read_normalisation(
    name: str | None = None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation: of a key of `NORMALISATIONS`, or the two given.

    Raises:
        LithesegError: an unknown name, a name and numbers, or neither: no file says what its weights expect.
    """
    if mean is not None and std is not None and name is None:
        return mean, std
    if name is None or mean is not None or std is not None:
        raise LithesegError(
            "weights do not tell how their images were normalised: give either --normalisation imagenet (or none: "
            "images in [0, 1]), or both --mean and --std"
        )
    if name not in NORMALISATIONS:
        raise LithesegError(f"unknown normalisation '{name}'.{did_you_mean(name, NORMALISATIONS)}")
    return NORMALISATIONS[name]


# --- reading ---------------------------------------------------------------------------------------------------------


def _checked_output(output: str | Path, force: bool) -> Path:
    path = Path(output).expanduser()
    if path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    if path.exists() and not force:
        raise LithesegError(f"{path} exists; replace it with --force (force=True), or choose another output")
    return path


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} ({error}); write one class name a line there") from error
    return [line.strip() for line in lines if line.strip()]


def _read_file(path: Path) -> _File:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    ordered = content[8:9] != b"{"  # safetensors: 8 bytes of length, then JSON
    state = _state_dict(_load_torch(content, path) if ordered else _load_safetensors(content, path), path)
    prefix = "module." if all(name.startswith("module.") for name in state) else ""  # of DataParallel
    given = [(name.removeprefix(prefix), value) for name, value in entries(state)]
    return _File(path, hashlib.sha256(content).hexdigest(), given, ordered)


def _load_torch(content: bytes, path: Path) -> Any:
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in as many ways as it has bytes
        culprit = _CODE.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if culprit:
            raise BundleError(
                f"{path} would run '{culprit[1].rstrip('.')}' when it is read, which is refused (or it is damaged); if "
                "you trust it, load it in PyTorch and save its state_dict() alone"
            ) from error
        reason = (str(error) or type(error).__name__).partition("\n")[0].partition(". ")[0]
        raise BundleError(
            f"{path} cannot be read as PyTorch weights ({reason}); if it is not another kind of file, it is truncated "
            "or damaged: copy or download it again"
        ) from error


def _load_safetensors(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return load_tensors(content)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BundleError(f"{path} is corrupted or truncated ({error}); copy or download it again") from error


def _state_dict(content: Any, path: Path) -> Mapping[str, Tensor]:
    """What lies in the wrappers, if nothing but dense tensors does."""
    content = _unwrapped(content)
    remedy = "give a file that holds a state dict: torch.save(model.state_dict(), FILE)"
    if not isinstance(content, Mapping) or not content:
        raise BundleError(f"{path} holds no tensors by name, but {type(content).__name__}; {remedy}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise BundleError(f"{path} holds {name!r} ({type(value).__name__}), which is no tensor; {remedy}")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise BundleError(f"{path}: '{name}' is sparse, quantised or without data; {remedy}, with dense tensors")
    return content


def _unwrapped(content: Any, depth: int = 3) -> Any:
    keys = [key for key in _WRAPPERS if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)]
    return _unwrapped(content[keys[0]], depth - 1) if keys and depth else content


# --- matching --------------------------------------------------------------------------------------------------------


def _filled(file: _File, name: str, num_classes: int, args: dict[str, Any]) -> SegmentationModel:
    """A plain model with all of the file's weights, in evaluation mode."""
    variants = _variants(name, num_classes, args)
    layouts = [entries(variant.state_dict()) for variant in variants]
    for layout in layouts:
        found = _arranged(file, layout)
        if first_misfit(layout, found) is None and (file.ordered or found is not file.entries):
            weights = {expected: value for (expected, _), (_, value) in zip(layout, found, strict=True)}
            _check_values(file.path, layout, found)
            state = variants[0].state_dict()
            variants[0].load_state_dict({key: weights.get(key, value) for key, value in state.items()}, strict=True)
            return variants[0].eval()
    raise _mismatch(file, name, num_classes, args, layouts)


def _variants(name: str, num_classes: int, args: dict[str, Any]) -> list[SegmentationModel]:
    """The model without heads for training, and with the one that published files may have."""
    taken = inspect.signature(MODELS[name]).parameters if name in MODELS else args
    for argument in ("num_classes", *(key for key in args if key not in taken)):
        if argument in args:
            raise ModelError(f"model '{name}' takes no argument '{argument}' here; see `litheseg models {name}`")
    heads = {"aux_head": False, "boundary_head": False}
    chosen = [{**args, **heads}, {**args, **heads, "aux_head": True}]
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, and soon replaced
        return [build_model(name, num_classes, **arguments) for arguments in chosen]


def _arranged(file: _File, layout: Entries) -> Entries:
    """The file's tensors in the order of the layout; by name, whatever their order, where the names are the same."""
    found, names = dict(file.entries), [name for name, _ in layout]
    return [(name, found[name]) for name in names] if found.keys() == set(names) else file.entries


def _check_values(path: Path, layout: Entries, found: Entries) -> None:
    """Refuse values that show that two tensors of one shape, such as mean and variance, were swapped."""
    for (name, _), (own, value) in zip(layout, found, strict=True):
        problem = weight_problem(name, value, own)
        if problem is not None:
            raise BundleError(
                f"{path}: {problem}; the file is damaged, or its tensors are in another order: save the state dict of "
                "a model whose layers are defined in the order they run"
            )


# --- what does not fit -----------------------------------------------------------------------------------------------


def _mismatch(file: _File, name: str, num_classes: int, args: dict[str, Any], layouts: list[Entries]) -> BundleError:
    """The error for a file that fits no layout, described by the layout that it fits furthest."""
    reached = [(first_misfit(layout, _arranged(file, layout)) or 0, layout) for layout in layouts]
    for at, layout in reached:
        outputs = _outputs(file, name, args, num_classes, layout[at : at + 1], _arranged(file, layout)[at : at + 1])
        if outputs:
            return _class_mismatch(file.path, num_classes, outputs)
    at, layout = max(reached, key=lambda entry: (entry[0], -abs(len(entry[1]) - len(file.entries))))
    found = _arranged(file, layout)
    if not file.ordered and found is file.entries:
        strange = next((own for own, _ in found if own not in dict(layout)), "")
        problem = f"has '{strange}'" if strange else f"lacks '{next(k for k, _ in layout if k not in dict(found))}'"
        return BundleError(
            f"{file.path} {problem}, unlike '{name}': a .safetensors file keeps no order, so its names must be the "
            "model's own; give the PyTorch file that it was made from"
        )
    return BundleError(
        f"{file.path} holds {len(found)} tensors, '{name}' with {num_classes} classes {len(layout)} (counters aside). "
        f"The first that differs is number {at + 1}: {_show(found, at)} in the file, {_show(layout, at)} in the model; "
        "give weights of this very architecture, or the architecture of these weights (`litheseg models` lists them)"
    )


def _outputs(
    file: _File, name: str, args: dict[str, Any], num_classes: int, wanted: Entries, given: Entries
) -> int | None:
    """How many outputs the file has, if their number is all that is wrong with it."""
    if not wanted or not given:
        return None
    shapes = (tuple(wanted[0][1].shape), tuple(given[0][1].shape))
    differing = [(own, other) for own, other in zip(*shapes, strict=False) if own != other]
    if len(shapes[0]) != len(shapes[1]) or len(differing) != 1:
        return None
    own, outputs = differing[0]
    if own != num_classes or not 0 < outputs <= UNKNOWN_INDEX:
        return None
    layouts = (entries(variant.state_dict()) for variant in _variants(name, outputs, args))
    return outputs if any(first_misfit(layout, _arranged(file, layout)) is None for layout in layouts) else None


def _class_mismatch(path: Path, num_classes: int, outputs: int) -> BundleError:
    remedy = "give the classes that it was trained with"
    if outputs > num_classes:
        name = "the one output more" if outputs == num_classes + 1 else f"each of the {outputs - num_classes} others"
        remedy += f", or name {name} with --extra-class NAME (Cityscapes' 20th is void)"
    return BundleError(f"{path} has {outputs} outputs, but {num_classes} classes are given; {remedy}")


def _show(entries: Entries, position: int) -> str:
    if position >= len(entries):
        return "nothing"
    name, value = entries[position]
    kind = "" if value.is_floating_point() else f" {str(value.dtype).removeprefix('torch.')}"
    return f"'{name}' {'x'.join(map(str, value.shape)) or 'scalar'}{kind}"


def _provenance(file: _File, source_note: str, licence: str) -> dict[str, Any]:
    facts = {
        "weights": "imported",
        "weights_file": file.path.name,
        "weights_sha256": file.sha256,
        "weights_licence": licence,
        "source_note": source_note,
        "litheseg": __version__,
        "torch": torch.__version__,
    }
    return {name: value for name, value in facts.items() if value}
