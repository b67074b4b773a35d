"""One file that holds a trained model: weights at all widths, classes, normalisation, metrics and where it came from.

A bundle is a `.safetensors` file whose metadata carries, as JSON, a header and a SHA-256 of header and tensors. Loading
one runs nothing that the file brings: weights are raw numbers, the header is data, and the architecture is a name that
must be in `litheseg.models.MODELS`. Heads that only training needs are left out. Matrices may be stored in half
precision; in memory all weights are float32.

Usage:
    >>> save_bundle("model.safetensors", model, BundleHeader({"name": "ddrnet", "args": {"base": 32}}, classes))
    >>> module = load_bundle("model.safetensors").plain(width=0.5)
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor, nn

from litheseg.bundle.description import KEY
from litheseg.bundle.header import FORMAT_VERSION, BundleHeader
from litheseg.bundle.model_file import parse_model_file
from litheseg.bundle.names import model_path
from litheseg.errors import BundleError, LithesegError, WidthError, did_you_mean
from litheseg.files import atomic_path
from litheseg.models import MODELS, SegmentationModel, build_model
from litheseg.models.blueprint import build_within
from litheseg.models.weights import weight_problem
from litheseg.nn import add_width, extract, slim
from litheseg.nn.efficient import Efficient
from litheseg.nn.surgery import copied, densified

__all__ = [
    "FORMAT_VERSION",
    "Bundle",
    "BundleHeader",
    "content_digest",
    "from_nothing",
    "load_bundle",
    "model_digest",
    "save_bundle",
]

_HEADS = {"aux_head": False, "boundary_head": False}
_START_ARGUMENTS = ("pretrained", "encoder_weights")  # where weights come from; a bundle brings its own
_AGAIN = "copy or download it again, or export the model anew"


@dataclass(frozen=True)
class Bundle:
    """A model file in memory.

    Attributes:
        header: everything but the weights.
        state_dict: the elastic model's weights, on the CPU; not to be changed.
        path: the file, for messages; None for a bundle that was not read from one.
        dense: names of grouped convolutions that `plain` gives as dense ones, which compute the same; not in the file.
    """

    header: BundleHeader
    state_dict: Mapping[str, Tensor]
    path: Path | None = None
    dense: tuple[str, ...] = ()

    def model(self) -> SegmentationModel:
        """A new elastic model with these weights, on the CPU, in eval mode, at its widest width.

        Raises:
            BundleError: an unknown architecture, arguments it does not take, or weights that do not fit it.
        """
        with torch.inference_mode(False):
            return copied(self._elastic)

    @cached_property
    def _elastic(self) -> SegmentationModel:
        """The elastic model, built once and never changed; errors as of `model`."""
        header, name = self.header, self.header.architecture["name"]
        _check_name(name, self._label)
        try:
            # Whatever is drawn at random on the way must not shift the random state of a training run.
            with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
                efficient = Efficient(**header.architecture.get("efficient", {}))
                arguments = {"num_classes": header.num_classes, "efficient": efficient, **_deployed_arguments(header)}
                arguments |= from_nothing(name)
                build = partial(build_model, name, **arguments)
                plain = build_within(self.state_dict, build, len(header.available_widths))
                model = slim(plain, header.widths, divisor=header.divisor)
                for width in header.calibrated_widths:
                    add_width(model, width)
        except Exception as error:  # the arguments come from a file: whatever they break, the file is to blame
            raise BundleError(f"{self._label}: its architecture cannot be built ({error}); {_AGAIN}") from error
        try:
            model.load_state_dict(dict(self.state_dict), strict=True)
        except RuntimeError as error:
            raise BundleError(
                f"{self._label}: its weights do not fit its architecture '{name}' ({_first_lines(error)}); "
                "export the model anew with this version of litheseg"
            ) from error
        for name, value in model.state_dict().items():
            given = self.state_dict.get(name, value).dtype
            if given != value.dtype:
                raise BundleError(f"{self._label}: '{name}' is {given}, where {value.dtype} is expected; {_AGAIN}")
        return model.eval()

    def plain(self, width: float) -> nn.Module:
        """A new plain model of one width, in eval mode.

        Raises:
            WidthError: a width that this bundle does not have.
            BundleError: as `model`.
            ModelError: `dense` names a layer that is not grouped.
        """
        self.check_width(width)
        with torch.inference_mode(False):
            return densified(extract(self._elastic, width), self.dense)

    def check_width(self, width: float) -> float:
        """`width` if this bundle has it.

        Raises:
            WidthError: it does not; names those that it has.
        """
        if width not in self.header.available_widths:
            known = ", ".join(f"{known:g}" for known in self.header.available_widths)
            raise WidthError(
                f"{self._label}: no width {width:g}; available: {known}. "
                f"Others become available with `litheseg evaluate {self._label} --widths {width:g} --save FILE` "
                "(in Python: `litheseg.nn.recalibrate`)"
            )
        return width

    @property
    def _label(self) -> str:
        return str(self.path) if self.path is not None else "the bundle"


def save_bundle(path: str | Path, model: SegmentationModel, header: BundleHeader, *, half: bool = False) -> Bundle:
    """Write a model to one file, whole or not at all; the model is left as it was.

    The header's architecture arguments are rewritten so that they build the model without its training-only heads and
    without fetching initial weights. What is about to be written is loaded first: a file that exists also loads.

    Args:
        path: the file; `.safetensors` is appended to a name without it.
        model: elastic or plain; a plain one is a model of the one width 1.0.
        header: what the file is to say.
        half: store convolutions and matrices as float16: half the bytes. Vectors (batch norms, biases), which are few
            and may be very small or large, stay float32, and so does what float16 cannot hold.

    Returns:
        The bundle as written, and as it will be read.

    Raises:
        BundleError: the header does not describe the model.
        LithesegError: the file cannot be written.
    """
    path = Path(path).expanduser()
    _check_dial(model, header)
    if path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    architecture = {**header.architecture, "args": _deployed_arguments(header)}
    header = replace(header, architecture=architecture, format_version=FORMAT_VERSION)
    state = dict(Bundle(header, _deployed_state(model), path).model().state_dict())
    if half:
        state = {name: _halved(value) for name, value in state.items()}
    whole = _checked_weights(state, path)
    text = header.to_json()
    metadata = {KEY: json.dumps({"header": json.loads(text), "sha256": content_digest(text, state)}, sort_keys=True)}
    with atomic_path(path) as temporary:
        try:
            save_file(state, temporary, metadata)
        except SafetensorError as error:
            raise LithesegError(f"cannot write {path}: {error}; free space or choose another path") from error
    return Bundle(header, whole, path)


def load_bundle(path: str | Path) -> Bundle:
    """Read a model file, which is given by its path or a name (`litheseg.bundle.names`).

    Raises:
        BundleError: a file that is missing, corrupted, truncated, no bundle, newer than this litheseg, of an
            architecture that it does not have, or with weights that are no finite real numbers.
    """
    path = model_path(path)
    try:
        content = path.read_bytes()
        model = parse_model_file(path, io.BytesIO(content))
        state = load_tensors(content)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BundleError(f"{path} is corrupted or truncated ({error}); {_AGAIN}") from error
    if content_digest(model.header_text, state) != model.sha256:
        raise BundleError(f"{path} is corrupted: its content does not match its checksum; {_AGAIN}")
    _check_name(model.header.architecture["name"], str(path))
    return Bundle(model.header, _checked_weights(state, path), path)


def model_digest(bundle: Bundle) -> str:
    """SHA-256 of what a model computes: its architecture, normalisation and weights.

    Widths that were calibrated later, scores and provenance do not count: they change no other width.
    """
    header = bundle.header
    said = [header.architecture, header.widths, header.divisor, header.mean, header.std, header.resizes, header.size]
    said += [header.dtype] if header.dtype != "uint8" else []  # models of earlier versions keep their digests
    result = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    _add_tensors(result, {name: tensor for name, tensor in bundle.state_dict.items() if ".calibrated." not in name})
    return result.hexdigest()


def _deployed_arguments(header: BundleHeader) -> dict[str, Any]:
    """The architecture's arguments without training-only heads and without a source of initial weights.

    A header from elsewhere must not make this machine fetch or open other files.
    """
    arguments = {**header.architecture["args"], **_HEADS}
    return {name: value for name, value in arguments.items() if name not in _START_ARGUMENTS}


def from_nothing(name: str) -> dict[str, str]:
    """The argument that keeps an architecture of this name from looking for pretrained weights, if it would."""
    return {"pretrained": "none"} if "pretrained" in inspect.signature(MODELS[name]).parameters else {}


def _check_dial(model: nn.Module, header: BundleHeader) -> None:
    """The header must say what the model is: a wrong divisor, say, might still load."""
    dial = getattr(model, "width_dial", None)
    actual = ((1.0,), (), header.divisor) if dial is None else (dial.widths, dial.calibrated, dial.divisor)
    stated = (header.widths, header.calibrated_widths, header.divisor)
    if actual != stated:
        raise BundleError(
            f"the header says widths {stated[0]}, calibrated {stated[1]}, divisor {stated[2]}, "
            f"but the model has {actual[0]}, {actual[1]}, {actual[2]}; make the header from the model's `width_dial`"
        )


def _deployed_state(model: SegmentationModel) -> dict[str, Tensor]:
    """The weights that inference needs: on the CPU, each with memory of its own."""
    heads = ((name, head) for name, child in model.named_modules() for head in getattr(child, "training_only", ()))
    dropped = tuple(f"{name}.{head}.".lstrip(".") for name, head in heads)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(dropped)}
    return {name: _stored(value) for name, value in state.items()}


def _stored(value: Tensor) -> Tensor:
    kind = torch.float32 if value.is_floating_point() else value.dtype
    return value.detach().to("cpu", kind, copy=True).contiguous()


def content_digest(text: str, state: Mapping[str, Tensor]) -> str:
    """SHA-256 over a header and every tensor's name, type, shape and bytes: safetensors itself has no checksum."""
    result = hashlib.sha256(text.encode())
    _add_tensors(result, state)
    return result.hexdigest()


