"""From wishes to jobs: the missing rows in the order in which they are wanted, each behind the rows it learns from.

It starts nothing; `gpu.side_by_side` does.

Usage:
    >>> jobs = read_jobs(Path("benchmarks/gpu/wishes.yaml"), Place("data/camvid", Path("runs/gpu")))
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from records import results
from rows import Row, finished, read_rows

__all__ = ["Job", "Place", "read_jobs"]

_RUNNER = Path(__file__).parents[1] / "run.py"
_ROW = ("table", "protocol", "network", "labelled", "folds", "seeds", "only", "keep")
_KNOWN = {*_ROW, "name", "command", "needs", "alone"}


@dataclass(frozen=True)
class Place:
    """Where a session computes.

    Attributes:
        data: the data's folder.
        work: where runs are kept.
        tiny: whether it is a rehearsal.
    """

    data: str
    work: Path
    tiny: bool = False

    @property
    def rows(self) -> Path:
        """The file of the rows that were finished here."""
        return self.work / "rows.jsonl"

    def bundle(self, table: str, key: str) -> Path:
        """The model of a row."""
        return self.work / table / key / "model.safetensors"


@dataclass(frozen=True)
class Job:
    """One process.

    Attributes:
        name: a row's key, or a command's name.
        words: the command line.
        kind: equal for jobs that take equally long.
        needs: files that must be there before it begins.
        bundle: the model that it makes; None for a command.
        keep: whether that is to be brought back.
        alone: whether nothing may run beside it.
    """

    name: str
    words: tuple[str, ...]
    kind: str
    needs: tuple[Path, ...] = ()
    bundle: Path | None = None
    keep: bool = False
    alone: bool = False


def read_jobs(wishes: Path, place: Place) -> list[Job]:
    """All jobs of a file of wishes that are not done, each once, at its first place.

    Raises:
        SystemExit: an entry that names something unknown.
    """
    jobs: dict[str, Job] = {}
    for wish in yaml.safe_load(wishes.read_text()):
        if unknown := sorted(wish.keys() - _KNOWN):
            raise SystemExit(f"{wishes}: unknown '{unknown[0]}'; an entry may have {', '.join(sorted(_KNOWN))}")
        for job in _jobs_of(wish, place):
            before = jobs.setdefault(job.name, job)
            jobs[job.name] = replace(before, keep=before.keep or job.keep)
    return list(jobs.values())


def _jobs_of(wish: Mapping[str, Any], place: Place) -> Iterator[Job]:
    if "command" in wish:
        words, needs = (sys.executable, *map(str, wish["command"])), tuple(map(Path, wish.get("needs", ())))
        yield Job(wish["name"], words, f"command {wish['name']} ", needs, alone=bool(wish.get("alone")))
        return
    table, protocol = wish["table"], wish["protocol"]
    shares, folds = wish.get("labelled"), wish.get("folds")
    rows = read_rows(table, protocol, wish.get("network"), wish["seeds"], shares, folds)
    known, only = {row.key: row for row in rows}, wish.get("only")
    if only and (unknown := sorted(set(only) - {row.id for row in rows})):
        raise SystemExit(f"wishes: table {table} has no row '{unknown[0]}'")
    done = finished(place.rows, table)
    if not place.tiny:
        done |= finished(results(table), table)
    if only:
        groups = list(dict.fromkeys((row.seed, row.labelled, row.fold) for row in rows))
        rows = [row for row in rows if row.id in only]
        rows.sort(key=lambda row: (groups.index((row.seed, row.labelled, row.fold)), only.index(row.id)))
    for row in (row for row in rows if row.key not in done):
        for key in _missing_teachers(row, known, place):
            # What is done already is done again where its model is not at hand.
            yield _job(known[key], wish, place, again=key in done)
        yield _job(row, wish, place)


def _missing_teachers(row: Row, known: Mapping[str, Row], place: Place) -> list[str]:
    """Keys of the rows that must come first, and of those that these need."""
    missing = [key for key in row.needs if not place.bundle(row.table, key).exists()]
    before = itertools.chain.from_iterable(_missing_teachers(known[key], known, place) for key in missing)
    return list(dict.fromkeys([*before, *missing]))


def _job(row: Row, wish: Mapping[str, Any], place: Place, *, again: bool = False) -> Job:
    options = {
        "--protocol": wish["protocol"],
        "--data": place.data,
        "--model": wish.get("network"),
        "--labelled": row.labelled,
        "--folds": row.fold,
        "--seeds": str(row.seed),
        "--only": row.id,
        "--work": str(place.work / row.table),
        "--results": str(place.rows),
    }
    given = itertools.chain.from_iterable((name, value) for name, value in options.items() if value)
    flags = [name for name, wanted in (("--again", again), ("--tiny", place.tiny)) if wanted]
    return Job(
        row.key,
        (sys.executable, str(_RUNNER), row.table, *given, *flags),
        f"{row.table} {row.protocol} {row.id} ",
        tuple(place.bundle(row.table, key) for key in row.needs),
        place.bundle(row.table, row.key),
        bool(wish.get("keep")),
    )
