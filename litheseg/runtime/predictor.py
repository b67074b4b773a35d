"""A model file at work: one image in, one mask of the image's own size out.

Every width is extracted once, when it is first used, and kept; turning the width is then free, and several threads may
predict at once, each with a width of its own. Images are resized as they were for training, masks come back at the size
of the image. It does not know where images come from (see `batch`) nor which width is worth its milliseconds.

Usage:
    >>> predictor = Predictor("model.safetensors", width=0.5)
    >>> mask = predictor("street.jpg")  # uint8, H x W of the photo
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from litheseg.data.classes import Classes
from litheseg.data.masks import read_image
from litheseg.data.transforms import normalise, resize_image
from litheseg.deploy.bundle import Bundle, load_bundle
from litheseg.errors import DataError, LithesegError
from litheseg.models.base import SegmentationModel, resize
from litheseg.models.upsampling import upsample_labels, warm_up
from litheseg.nn import extract

__all__ = ["ImageLike", "Predictor", "to_rgb"]

ImageLike = str | Path | Image.Image | np.ndarray | Tensor

_MAX_LOGITS = 1 << 26  # values held at once, so that a 24-megapixel photo needs no 2 GB


class Predictor:
    """Runs a bundle.

    Args:
        bundle: a loaded bundle, or the path of one.
        width: the width to start with; None for the widest.
        device: "cpu", "cuda", "cuda:1", ...
        size: height and width that images are resized to before the network; "training" as the model was trained (a
            model trained on images of their own size takes them so), None for the image's own.
        channels_last: run in this memory format, which is often the faster one.

    Raises:
        BundleError: the file cannot be loaded.
        WidthError: the bundle does not have the width.
        LithesegError: a device that this machine does not have, or a size that is not positive.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        width: float | None = None,
        device: str | torch.device = "cpu",
        *,
        size: tuple[int, int] | Literal["training"] | None = "training",
        channels_last: bool = False,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        self.device = _checked_device(device)
        header = self.bundle.header
        trained = header.size if header.resizes else None
        self.size = _checked_size(trained if size == "training" else size)
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._elastic = self.bundle.model()
        self._modules: dict[float, nn.Module] = {}
        self._lock = threading.Lock()
        self._width = self.widths[0] if width is None else self.bundle.check_width(width)

    @property
    def classes(self) -> Classes:
        """Names and colours of the labels."""
        return self.bundle.header.classes

    @property
    def widths(self) -> tuple[float, ...]:
        """The widths to choose from, widest first."""
        return self.bundle.header.available_widths

    @property
    def width(self) -> float:
        """The width in use."""
        return self._width

    def set_width(self, width: float) -> None:
        """Use another width from the next image on.

        Raises:
            WidthError: the bundle does not have it; the message names those that it has.
        """
        self._width = self.bundle.check_width(width)

    def prepare(self, *widths: float) -> None:
        """Do now what the first image would wait for: extract these widths (all of them if none is given), compile."""
        for width in widths or self.widths:
            self.module(width)
        if self.device.type == "cpu":
            warm_up()

    def module(self, width: float | None = None) -> nn.Module:
        """The plain network of a width (None: the one in use), on the device; shared, not to be changed.

        Raises:
            WidthError: the bundle does not have it.
        """
        width = self._width if width is None else self.bundle.check_width(width)
        # Locked: two threads must not extract the same width. Not inference mode: its weights could not be exported.
        with self._lock, torch.inference_mode(False):
            if width not in self._modules:
                module = extract(self._elastic, width).eval().to(self.device).requires_grad_(False)
                self._modules[width] = module.to(memory_format=self._format)  # type: ignore[call-overload]
            return self._modules[width]

    def __call__(self, image: ImageLike, *, width: float | None = None) -> np.ndarray:
        """Label every pixel.

        Args:
            image: a path; a PIL image of any mode; a NumPy array, uint8 H W, H W 1, H W 3 (RGB) or H W 4; or a tensor,
                C H W or 1 C H W with C of 1, 3 or 4, uint8, or floating point in [0, 1]. Alpha is laid over black,
                EXIF orientation applied.
            width: for this image only, whatever `set_width` says; for callers that share a predictor.

        Returns:
            uint8 H x W, class indices, at the image's own (upright) size.

        Raises:
            DataError: the image cannot be read or is of another kind.
            WidthError: the bundle does not have the width.
        """
        return self.predict_rgb(to_rgb(image), width=width)

    @torch.inference_mode()
    def predict_rgb(self, image: np.ndarray, *, width: float | None = None) -> np.ndarray:
        """As `predictor(image)`, for an array that is uint8 H W 3 RGB already."""
        module, ready, size = self.module(width), self._ready(image), (image.shape[0], image.shape[1])
        # A network that sees the image at its own size need not fill it with logits: its labels do that.
        same = isinstance(module, SegmentationModel) and ready.shape[-2:] == size
        logits = cast(SegmentationModel, module).outputs(ready)["logits"] if same else module(ready)
        return np.asarray(_labels(logits, size).cpu().numpy())

    @torch.inference_mode()
    def outputs_rgb(self, image: np.ndarray, *, width: float | None = None) -> dict[str, Tensor]:
        """What the network says of an image before labels are taken: how sure it is, and what the image is like.

        Args:
            image: uint8 H W 3 RGB.
            width: as in `predictor(image)`.

        Returns:
            ``logits`` (1 x K x h x w at the size that the network sees: bilinear interpolation to H x W and the largest
            give the mask) and ``features`` (1 x C x h' x w', what its classifier sees); float32, on the device.

        Raises:
            WidthError: the bundle does not have the width.
        """
        module, ready = self.module(width), self._ready(image)
        outputs = cast(SegmentationModel, module).outputs(ready)
        return {
            "logits": resize(outputs["logits"], ready.shape[-2:]).float(),
            "features": outputs["features"].float(),
        }

    def _ready(self, image: np.ndarray) -> Tensor:
        """uint8 H W 3 as the network takes it: 1 x 3 x h x w, resized and normalised, on the device."""
        header = self.bundle.header
        pixels = torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C")).to(self.device)
        resized = pixels if self.size is None else resize_image(pixels, self.size)
        return normalise(resized, header.mean, header.std)[None].contiguous(memory_format=self._format)


