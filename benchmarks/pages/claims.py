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
from records import newest, results
from rows import read_protocols

from pages.folds import Difference, difference
from pages.studies import Study
from pages.writer import NONE, Section, details, intervals, table

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
        study: the rows of one protocol and network.
        found: the difference.
    """

    claim: Mapping[str, Any]
    study: Study
    found: Difference

    @property
    def where(self) -> str:
        """Protocol and network."""
        return ", ".join(filter(None, [self.study.network or self.claim.get("model", ""), self.study.protocol]))

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
    """The table, its picture, and the commands that repeat it."""
    claims: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
    answers = {claim["claim"]: answers_to(claim) for claim in claims}
    lines = [line for claim in claims for line in _lines(claim, answers[claim["claim"]])]
    found = [answer for own in answers.values() for answer in own]
    head = ["paper", "claim", "paper's number", "trained here", "ours", "pairs", "verdict"]
    blocks = [_HOW, table(head, lines, left=(0, 1, 2, 3, 6)), _repeat(found)]
    bars = {f"{answer.claim['claim']} ({answer.where})": (answer.found, answer.claim.get("least")) for answer in found}
    draw = partial(
        intervals, values=bars, label="mIoU points with 95 % interval (hollow: one pair); diamonds: the paper's number"
    )
    plots = {PICTURE: ("Differences that the papers claim, as measured here", draw)} if bars else {}
    return [Section("Claim by claim", blocks, plots=plots)]


def answers_to(claim: Mapping[str, Any]) -> list[Answer]:
    """Of every protocol and network that has both rows; over the widths that both have."""
    answers = []
    for study in _studies(claim):
        own = study.where(model=claim["model"]) if "model" in claim else study
        other = study.where(model=claim["over_model"]) if "over_model" in claim else own
        sides = (own, claim["label"]), (other, claim["over"])
        widths = [width for width in study.widths if all(part.scores(label, width) for part, label in sides)]
        if not widths:
            continue
        first, second = (part.scores(label, None, widths=widths) for part, label in sides)
        if found := difference([first[pair] - second[pair] for pair in first if pair in second]):
            answers.append(Answer(claim, study, found))
    return answers


def _studies(claim: Mapping[str, Any]) -> list[Study]:
    """Rows that can answer a claim, by protocol and network; all networks together where the claim names them."""
    protocols = read_protocols()
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in newest(results(claim["table"])):
        if record.get("labelled") == claim.get("labelled"):
            network = "" if "model" in claim else record.get("network") or record["model"]
            groups.setdefault((record["protocol"], network), []).append(record)
    return [Study(protocol, network, rows, protocols[protocol].folds) for (protocol, network), rows in groups.items()]


def _lines(claim: Mapping[str, Any], answers: Sequence[Answer]) -> list[list[str]]:
    first = [claim["paper"], claim["claim"], str(claim["reported"])]
    if not answers:
        return [[*first, NONE, NONE, NONE, "open"]]
    return [[*first, a.where, str(a.found), str(a.found.pairs), f"**{a.verdict}**"] for a in answers]


def _repeat(answers: Sequence[Answer]) -> str:
    """The rows behind the answers, folded away."""
    lines = [
        f"- {row['key']}, on {row['hardware']}: `{row['command']}`"
        for answer in answers
        for label in (answer.claim["label"], answer.claim["over"])
        for row in answer.study.of(label)
    ]
    return details("Rows, hardware and commands", "\n".join(dict.fromkeys(lines)))
