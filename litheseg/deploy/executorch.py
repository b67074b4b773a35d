"""A network as a program of ExecuTorch (.pte), whose operators run in XNNPACK, the fast kernels of phones and boards.

XNNPACK takes floats only: the raw image becomes floats first, and its axes are moved after, so that XNNPACK does that
too and all that is left to ExecuTorch's own kernels is that one step. What else XNNPACK lacks runs in those kernels
beside it, slower, and is named.

Usage:
    >>> write(Conversion(deployed(bundle, 0.5), (360, 480)), Path("street.pte"), text)
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, cast

from torch import Tensor, fx
from torch.export import ExportedProgram

from litheseg.bundle.description import append_description
from litheseg.deploy.conversion import Conversion, quiet
from litheseg.deploy.network import Deployed
from litheseg.deploy.torch_export import export_program, layer_of, layers_named
from litheseg.errors import ModelError, first_line
from litheseg.progress import work
from litheseg.runtime.engines import check_package

__all__ = ["LIBRARIES", "USAGE", "FloatsFirst", "lowered", "write"]

LIBRARIES = ("executorch",)
USAGE = (
    "import torch\nfrom executorch.runtime import Runtime",
    'program = Runtime.get().load_program("{path}").load_method("forward")\n'
    "result = program.execute([torch.from_numpy(image)])[0].numpy()",
)


def write(conversion: Conversion, path: Path, text: str) -> None:
    """See `litheseg.deploy.conversion`."""
    check_package("executorch", "export to ExecuTorch")
    if conversion.size is None:
        raise ModelError("ExecuTorch plans the memory of a network for one size of its input; give it (--size HxW)")
    program = export_program(FloatsFirst.of(conversion.network), conversion.size)
    with work("converting to ExecuTorch"), quiet():
        graph, content = lowered(program)
    path.write_bytes(content)
    if text:
        append_description(path, text)
    conversion.remarks["executorch"] = _remark(graph)


class FloatsFirst(Deployed):
    """Makes floats of the raw image before its axes are moved."""

    @classmethod
    def of(cls, network: Deployed) -> FloatsFirst:
        """The same network."""
        made = cls(network.network, network.images, layout=network.layout, output=network.output)
        return made.eval().requires_grad_(False)

    def planes(self, image: Tensor) -> Tensor:
        """See `Deployed.planes`."""
        floats = image.float()
        return floats.permute(0, 3, 1, 2).contiguous() if self.layout == "NHWC" else floats


def lowered(program: ExportedProgram) -> tuple[fx.GraphModule, bytes]:
    """The graph, with what XNNPACK takes cut out of it, and the content of a file.

    Raises:
        ModelError: an operator that ExecuTorch lacks.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    try:
        manager = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        return manager.exported_program().graph_module, manager.to_executorch().buffer
    except Exception as error:  # its errors have no class in common
        reason = first_line(error)
        raise ModelError(
            f"ExecuTorch cannot hold this network ({reason}{layers_named(program, reason)}); export to onnx or torch "
            "instead"
        ) from error


def _remark(graph: fx.GraphModule) -> str:
    """Which operators run where, in words."""
    inside = sum(
        len(_operators(getattr(graph, str(node.target)).original_module.graph))
        for node in graph.graph.nodes
        if node.op == "get_attr" and node.name.startswith("lowered_module")
    )
    found = [(cast(Any, node.target)._schema.name.rpartition("::")[2], node) for node in _operators(graph.graph)]
    outside = Counter(f"{name} of {layer_of(node)}" for name, node in found)
    beside = ", ".join(f"{count} x {name}" if count > 1 else name for name, count in outside.items())
    return f"XNNPACK runs {inside} operators; in ExecuTorch's own kernels, slower, run {beside or 'none'}"


def _operators(graph: fx.Graph) -> list[fx.Node]:
    """What is computed in it: no calls of what was cut out, no parts of tuples."""
    return [node for node in graph.nodes if node.op == "call_function" and hasattr(node.target, "_schema")]