def _add_tensors(digest: Any, state: Mapping[str, Tensor]) -> None:
    for name, tensor in sorted(state.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _halved(value: Tensor) -> Tensor:
    """A float16 copy of a matrix or kernel, if float16 reaches as far."""
    if value.ndim < 2 or value.dtype != torch.float32:
        return value
    half = value.half()
    return half if bool(half.isfinite().all()) else value


def _checked_weights(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The weights as they are computed with, float32."""
    for name, value in state.items():
        problem = weight_problem(name, value)
        if problem is None and value.is_floating_point() and value.dtype not in (torch.float32, torch.float16):
            kind = str(value.dtype).removeprefix("torch.")
            problem = f"'{name}' is {kind}, where float32 or float16 is expected"
        if problem is not None:
            raise BundleError(f"{path}: {problem}; the weights are damaged, or the model did not train: {_AGAIN}")
    return {name: value.float() if value.dtype == torch.float16 else value for name, value in state.items()}


def _check_name(name: str, label: str) -> None:
    if name not in MODELS:
        raise BundleError(
            f"{label}: unknown architecture '{name}'.{did_you_mean(name, MODELS)} "
            "If it is a newer one: pip install --upgrade litheseg"
        )


def _first_lines(error: Exception, count: int = 3) -> str:
    """The start of PyTorch's list of mismatches, on one line."""
    lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
    more = f" ... and {len(lines) - count} more" if len(lines) > count else ""
    return " ".join(line if len(line) <= 160 else line[:160] + "..." for line in lines[:count]) + more
