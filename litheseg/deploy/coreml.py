"""A network as a package of Core ML (.mlpackage): an ML program in 32 bits, for iOS 16 and macOS 13 or newer.

It takes a picture (RGB of 8 bits), so that an app hands it what the camera gives; other images are float32
1 x C x H x W. Linux can convert as well, but Core ML runs on Apple's systems only. Elsewhere the program is read back
and computed by the definitions of its operators (`litheseg.deploy.coreml_program`), and its weights are compared with
the network's.

Usage:
    >>> write(Conversion(deployed(bundle, 0.5), (360, 480)), Path("street.mlpackage"), text)
"""

from __future__ import annotations

import io
from collections import Counter
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from litheseg.bundle.description import KEY
from litheseg.bundle.exported import Artefact
from litheseg.bundle.targets import TARGETS
from litheseg.deploy.conversion import Conversion, quiet
from litheseg.deploy.coreml_program import CoreMlProgram
from litheseg.deploy.network import Deployed
from litheseg.deploy.torch_export import export_program, layers_named
from litheseg.errors import LithesegError, ModelError
from litheseg.masks.image_format import ImageFormat
from litheseg.progress import work
from litheseg.runtime.engines import Engine, check_package

__all__ = ["LIBRARIES", "STAND_IN", "USAGE", "stand_in", "write"]

LIBRARIES = ("coremltools",)
USAGE = (
    "import coremltools",
    'model = coremltools.models.MLModel("{path}")  # on a Mac\n'
    'result = model.predict({{"image": Image.fromarray(image[0])}})["logits"]',
)
STAND_IN = "operators in PyTorch"
"""Named as the runtime in a certificate where Core ML was not."""
_NOT_RUN = "not run in Core ML here, but computed by the definitions of its operators: check it on a Mac, with a kit"


def write(conversion: Conversion, path: Path, text: str) -> None:
    """See `litheseg.deploy.conversion`."""
    check_package("coreml", "export to Core ML")
    network, size = conversion.network, conversion.size
    if size is None:
        raise ModelError("networks for Core ML have one size of their input; give it (--size HxW)")
    if (network.layout, network.output) != ("NHWC", "logits"):
        raise ModelError("networks for Core ML take a picture and give logits; leave out --labels and --layout")
    program = export_program(_Planes.of(network), size)
    with work("converting to Core ML"), quiet(), redirect_stderr(io.StringIO()):  # where coremltools draws bars
        model = _converted(program, network.images, size)
        model.user_defined_metadata[KEY] = text
        model.save(str(path))
        (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)  # no part of the package
        written = CoreMlProgram.read(path)
    operators = ", ".join(f"{count} {name}" for name, count in sorted(written.operators.items()))
    remarks = [f"operators: {operators}", _compared(written.weights, network)]
    conversion.remarks["coreml"] = "; ".join([*remarks, *[_NOT_RUN] * (not TARGETS["coreml"].runs_here)])


def stand_in(path: Path, artefact: Artefact, images: ImageFormat) -> Engine | None:
    """See `litheseg.deploy.conversion`; None where coremltools is missing."""
    try:
        with quiet(), redirect_stderr(io.StringIO()):
            return _ProgramEngine(CoreMlProgram.read(path), artefact, images)
    except ImportError:
        return None


class _Planes(Deployed):
    """Takes the raw image as float32 1 x C x H x W, which is what Core ML makes of a picture."""

    @classmethod
    def of(cls, network: Deployed) -> _Planes:
        made = cls(network.network, network.images, layout="NCHW", output=network.output)
        return made.eval().requires_grad_(False)

    def planes(self, image: Tensor) -> Tensor:
        """See `Deployed.planes`."""
        return image

    def example(self, size: tuple[int, int]) -> Tensor:
        """See `Deployed.example`."""
        return super().example(size).float()


class _ProgramEngine(Engine):
    """Computes a program's operators in PyTorch."""

    def __init__(self, program: CoreMlProgram, artefact: Artefact, images: ImageFormat) -> None:
        self.runtime, self.precision, self.output, self.size = STAND_IN, artefact.precision, "logits", artefact.size
        self.images, self._program = images, program

    def run(self, image: np.ndarray) -> np.ndarray:
        planes = torch.from_numpy(self.batched(image).astype(np.float32)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            return self._program(planes)[0].numpy()


def _converted(program: Any, images: ImageFormat, size: tuple[int, int]) -> Any:
    """The `coremltools.models.MLModel`, not loaded."""
    import coremltools as tools

    shape = (1, images.channels, *size)
    picture = tools.ImageType("image", shape, color_layout=tools.colorlayout.RGB)
    try:
        return tools.convert(
            program.run_decompositions({}),
            convert_to="mlprogram",
            inputs=[picture if images.is_rgb8 else tools.TensorType("image", shape)],
            outputs=[tools.TensorType("logits")],
            compute_precision=tools.precision.FLOAT32,
            minimum_deployment_target=tools.target.iOS16,
            skip_model_load=True,
        )
    except Exception as error:  # its errors have no class in common
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"Core ML cannot hold this network ({reason[:200]}{layers_named(program, reason)}); export to onnx or "
            "torch instead"
        ) from error


def _compared(weights: list[np.ndarray], network: Deployed) -> str:
    """How many weights of convolutions and linear layers the program has bit for bit, in words.

    Raises:
        LithesegError: none of them, which is another network.
    """
    own = Counter(value.numpy().tobytes() for value in network.network.parameters() if value.dim() > 1)
    same = sum((own & Counter(np.ascontiguousarray(weight).tobytes() for weight in weights)).values())
    if own and not same:
        raise LithesegError("coremltools wrote other weights than the network's; report it, and export another format")
    merged = f", {own.total() - same} merged with what follows them" if same < own.total() else ""
    return f"{same} of {own.total()} weights bit for bit those of PyTorch{merged}"
