"""Who is compared in `measure peers` and `measure peer_scores`: our widths, and light networks of other libraries.

All are rows of the benchmarks' tables by one protocol, trained once per left-out sequence; the runner keeps them in its
work folder.

Usage:
    >>> for contender in contenders(Path("runs/benchmarks"), chosen=None):
    ...     contender.trained("0001TP")  # the model file's content, or None
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rows import Row, read_protocols, read_rows

from litheseg.models.bundle import Bundle, from_nothing, load_bundle
from measure.common import arguments
from measure.peer_models import PEERS
from measure.runtimes import untrained

__all__ = ["FOLDS", "PROTOCOL", "SIZE", "Contender", "contenders", "parse"]

PROTOCOL, SIZE = "camvid-half-seq", (180, 240)
FOLDS = read_protocols()[PROTOCOL].folds

_OURS = {"segmenter": "segmenter, Lite0", "e-next-wider-band": "ddrnet"}  # id of a row -> what it is
_WIDTHS = (1.0, 0.75, 0.5, 0.25)


@dataclass(frozen=True)
class Contender:
    """One width of what is compared.

    Attributes:
        name: what it is.
        width: of a peer always 1.
        row: that trains it.
        work: where the runner keeps trained models.
    """

    name: str
    width: float
    row: Row
    work: Path

    @property
    def ours(self) -> bool:
        """Not of another library."""
        return self.row.model not in PEERS

    @property
    def output_kind(self) -> str:
        """Ours give logits at their stride; a peer is deployed as its users do it, with labels from its full size."""
        return "logits" if self.ours else "labels"

    def trained(self, fold: str) -> Bundle | None:
        """The model that was trained without this sequence; None where nobody did."""
        path = self.work / replace(self.row, fold=fold).key / "model.safetensors"
        return load_bundle(path) if path.exists() else None

    def any_weights(self, frames: Sequence[np.ndarray]) -> tuple[Bundle, str | None]:
        """A model for its time, and the sequence it was trained without; else with random weights, and None."""
        for fold in FOLDS:
            if found := self.trained(fold):
                return found, fold
        name, widths = self.row.model, _WIDTHS if self.ours else (1.0,)
        return untrained(name, from_nothing(name), widths, SIZE, frames), None


def parse(documentation: str | None, begun: str, **defaults: Any) -> argparse.Namespace:
    """The command line of a comparison.

    Args:
        documentation: of the program.
        begun: what is not begun any more after so many minutes.
        **defaults: see `measure.common.arguments`.
    """
    parser = arguments(documentation, **defaults)
    parser.add_argument("--data", type=Path, required=True, help="the CamVid folder")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="where the runs are kept")
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="some of them only")
    parser.add_argument("--minutes", type=float, default=600, help=f"no {begun} is begun after so many")
    return parser.parse_args()


def contenders(work: Path, chosen: Sequence[str] | None) -> list[Contender]:
    """Ours at every width and the peers; or only those with some names."""
    rows = [*read_rows("peers", PROTOCOL, None, [0], folds=[FOLDS[0]])]
    rows += [row for row in read_rows("slimseg", PROTOCOL, "ddrnet", [0], folds=[FOLDS[0]]) if row.id in _OURS]
    found = []
    for row in rows:
        peer = PEERS.get(row.model)
        for width in (1.0,) if peer else _WIDTHS:
            found.append(Contender(peer.title if peer else _OURS[row.id], width, row, work))
    return [contender for contender in found if not chosen or contender.name in chosen]