def to_rgb(image: ImageLike) -> np.ndarray:
    """Any supported kind of image as uint8 H W 3, RGB, upright; kinds as in `Predictor.__call__`.

    Raises:
        DataError: the image cannot be read or is of another kind.
    """
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, Image.Image):
        return _from_pil(image)
    if isinstance(image, Tensor):
        return _from_array(_from_tensor(image), "tensor")
    if isinstance(image, np.ndarray):
        return _from_array(image, "array")
    raise DataError(f"cannot label a {type(image).__name__}; give a path, a PIL image, a NumPy array or a tensor")


def _from_pil(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        raise DataError("a PIL image of floating-point pixels; convert it to 8 bits")
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # Pillow would clip 16 bits at 255; the high byte is the picture
            return _from_array((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8), "image")
        return _from_array(np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB")), "image")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"the PIL image cannot be decoded ({error}); replace it") from error


def _from_tensor(image: Tensor) -> np.ndarray:
    """C H W or 1 C H W to H W C."""
    if image.ndim == 4 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
        raise DataError(f"a tensor of shape {tuple(image.shape)}; give one image as C x H x W with 1, 3 or 4 channels")
    image = image.detach().cpu()
    if image.is_floating_point():
        if image.numel() and not (image.min() >= 0 and image.max() <= 1):
            raise DataError("a tensor with values outside [0, 1]; give it unnormalised, in [0, 1] or as uint8")
        image = (image.float() * 255).round().to(torch.uint8)
    return np.asarray(image.permute(1, 2, 0).numpy())


def _from_array(image: np.ndarray, kind: str) -> np.ndarray:
    if image.dtype != np.uint8:
        raise DataError(f"an {kind} of {image.dtype}; convert it to uint8, 0..255")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or not image.size:
        raise DataError(f"an {kind} of shape {image.shape}; give H x W, or H x W x C with 1, 3 or 4 channels")
    if image.shape[2] == 4:  # over black, as files are read
        color, alpha = image[:, :, :3].astype(np.uint16), image[:, :, 3:].astype(np.uint16)
        return ((color * alpha + 127) // 255).astype(np.uint8)
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def _labels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 H x W of the largest of the logits 1 x K x h x w, each interpolated to `size` (H, W)."""
    if logits.device.type != "cpu" and logits.shape[1] * size[0] * size[1] <= _MAX_LOGITS:
        # On a GPU two large operations take less time than several small ones.
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)[0].argmax(0).to(torch.uint8)
    return upsample_labels(logits, size, max_values=_MAX_LOGITS)[0]


def _checked_device(device: str | torch.device) -> torch.device:
    try:
        checked = torch.device(device)
        torch.empty(0, device=checked)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise LithesegError(f"device '{device}' cannot be used here ({reason}); choose 'cpu'") from error
    return checked


def _checked_size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(isinstance(v, int) and v > 0 for v in size):
        raise LithesegError(f"size {size!r}: give height and width in pixels, 'training', or None for the image's own")
    return (size[0], size[1])
