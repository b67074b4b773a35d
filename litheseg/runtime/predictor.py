"""Predict with a model in any runtime: one image in, one mask of the image's own size out.

The model is a bundle or an export. The network of each width is made when it is first used, and kept, so changing the
width is then free; several threads may predict at once, each at its own width. Images are resized as for training, and
masks have the size of the image. A large image that is not resized is predicted tile by tile.

Path of an image: `Predictor` chooses the width and reads the image (`rgb`); a `Pipeline` resizes it, runs the
`Engine` of that width and upsamples its logits to labels.

Usage:
    >>> predictor = Predictor("model.safetensors", width=0.5, runtime="openvino")
    >>> mask = predictor("street.jpg")  # uint8, H x W of the photo
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Protocol, overload

import numpy as np

from litheseg.bundle.exported import Export, is_export, load_export
from litheseg.bundle.header import BundleHeader
from litheseg.bundle.names import model_path
from litheseg.errors import LithesegError
from litheseg.lazy import workstation
from litheseg.runtime.networks import Networks, SharedEngine, export_networks
from litheseg.runtime.pipeline import Pipeline
from litheseg.runtime.rgb import ImageLike, to_pixels, to_rgb
from litheseg.runtime.tiles import predict_tiles, tile_starts

__all__ = ["ImageLike", "Model", "Predictor", "to_rgb"]

_PURPOSE = "running a model file"
_WHOLE = 1 << 23  # pixels of an image at its own size beyond which it is labelled in tiles: more than 4K video
_TILE = (1024, 1024)


class Model(Protocol):
    """A model file in memory: a `litheseg.models.bundle.Bundle`, which only the workstation has."""

    @property
    def header(self) -> BundleHeader:
        """Everything but the weights."""


class Predictor:
    """Runs an export, or, where PyTorch is, a model file.

    Args:
        source: the path of an export or of a model file, or a name such as "zoo:camvid-lite0" (see
            `litheseg.bundle.names`); or either of them, loaded.
        width: the width to start with; None for the widest.
        device: "cpu", "cuda", "cuda:1", ...
        size: height and width that images are resized to before the network; "training" as the model was trained (a
            model trained on images of their own size takes them so), None for the image's own. An export for one size
            takes that.
        channels_last: run in this memory format, which is often the faster one; in PyTorch only.
        runtime: "torch", "onnxruntime" or "openvino"; None for PyTorch, or, of an export, one that takes its files.
        precision: "fp32", "bf16" or, of an export, "int8"; None for "fp32" if there is such a network.
        threads: of the CPU; None for the runtime's own choice.
        tile: side of the tiles, or their height and width, in which images are labelled at their own size; None for
            tiles of 1024 where an image at its own size has more than 8 megapixels.
        overlap: pixels that neighbouring tiles share at least; None for a quarter of a tile.

    Attributes:
        header: everything that the model says of itself, but for its weights.
        classes: names and colours of the labels.
        runtime: what runs the networks: "torch", "onnxruntime" or "openvino".
        widths: to choose from, widest first.
        size: height and width that images are resized to; None for the image's own.

    Raises:
        BundleError: the file cannot be loaded.
        WidthError: the model does not have the width.
        MissingExtraError: a runtime that is not installed, or a model file where there is no PyTorch.
        LithesegError: a runtime, precision or device that is not available, or sizes that do not fit together.
    """

    def __init__(
        self,
        source: Model | Export | str | Path,
        width: float | None = None,
        device: str = "cpu",
        *,
        size: tuple[int, int] | Literal["training"] | None = "training",
        channels_last: bool = False,
        runtime: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        tile: int | tuple[int, int] | None = None,
        overlap: int | None = None,
    ) -> None:
        if isinstance(source, (str, Path)):
            source = _load(model_path(source))
        self.source, self.header, self._threads = source, source.header, threads
        self.classes = self.header.classes
        self.tile, self._overlap = _checked_tile(tile, overlap, size), overlap
        trained = self.header.size if self.header.resizes and self.tile is None else None
        wanted = _checked_size(trained if size == "training" else size)
        how: dict[str, Any] = {"device": str(device), "precision": precision, "threads": threads}
        if isinstance(source, Export):
            self._networks: Networks = export_networks(source, width, runtime, **how)
        else:
            how |= {"size": wanted, "channels_last": channels_last}
            self._networks = workstation("deploy.torch_engine", _PURPOSE).open_model(
                source, width, runtime=runtime, **how
            )
        self.runtime, self.widths = self._networks.runtime, self._networks.widths
        self.size = self._agreed(wanted, size)
        self._width = self.widths[0] if width is None else width
        self._pipelines: dict[float, Pipeline] = {}

    @property
    def bundle(self) -> Model:
        """The model file that is run.

        Raises:
            LithesegError: it is an export.
        """
        if isinstance(self.source, Export):
            raise LithesegError(f"{self.source.path} is an export; this needs the bundle that it was made from")
        return self.source

    @property
    def width(self) -> float:
        """The width in use."""
        return self._width

    def check_width(self, width: float) -> float:
        """`width` if it is one of `widths`.

        Raises:
            WidthError: it is not; names those that there are.
        """
        return self._networks.check_width(width)

    def set_width(self, width: float) -> None:
        """Use another width from the next image on.

        Raises:
            WidthError: the model does not have it; the message names those that it has.
        """
        self._width = self.check_width(width)

    def prepare(self, *widths: float) -> None:
        """Open the networks of these widths now (all if none is given), so that the first image need not wait."""
        for width in widths or self.widths:
            self.pipeline(width)

    def pipeline(self, width: float | None = None) -> Pipeline:
        """The pipeline of a width (None: the one in use), for instance to time it.

        Raises:
            WidthError: the model does not have it.
        """
        width = self._width if width is None else width
        if width not in self._pipelines:
            engine = self._networks.engine(width)
            shared = SharedEngine(engine) if engine.together > 1 else engine
            # Of two threads that make one at once, both use the first.
            self._pipelines.setdefault(width, Pipeline(shared, self.size, self._threads))
        return self._pipelines[width]

    def module(self, width: float | None = None) -> Any:
        """The plain network of a width (None: the one in use), on the device; shared, not to be changed.

        Raises:
            WidthError: the model does not have it.
            LithesegError: not a model file that runs in PyTorch.
        """
        return self._in_torch(width).module

    @overload
    def __call__(self, image: ImageLike, *, width: float | None = None) -> np.ndarray: ...

    @overload
    def __call__(self, image: list[Any] | tuple[Any, ...], *, width: float | None = None) -> list[np.ndarray]: ...

    def __call__(
        self, image: ImageLike | list[Any] | tuple[Any, ...], *, width: float | None = None
    ) -> np.ndarray | list[np.ndarray]:
        """Label every pixel.

        Args:
            image: a path; a PIL image of any mode; a NumPy array, uint8 H W, H W 1, H W 3 (RGB) or H W 4; a tensor,
                C H W or 1 C H W with C of 1, 3 or 4, uint8, or floating point in [0, 1]; an `av.VideoFrame`; or a list
                of such. Alpha is laid over black, EXIF orientation applied. A network of other images than RGB of 8
                bits takes files, arrays H W C, tensors C H W and PIL images of its own channels and type
                (`header.images`) only.
            width: for this image only, whatever `set_width` says; for callers that share a predictor.

        Returns:
            uint8 H x W, class indices, at the image's own (upright) size; a list for a list.

        Raises:
            DataError: the image cannot be read or is of another kind.
            WidthError: the model does not have the width.
        """
        if isinstance(image, (list, tuple)):
            return self.batch(image, width=width)
        return self.predict_rgb(to_pixels(image, self.header.images), width=width)

    def batch(self, images: Iterable[ImageLike], *, width: float | None = None) -> list[np.ndarray]:
        """Label several images, of any sizes, all at one width.

        Args:
            images: of the kinds that `__call__` takes; an array N H W C or a tensor N C H W is one of several, too.
            width: as in `__call__`.
        """
        pixels = [to_pixels(image, self.header.images) for image in images]
        if any(self.tile_of(image) for image in pixels):
            return [self.predict_rgb(image, width=width) for image in pixels]
        return self.pipeline(width).batch(pixels)

    def predict_rgb(self, image: np.ndarray, *, width: float | None = None) -> np.ndarray:
        """As `predictor(image)`, for an array that is H W C as `header.images` says already."""
        pipeline, tile = self.pipeline(width), self.tile_of(image)
        if tile is None:
            return pipeline(image)
        fixed = self._networks.size is not None
        return predict_tiles(
            pipeline.engine, image, tile=tile, overlap=self._overlap, fixed=fixed, threads=self._threads
        )

    def outputs_rgb(self, image: np.ndarray, *, width: float | None = None) -> dict[str, Any]:
        """The network's logits and features for an image.

        Args:
            image: H W C, as `header.images` says.
            width: as in `predictor(image)`.

        Returns:
            ``logits`` (1 x K x h x w at the network's own stride: bilinear interpolation to H x W and the largest give
            the mask) and ``features`` (1 x C x h' x w', what its classifier sees); float32 tensors, on the device.

        Raises:
            WidthError: the model does not have the width.
            LithesegError: not a model file that runs in PyTorch.
        """
        outputs = self._in_torch(width).outputs(self.pipeline(width).prepare(image))
        return {name: outputs[name].float() for name in ("logits", "features")}

    def tile_of(self, image: np.ndarray) -> tuple[int, int] | None:
        """Height and width of the tiles in which an image is labelled; None for one that is labelled as a whole."""
        whole = self.size is not None or image.shape[0] * image.shape[1] <= _WHOLE
        return self.tile or (None if whole else _TILE)

    def _in_torch(self, width: float | None) -> Any:
        """The engine of a width, if it is a module."""
        engine = self._networks.engine(self._width if width is None else width)
        if not hasattr(engine, "module"):
            raise LithesegError("this needs a bundle that runs in PyTorch; give the bundle, without a runtime")
        return engine

    def _agreed(self, wanted: tuple[int, int] | None, asked: Any) -> tuple[int, int] | None:
        """The size that images are resized to, where the networks may take one size only."""
        only = self._networks.size
        if only is None or only == (self.tile or wanted):
            return wanted
        if asked == "training" and self.tile is None:
            return only
        found = f"images of {wanted[0]}x{wanted[1]}" if wanted else "images of their own size"
        found = f"tiles of {self.tile[0]}x{self.tile[1]}" if self.tile else found
        raise LithesegError(
            f"the export takes {only[0]}x{only[1]} only, not {found}; export it for that size, or for any "
            "(--size dynamic)"
        )


def _load(path: Path) -> Model | Export:
    if is_export(path):
        return load_export(path)
    purpose = f"running {path}, a model file (an export of it runs without),"
    model: Model = workstation("models.bundle", purpose).load_bundle(path)
    return model


def _checked_size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(isinstance(v, int) and v > 0 for v in size):
        raise LithesegError(f"size {size!r}: give height and width in pixels, 'training', or None for the image's own")
    return (size[0], size[1])


def _checked_tile(tile: int | tuple[int, int] | None, overlap: int | None, size: Any) -> tuple[int, int] | None:
    if tile is None:
        return None
    if size not in ("training", None):
        raise LithesegError(f"tiles cut images at their own size; leave out size {size}, or the tiles")
    checked = _checked_size((tile, tile) if isinstance(tile, int) else tile)
    for side in checked or ():
        tile_starts(2 * side, side, overlap if overlap is not None else max(64, min(checked or ()) // 4))
    return checked
