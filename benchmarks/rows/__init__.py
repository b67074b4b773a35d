"""The rows of the results tables, and the protocols by which they are trained: which there are, and how each is called.

A table is a YAML list of rows (recipe and overrides), a protocol fixes everything else. Nothing is trained here and no
PyTorch loaded; `benchmarks/run.py` does the rows.

Usage:
    >>> rows = read_rows("slimseg", "camvid-seq", "ddrnet", [0])
    >>> rows[0].key, rows[0].arguments("data/camvid", Path("runs/benchmarks"))
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from records import read

__all__ = ["HERE", "TINY", "Protocol", "Row", "finished", "networks", "read_protocols", "read_rows"]

HERE = Path(__file__).parent
# Over everything else, to rehearse: what takes seconds.
TINY = (
    "--data.size=[48,64]",
    "--data.crop=[48,64]",
    "--data.batch_size=2",
    "--data.steps=2",
    "--data.cache=ram",
    "--trainer.epochs=2",
    "--trainer.val_every=2",
    "--trainer.precision=32-true",
)


@dataclass(frozen=True)
class Protocol:
    """How rows are trained and scored.

    Attributes:
        arguments: overrides of the recipe.
        folds: sequences of the training images, or parts of them ("2/5"); a row is trained once without each, and
            scored on it. Empty for one training, scored on the published val.
    """

    arguments: tuple[str, ...]
    folds: tuple[str, ...] = ()


def read_protocols() -> dict[str, Protocol]:
    """By name, in the order of protocols.yaml; a list is of arguments alone."""
    content = yaml.safe_load((HERE / "protocols.yaml").read_text())
    return {
        name: Protocol(tuple(entry["arguments"]), tuple(entry["folds"]))
        if isinstance(entry, dict)
        else Protocol(tuple(entry))
        for name, entry in content.items()
    }


@dataclass(frozen=True)
class Row:
    """One training run of a table.

    Attributes:
        model: the network's name.
        overrides: what the row changes; {ID} stands for the model that another row trains.
        network: in a table of students, what the model is there: a student, or the pair that a teacher is of.
        labelled: in such a table, the share of the training images that are.
        fold: the sequence or part that is left out and scored, where the protocol has such.
        tiny: whether it is a rehearsal, of a few steps on tiny images.
        keys: of the rows that `overrides` may name, by id.
    """

    table: str
    protocol: str
    model: str
    id: str
    label: str
    recipe: str
    overrides: tuple[str, ...]
    seed: int
    network: str | None = None
    labelled: str | None = None
    fold: str | None = None
    tiny: bool = False
    keys: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def key(self) -> str:
        """What makes the row unique, usable as a folder name."""
        share = f"-{self.labelled}" if self.labelled else ""
        fold = f"-{self.fold}" if self.fold else ""
        name = (self.network or self.model).replace("*", "star")
        return f"{self.protocol}-{name}{share}-{self.id}{fold}-seed{self.seed}".replace("/", "of")

    @property
    def needs(self) -> tuple[str, ...]:
        """Keys of the rows whose models this one learns from."""
        named = {name for override in self.overrides for name in re.findall(r"{([\w.-]+)}", override)}
        return tuple(self.keys[name] for name in sorted(named & self.keys.keys()))

    def arguments(self, data: str, work: Path) -> list[str]:
        """The overrides of protocol and row, in this order."""
        protocol = read_protocols()[self.protocol].arguments
        field = "fold" if "/" in (self.fold or "") else "leave_out"
        fold = [f"--data.{field}={self.fold}"] if self.fold else []
        own = [*fold, f"--model.name={self.model}", f"--data.root={data}", f"--trainer.seed={self.seed}"]
        bundles = {other: work / key / "model.safetensors" for other, key in self.keys.items()}
        overrides = [_filled(part, bundles) for part in self.overrides]
        return [*protocol, *own, *overrides, *(TINY if self.tiny else ())]

    @property
    def command(self) -> str:
        """What trains the row, for whoever reads the results: with DATA for the data's folder."""
        arguments = self.arguments("DATA", Path("runs/benchmarks"))
        return shlex.join(["litheseg", "train", "--recipe", self.recipe, *arguments])


def _filled(override: str, values: Mapping[str, Any]) -> str:
    """The override with values in the place of their {NAME}; other names stay."""
    return re.sub(r"{([\w.-]+)}", lambda match: str(values.get(match[1], match[0])), override)


