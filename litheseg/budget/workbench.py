"""Makes candidates run: exports of a bundle, kept and used again, and engines of them.

PyTorch runs the network straight from the bundle, which is also what is delivered for it; the other runtimes run a file
of one width at one input size, in the format made for them. Layers that a plan keeps dense are dense in the file. It
does not time networks and does not know which candidate is wanted.

Usage:
    >>> workbench = Workbench(bundle, store.exports)
    >>> engine = workbench.engine(candidate)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from litheseg.budget.candidates import Candidate, Network
from litheseg.budget.plan import Plan, Spot
from litheseg.bundle.exported import Export, load_export
from litheseg.cost.widths import with_widths
from litheseg.data.source import Source
from litheseg.deploy.export import Further, export_bundle
from litheseg.deploy.torch_engine import bundle_engine
from litheseg.errors import BundleError, LithesegError
from litheseg.models.bundle import Bundle
from litheseg.nn.surgery import grouped_layers
from litheseg.runtime.engines import Engine, open_engine

__all__ = ["Workbench"]

_FORMATS = {"onnxruntime": "onnx", "openvino": "openvino"}


class Workbench:
    """Engines for a bundle.

    Args:
        bundle: a loaded one.
        folder: where exports are kept.
        plan: which grouped layers stay dense; measured where a candidate is not in it. None leaves all grouped.
        calibrated: gives the bundle with a width whose batch norm is measured. Timing fp32 needs none; labels of other
            precisions are scored with the engines made here, and they do.
        quantise: gives what makes the exports of a bundle int8; None if that cannot be done here.
        progress: told of exports and of layers that are timed, which take time.
    """

    def __init__(
        self,
        bundle: Bundle,
        folder: Path,
        *,
        plan: Plan | None = None,
        calibrated: Callable[[float], Bundle] | None = None,
        quantise: Callable[[Bundle], Further] | None = None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._bundle, self._folder, self._plan = bundle, folder, plan
        self._calibrated, self._quantise, self._progress = calibrated, quantise, progress
        self._ran: dict[Network, Candidate] = {}

    def engine(self, candidate: Candidate) -> Engine:
        """A candidate, made to run.

        Raises:
            WidthError: a width outside the trained range.
            MissingExtraError: its runtime is not installed.
            LithesegError: what this machine, or the runtime, cannot do.
        """
        width, _, precision = candidate.network
        way: dict[str, Any] = {"precision": precision, "threads": candidate.threads}
        if candidate.runtime == "torch":
            engine = bundle_engine(self._prepared(width, precision), width, "torch", **way)
        else:
            engine = open_engine(self.export(candidate), width=width, runtime=candidate.runtime, **way)
        self._ran[candidate.network] = candidate
        return engine

    def engine_of(self, network: Network, runtimes: Iterable[str], threads: int) -> Engine:
        """A network in the runtime that it ran in last, else in the first of these that takes it.

        Raises:
            LithesegError: none does.
        """
        ran = self._ran.get(network)
        ways = [ran] if ran else [Candidate(network, runtime, threads) for runtime in runtimes]
        problems = []
        for candidate in ways:
            try:
                return self.engine(candidate)
            except LithesegError as error:
                problems.append(str(error))
        raise LithesegError("; ".join(problems))

    def export(self, candidate: Candidate) -> Export:
        """The candidate's network as a file, from the cache or made now."""
        width, _, precision = candidate.network
        bundle = self.planned(candidate, self._prepared(width, precision))
        folder = self._folder / _folder_name(candidate, bundle.dense)
        try:
            return load_export(folder)
        except BundleError:  # none yet, or a damaged one
            self._progress(f"exporting {candidate.network.name}")
            return self.write(bundle, candidate, folder)

    def write(self, bundle: Bundle, candidate: Candidate, folder: Path, *, data: Source | None = None) -> Export:
        """Export a candidate's network to a folder, replacing what is there.

        Args:
            bundle: that has the width.
            candidate: which.
            folder: where.
            data: images on which the export is compared with PyTorch; None not to.

        Raises:
            LithesegError: as `export_bundle`; int8 without anything that makes it.
        """
        width, size, precision = candidate.network
        further: Further | None = None
        if precision == "int8":
            if self._quantise is None:
                raise LithesegError("int8 needs images to calibrate on: name the folder of the data with --data")
            self._progress(f"quantizing {candidate.network.name}, which takes minutes")
            further = self._quantise(bundle)
        options: dict[str, Any] = {"formats": (_FORMATS[candidate.runtime],), "widths": (width,), "size": size}
        return export_bundle(bundle, folder, check=data is not None, data=data, further=further, force=True, **options)

    def planned(self, candidate: Candidate, bundle: Bundle) -> Bundle:
        """The bundle with those layers dense that are faster so where the candidate runs."""
        network = candidate.network
        spot = Spot(network.width, network.size, candidate.runtime, candidate.threads)
        if self._plan is None or candidate.runtime == "torch":  # a bundle's layers are as they were trained
            return bundle
        if spot not in self._plan.entries:
            plain = with_widths(bundle, [network.width]).plain(network.width)
            if grouped_layers(plain):
                self._progress(f"timing the grouped layers of {candidate.name}")
            self._plan.measure(plain, spot)
        return replace(bundle, dense=self._plan.dense(spot))

    def _prepared(self, width: float, precision: str) -> Bundle:
        if precision != "fp32" and self._calibrated is not None:
            return self._calibrated(width)
        return with_widths(self._bundle, [width])


def _folder_name(candidate: Candidate, dense: tuple[str, ...]) -> str:
    digest = hashlib.sha256("\n".join(dense).encode()).hexdigest()[:8]
    return f"{candidate.network.name}-{candidate.runtime}" + (f"-dense-{digest}" if dense else "")
