"""A network as ncnn's own files: a .param of the graph, which is text, and a .bin of the weights, in 32 bits.

pnnx, the converter of ncnn's authors, makes them of a trace of the network. They take the image as ncnn holds one:
float32 planes of 0 to 255, in RGB, which ``ncnn::Mat::from_pixels`` makes of the raw picture; normalisation is inside.
A network of any size is traced at two sizes that stay odd at every depth, so that no two maps are alike by chance.

Usage:
    >>> write(Conversion(deployed(bundle, 0.5), (360, 480)), Path("street.param"), text)
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import warnings
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any

import torch

from litheseg.bundle.description import append_description
from litheseg.deploy.network import Deployed
from litheseg.errors import MissingExtraError, ModelError, first_line
from litheseg.progress import work

if TYPE_CHECKING:
    from litheseg.deploy.conversion import Conversion

__all__ = ["LIBRARIES", "USAGE", "write"]

LIBRARIES = ("pnnx",)
USAGE = (
    "import ncnn",
    """network = ncnn.Net()
network.load_param("{path}")
network.load_model("{stem}.bin")
extractor = network.create_extractor()
planes = np.ascontiguousarray(image[0].transpose(2, 0, 1), np.float32)
extractor.input("in0", ncnn.Mat(planes))
result = np.array(extractor.extract("out0")[1])[None]""",
)
# How pnnx gives a pooled vector its height and width back, for batches; ncnn before 2026 cannot read it, and may crash.
_SQUEEZED = re.compile(r'12=\d+ 13=\d+ 6="1,1,//\((\d+),0n\),0n"')
_OPEN_SIZES = ((129, 193), (193, 257))  # halved and rounded up: 65, 33, ... and 97, 49, 25, 13, 7


def write(conversion: Conversion, path: Path, text: str) -> None:
    """See `litheseg.deploy.conversion`."""
    try:
        from pnnx import EXEC_PATH
    except ImportError as error:
        raise MissingExtraError("pnnx", "export", "export to ncnn") from error
    network, sizes = conversion.network, (conversion.size,) if conversion.size else _OPEN_SIZES
    if (network.layout, network.output) != ("NHWC", "logits"):
        raise ModelError(
            "ncnn takes pixels one after the other (NHWC) and gives logits; leave out --layout and --labels"
        )
    with tempfile.TemporaryDirectory(prefix="litheseg-") as folder, work("converting to ncnn"):
        traced = _traced(network, sizes[0])
        traced.save(str(Path(folder) / "network.pt"))
        names = ("inputshape", "inputshape2")
        shapes = (
            f"{name}=[1,{network.images.channels},{h},{w}]f32" for name, (h, w) in zip(names, sizes, strict=False)
        )
        done = subprocess.run(
            [EXEC_PATH, "network.pt", *shapes, "fp16=0"], cwd=folder, capture_output=True, text=True, errors="replace"
        )
        graph, weights = (Path(folder) / f"network.ncnn.{suffix}" for suffix in ("param", "bin"))
        if done.returncode or not graph.is_file() or not weights.is_file():
            reason = (done.stderr.strip() or f"pnnx ended with {done.returncode}").splitlines()[-1]
            raise ModelError(f"ncnn cannot hold this network ({reason}); export to onnx instead")
        lines = graph.read_text(encoding="utf-8")
        _check_operators(lines, traced)
        path.write_text(_SQUEEZED.sub(r"0=1 1=1 2=\1", lines), encoding="utf-8")
        copyfile(weights, path.with_suffix(".bin"))
    if text:
        append_description(path, text)


def _traced(network: Deployed, size: tuple[int, int]) -> Any:
    """A trace of the network behind float32 planes."""
    planes = Deployed(network.network, network.images, layout="NCHW").eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.trace(planes, torch.zeros(1, network.images.channels, *size), check_trace=False)
    except Exception as error:  # as many kinds as there are ways to be untraceable
        reason = first_line(error)
        raise ModelError(f"the network cannot be traced for ncnn ({reason}); export to onnx instead") from error


def _check_operators(graph: str, traced: Any) -> None:
    """Refuse what pnnx left as PyTorch's, which has a dot or colon in its name; the trace knows whose it is."""
    layers = [line.split()[:2] for line in graph.splitlines()[2:]]
    foreign = [pair for pair in layers if re.search(r"[.:]", pair[0])]
    for operator, layer in sorted(foreign, key=lambda pair: pair[0].startswith("pnnx."))[:1]:  # those are arguments
        inlined = traced.inlined_graph  # kept: its nodes go with it
        nodes = inlined.findAllNodes("aten::" + re.split(r"[.:]+", operator)[-1])
        scope = nodes[0].scopeName().rpartition("__module.network.")[2] if nodes else ""
        raise ModelError(
            f"ncnn has no operator '{operator}', which layer '{scope or layer}' needs; export to onnx or openvino "
            "instead, or choose another encoder"
        )