def read_rows(
    table: str,
    protocol: str,
    model: str | None,
    seeds: list[int],
    shares: list[str] | None = None,
    folds: list[str] | None = None,
) -> list[Row]:
    """The rows of a table; all rows of the first seed come before those of the next, and of a fold before the next.

    A row may name its model; the others are of `model`, by default the first of the table's. In a table of students
    `model` is one of these, and there are rows for each of `shares`, by default the table's first alone. A protocol
    with folds has every row once for each of `folds`, by default all.
    """
    content = yaml.safe_load((HERE / f"{table}.yaml").read_text())
    if "module" in content:
        importlib.import_module(content["module"])
    if "students" in content:
        groups = [
            _student_rows(content, table, protocol, model, seed, share)
            for seed in seeds
            for share in shares or content["shares"][:1]
        ]
    else:
        groups = [_model_rows(content, table, protocol, model, seed) for seed in seeds]
    groups = _per_fold(groups, protocol, folds)
    return [replace(row, keys={other.id: other.key for other in group}) for group in groups for row in group]


def networks(table: str) -> list[str | None]:
    """The models or students of a table; None stands for rows that name their own."""
    content = yaml.safe_load((HERE / f"{table}.yaml").read_text())
    return list(content.get("students") or content.get("models") or [None])


def _per_fold(groups: list[list[Row]], protocol: str, folds: list[str] | None) -> list[list[Row]]:
    """Each group once per fold, where the protocol has folds."""
    protocols = read_protocols()
    known = protocols[_one_of(protocols, protocol, "protocols.yaml has no protocol")].folds
    for fold in folds or ():
        _one_of(known, fold, f"protocol {protocol} has no fold")
    if not known:
        return groups
    return [[replace(row, fold=fold) for row in group] for group in groups for fold in folds or known]


def _model_rows(content: dict[str, Any], table: str, protocol: str, model: str | None, seed: int) -> list[Row]:
    model = _one_of(content.get("models", [None]), model, f"{table}.yaml has no model")
    names = ("id", "label", "recipe")
    return [
        Row(table, protocol, row.get("model", model), *(row[n] for n in names), tuple(row["overrides"]), seed)
        for row in content["rows"]
    ]


def _student_rows(
    content: dict[str, Any], table: str, protocol: str, student: str | None, seed: int, share: str
) -> list[Row]:
    """One student's rows and those of its teachers, for one share; where all is labelled, those that need no more."""
    student = _one_of(content["students"], student, f"{table}.yaml has no student")
    _one_of(content["shares"], share, f"{table}.yaml has no share")
    steps = content["steps"][_one_of(content["steps"], protocol, f"{table}.yaml has no steps for protocol")]
    teachers_by = content["teachers_by"].get(protocol, protocol)
    values = content["students"][student]
    common = [*content["every"], f"--data.steps={steps}", *([] if share == "all" else [f"--data.labelled={share}"])]
    rows = []
    for entry in content["rows"]:
        if share == "all" and not entry.get("labels_only"):
            continue
        name, role = values["teachers"], entry.get("teacher")
        pair = content["teachers"][name]
        network = pair[role] if role else values
        recipe = entry.get("recipe", pair["recipe"])
        own = [*content["recipes"].get(recipe, []), *network.get("overrides", []), *entry["overrides"]]
        overrides = [*common, f"--model.args={json.dumps(network['args'])}", *own]
        rows.append(
            Row(
                table,
                teachers_by if role else protocol,
                network["model"],
                entry["id"],
                _filled(entry["label"], pair),
                recipe,
                tuple(_filled(override, values["weights"]) for override in overrides),
                seed,
                network=name if role else student,
                labelled=share,
            )
        )
    return rows


def _one_of(known: Iterable[Any], name: Any, complaint: str) -> Any:
    """`name`, or the first where it is None; refused where it is not known."""
    known = list(known)
    if name is not None and name not in known:
        raise SystemExit(f"{complaint} '{name}'; choose from {', '.join(filter(None, known))}")
    return known[0] if name is None else name


def finished(path: Path, table: str) -> set[str]:
    """Keys of a table's rows that are done, in a file that may hold those of others, too."""
    return {record["key"] for record in read(path) if record["table"] == table}
