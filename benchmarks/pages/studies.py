"""Finished rows that are compared with each other, and the differences between them, paired by fold and seed.

Usage:
    >>> study = Study("camvid-half", "ddrnet", records)
    >>> study.gains("(b) slimmable", "(a) independent", width="0.5")
    {('', 0): -1.55}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import yaml
from records import newest, results
from rows import HERE, read_protocols

__all__ = ["WIDTHS", "Scores", "Study", "read_studies", "read_table", "rounded"]

WIDTHS = ("1", "0.75", "0.5", "0.25")

Scores = dict[tuple[str, int], float]
"""Percent, or differences in points, by fold ("" in a protocol without folds) and seed."""


@dataclass(frozen=True)
class Study:
    """The finished rows of a table by one protocol and of one network.

    Attributes:
        protocol: a key of protocols.yaml.
        network: a model, or a student of a table of students; "" for rows of several.
        records: the rows, as in the results file.
        folds: the protocol's.
        labelled: the share of the training images that are; None where all are.
        table: the table, as in its YAML.
    """

    protocol: str
    network: str
    records: Sequence[Mapping[str, Any]]
    folds: tuple[str, ...] = ()
    labelled: str | None = None
    table: Mapping[str, Any] | None = None

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The rows of the table, finished or not."""
        return list((self.table or {}).get("rows", ()))

    @property
    def labels(self) -> list[str]:
        """Of the finished rows, in the table's order; by their letters, where they begin with such."""
        done = dict.fromkeys(record["label"] for record in self.records)
        known = dict.fromkeys([*(row["label"] for row in self.rows), *done])
        return sorted((label for label in known if label in done), key=lambda label: label if label[0] == "(" else "")

    @property
    def widths(self) -> list[str]:
        """All that were scored, widest first."""
        return sorted({width for record in self.records for width in record["metrics"]}, key=float, reverse=True)

    def where(self, **facts: Any) -> Study:
        """The study of those rows that have these facts, such as a model or a share of labels."""
        found = [record for record in self.records if all(record[name] == value for name, value in facts.items())]
        return replace(self, records=found)

    def of(self, label: str) -> list[Mapping[str, Any]]:
        """The finished rows of a label; several single-width rows may share one."""
        return [record for record in self.records if record["label"] == label]

    def scores(self, label: str, width: str | None = "1", metric: str = "miou", widths: Sequence[str] = ()) -> Scores:
        """Percent; for no width the mean over `widths` (all that were scored), of the pairs that have each."""
        if width is None:
            columns = [self.scores(label, each, metric) for each in widths or self.widths]
            pairs = set.intersection(*map(set, columns)) if columns else set()
            return {pair: mean(column[pair] for column in columns) for pair in sorted(pairs)}
        found = {}
        for record in self.of(label):
            value = record["metrics"].get(width, {}).get(metric)
            if value is not None:
                found[record.get("fold", ""), record["seed"]] = 100 * value
        return dict(sorted(found.items()))

    def gains(self, label: str, over: str | None, width: str | None = "1", metric: str = "miou") -> Scores:
        """Points above another label, of the pairs that both have; empty for the label itself."""
        if over is None or label == over:
            return {}
        own, other = (self.scores(name, width, metric) for name in (label, over))
        return {pair: own[pair] - other[pair] for pair in own if pair in other}


def rounded(gains: Mapping[Any, float]) -> float | None:
    """The mean as printed: what reads +0.00 is no gain, and what reads +1.00 is enough. None without any."""
    return round(mean(gains.values()), 2) if gains else None


def read_table(table: str) -> dict[str, Any]:
    """A table's YAML."""
    content: dict[str, Any] = yaml.safe_load((HERE / f"{table}.yaml").read_text())
    return content


def read_studies(table: str) -> list[Study]:
    """What is finished of a table, grouped by protocol, network and labelled share, in the order of the protocols."""
    protocols = read_protocols()
    groups: dict[tuple[str, str, str | None], list[Mapping[str, Any]]] = {}
    for record in newest(results(table)):
        key = record["protocol"], record.get("network") or record["model"], record.get("labelled")
        groups.setdefault(key, []).append(record)
    listed = sorted(groups.items(), key=lambda item: list(protocols).index(item[0][0]))
    content = read_table(table)
    return [
        Study(protocol, network, records, protocols[protocol].folds, share, content)
        for (protocol, network, share), records in listed
    ]
