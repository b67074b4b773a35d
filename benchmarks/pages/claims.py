"""Do the papers' claims hold here? A line per claim and study that can answer it, and a picture with error bars.

The claims are in claims.yaml; the numbers are differences between trained rows, paired by seed and left-out sequence,
with intervals of 95 percent.

Usage:
    >>> sections = claim_sections()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from pages.folds import Difference, difference
from pages.studies import read_studies
from pages.writer import NONE, Section, intervals, source, table

__all__ = ["Answer", "claim_sections", "verdict"]

PICTURE = "claims"
_HOW = (
    "*Ours* is the mean difference in points of mIoU, with its 95 % interval; of rows with several widths, of their "
    "average. **Shown**: the whole interval is at or above what is claimed (0, where the paper gives no number). "
    "**Refuted**: the whole interval is below. **Open**: neither, or a single pair, which says nothing of its spread."
)


@dataclass(frozen=True)
class Answer:
    """What trained rows say to a claim.

    Attributes:
        claim: its entry in claims.yaml.
        where: network and protocol.
        records: the rows on both sides.
        found: the difference.
    """

    claim: Mapping[str, Any]
    where: str
    records: Sequence[Mapping[str, Any]]
    found: Difference

    @property
    def verdict(self) -> str:
        """In one word."""
        return verdict(self.found, self.claim.get("least", 0.0))


def verdict(found: Difference, least: float) -> str:
    """Whether a difference shows that it is at least so large, refutes it, or leaves it open."""
    if found.half is None:
        return "open"
    if found.mean - found.half >= least:
        return "shown"
    return "refuted" if found.mean + found.half < least else "open"


def claim_sections() -> list[Section]:
    """The table, its picture, and the rows behind it."""
    claims: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
    answers = {claim["claim"]: answers_to(claim) for claim in claims}
    lines = [line for claim in claims for line in _lines(claim, answers[claim["claim"]])]
    found = [answer for own in answers.values() for answer in own]
    head = ["paper", "claim", "paper's number", "trained here", "ours", "pairs", "verdict"]
    records = {record["key"]: record for answer in found for record in answer.records}
    blocks = [_HOW, table(head, lines, left=(0, 1, 2, 3, 6)), source(records.values())]
    bars = {f"{answer.claim['claim']} ({answer.where})": (answer.found, answer.claim.get("least")) for answer in found}
    draw = partial(
        intervals, values=bars, label="mIoU points with 95 % interval (hollow: one pair); diamonds: the paper's number"
    )
    plots = {PICTURE: ("Differences that the papers claim, as measured here", draw)} if bars else {}
    return [Section("Claim by claim", blocks, plots=plots)]


def answers_to(claim: Mapping[str, Any]) -> list[Answer]:
    """Of every protocol and network that has both rows; over the widths that both have."""
    studies = {
        (study.protocol, study.network): study
        for study in read_studies(claim["table"])
        if study.labelled == claim.get("labelled")
    }
    answers = []
    for (protocol, network), own in studies.items():
        other = studies.get((protocol, claim.get("over_model", network)))
        if other is None or network != claim.get("model", network):
            continue
        sides = (own, claim["label"]), (other, claim["over"])
        widths = [width for width in own.widths if all(part.scores(label, width) for part, label in sides)]
        if not widths:
            continue
        first, second = (part.scores(label, None, widths=widths) for part, label in sides)
        if found := difference([first[pair] - second[pair] for pair in first if pair in second]):
            records = [record for part, label in sides for record in part.of(label)]
            answers.append(Answer(claim, f"{network}, {protocol}", records, found))
    return answers


def _lines(claim: Mapping[str, Any], answers: Sequence[Answer]) -> list[list[str]]:
    first = [claim["paper"], claim["claim"], str(claim["reported"])]
    if not answers:
        return [[*first, NONE, NONE, NONE, "open"]]
    return [[*first, a.where, str(a.found), str(a.found.pairs), f"**{a.verdict}**"] for a in answers]
