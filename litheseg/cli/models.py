"""List the trained models of the zoo and the architectures, or show one.

Examples:
  litheseg models
  litheseg models zoo:camvid-lite0         a trained model: what it is, where it comes from, how it scores
  litheseg models ddrnet                   an architecture: its arguments
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from litheseg.bundle.zoo import ADDRESS_VARIABLE, ZooModel, list_zoo, whereabouts, zoo_model
from litheseg.cli.printing import console, print_json, print_table, show
from litheseg.errors import MissingExtraError, ModelError, did_you_mean, printable
from litheseg.tables import Table, terminal_table

__all__ = ["models"]


def models(name: str | None = None, /, *, json: bool = False) -> None:
    """Print a line for each model, or what there is to know of one.

    Args:
        name: zoo:NAME, or an architecture; by default all are listed.
        json: print JSON.
    """
    if name is None:
        _print_all(json)
    elif name.startswith("zoo:"):
        _print_trained(zoo_model(name.removeprefix("zoo:")), json)
    else:
        _print_architecture(name, json)


def _print_all(json: bool) -> None:
    zoo, problem = list_zoo()
    if problem:
        print(f"note: {printable(problem)}; what was known before is listed", file=sys.stderr)
    try:
        summaries, missing = _architectures(), ""
    except ModuleNotFoundError as error:
        summaries, missing = {}, str(MissingExtraError(str(error.name), "train", "building an architecture"))
    if json:
        trained = [asdict(model) | {"where": whereabouts(model)} for model in zoo]
        return print_json({"zoo": trained, "architectures": summaries})
    if zoo:
        console().print(terminal_table(_table(zoo), "trained models", left=("what", "where")))
    else:
        print(f"no trained models: the zoo is empty here; {ADDRESS_VARIABLE} names another\n")
    print("\n".join(f"{name:<16}{summary}" for name, summary in summaries.items()) or missing)


def _architectures() -> dict[str, str]:
    from litheseg.models import MODELS

    return {name: (inspect.getdoc(build) or "").partition("\n")[0] for name, build in MODELS.items()}


def _table(zoo: Sequence[ZooModel]) -> Table:
    rows = []
    for model in zoo:
        scores = "  ".join(f"{width}: {_mean_and_worst(entry)}" for width, entry in model.scores.items())
        rows.append((f"zoo:{model.name}", f"{model.file.bytes / 1e6:.1f}", scores, whereabouts(model), model.what))
    head = ("name", "MB", "mIoU, worst class (%) by width", "where", "what")
    return Table(head, tuple(tuple(map(printable, row)) for row in rows))


def _mean_and_worst(entry: Mapping[str, Any]) -> str:
    known = [value for value in entry["iou"] if value is not None]
    return f"{100 * entry['miou']:.1f}" + (f", {100 * min(known):.1f}" if known else "")


def _print_trained(model: ZooModel, json: bool) -> None:
    if json:
        return print_json(asdict(model) | {"where": whereabouts(model)})
    height, width = model.size
    facts: dict[str, Any] = {
        f"zoo:{model.name}": model.what,
        "file": f"{model.file.path}, {model.file.bytes / 1e6:.1f} MB, {whereabouts(model)}",
        "SHA-256": model.file.sha256,
        "exports": ", ".join(f"zoo:{model.name}/{name}" for name in model.exports) or "none",
        "images": f"{height}x{width}",
        "licence": model.licence,
        "data": model.data,
        "encoder": model.encoder,
        "command": model.command,
    }
    for name, value in facts.items():
        show(f"{name + ':':<10}{value}")
    ious = [entry["iou"] for entry in model.scores.values()]
    rows = [("mean", *(f"{100 * entry['miou']:.1f}" for entry in model.scores.values()))]
    for index, name in enumerate(model.classes):
        rows.append((printable(name), *("-" if iou[index] is None else f"{100 * iou[index]:.1f}" for iou in ious)))
    print_table(Table(("IoU (%)", *model.scores), tuple(rows)))


def _print_architecture(name: str, json: bool) -> None:
    from litheseg.models import MODELS

    if name not in MODELS:
        raise ModelError(f"unknown model '{name}'.{did_you_mean(name, MODELS)} Trained models are called zoo:NAME")
    text = f"{name}{inspect.signature(MODELS[name])}\n\n{inspect.getdoc(MODELS[name])}"
    return print_json({"name": name, "help": text}) if json else print(text)
