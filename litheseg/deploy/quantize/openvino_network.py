"""OpenVINO networks: a FakeQuantize in front of what runs in int8.

Usage:
    >>> network = OpenVinoNetwork.read(Path("street.xml"), "NHWC")
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from litheseg.bundle.description import KEY
from litheseg.deploy.openvino import require_openvino
from litheseg.deploy.quantize.networks import PASSING, NncfNetwork, QuantizableNetwork

__all__ = ["OpenVinoNetwork"]


class OpenVinoNetwork(NncfNetwork):
    """An `openvino.Model`; see `QuantizableNetwork`."""

    suffix, libraries = ".xml", ("nncf", "openvino")

    @classmethod
    def read(cls, path: Path, layout: str, source: object = None) -> QuantizableNetwork:
        """See `QuantizableNetwork.read`."""
        openvino = require_openvino("int8 in OpenVINO")
        from openvino.passes import ConstantFolding, Manager

        model = openvino.Core().read_model(path)
        manager = Manager()
        manager.register_pass(ConstantFolding())  # NNCF corrects biases only where it sees them as constants
        manager.run_passes(model)
        return cls(model, layout)

    def layers(self) -> tuple[tuple[str, str], ...]:
        """See `QuantizableNetwork.layers`."""
        operations = {node.get_friendly_name(): node for node in self.model.get_ordered_ops()}
        found = self._quantizers()
        return tuple((name, node.get_type_name()) for name, node in operations.items() if found.get(name))

    def only(self, name: str) -> QuantizableNetwork:
        """See `QuantizableNetwork.only`."""
        active, model = self._quantizers()[name], self._copy()
        for node in model.get_ordered_ops():
            if node.get_type_name() == "FakeQuantize" and node.get_friendly_name() not in active:
                node.output(0).replace(node.input_value(0))
        return OpenVinoNetwork(model, self.layout)

    def write(self, path: Path, text: str = "") -> tuple[Path, ...]:
        """See `QuantizableNetwork.write`; the same network gives the same bytes."""
        import openvino

        for place, node in enumerate(self.model.get_ordered_ops()):
            if node.get_friendly_name() == node.get_name():  # a number of its own in this process
                node.set_friendly_name(f"int8.{node.get_type_name()}.{place}")
        model = self._copy()
        if text:
            model.set_rt_info(text, KEY)
        openvino.save_model(model, path, compress_to_fp16=False)
        return (path, path.with_suffix(".bin"))

    def _quantizers(self) -> dict[str, frozenset[str]]:
        """By layer: the names of the FakeQuantizes whose values it reads."""

        def behind(node: Any) -> Iterator[str]:
            for value in node.input_values():
                source = value.get_node()
                if source.get_type_name() == "FakeQuantize":
                    yield source.get_friendly_name()
                elif source.get_type_name() in PASSING:
                    yield from behind(source)

        skipped = {"FakeQuantize", *PASSING}
        return {
            node.get_friendly_name(): frozenset(behind(node))
            for node in self.model.get_ordered_ops()
            if node.get_type_name() not in skipped
        }

    def _copy(self) -> Any:
        return self.model.clone()

    def _feed(self, image: np.ndarray) -> Any:
        return self._batch(image)
