"""Turn a dense or gradual model into a grouped one.

A finished gradual run needs no conversion: its model.safetensors is grouped. Cutting a dense model costs accuracy,
which the table shows; `litheseg train --recipe gradual-grouping` avoids most of it.

Examples:
  litheseg convert runs/dg4 --output dg4.safetensors            a gradual run that was stopped after alpha reached 0
  litheseg convert dense.safetensors --groups 4 --where encoder,1x1 --data data/camvid --output cut.safetensors
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from litheseg.cli.parsing import command
from litheseg.cli.printing import print_json, print_table
from litheseg.errors import LithesegError
from litheseg.models.bundle import load_bundle
from litheseg.nn.efficient import Efficient
from litheseg.report.terminal import kept_table, scores_table
from litheseg.training.convert import convert_run, cut_bundle

__all__ = ["convert"]


@command(cut_bundle)
def convert(
    model: Path,
    *,
    output: Path,
    groups: int | None = None,
    where: str = "all",
    force: bool = False,
    json: bool = False,
    **options: Any,
) -> None:
    """Print the scores of the grouped model, and what a cut kept.

    Args:
        model: a gradual run's folder, or a dense model file to cut.
        output: the grouped model file.
        groups: of the cut: 2 or more, 0 for depthwise.
        where: which layers are cut: a role, a kernel, a pattern, as in "encoder,1x1".
        force: replace an existing file.
        json: print JSON.
        **options: of `cut_bundle`.
    """
    kept: dict[str, float] = {}
    if model.is_dir():
        if groups is not None:
            raise LithesegError(f"{model} is a run, which says itself what it ends as; leave out --groups")
        scores = convert_run(model, output, force=force)
    else:
        if groups is None:
            raise LithesegError("say what the dense model is to become: --groups 4 --where encoder,1x1, say")
        efficient = Efficient(groups=groups, shuffle=False, where=where)
        options = {"assignment": "magnitude", **options}
        cut = cut_bundle(load_bundle(model), output, efficient, force=force, **options)
        scores, kept = cut.scores, cut.kept
    if json:
        by_width = {f"{width:g}": score.to_dict() for width, score in scores.items()}
        return print_json({"bundle": str(output), "kept": kept, "scores": by_width})
    if kept:
        print_table(kept_table(kept), "squared weights that the cut left")
    print_table(scores_table(scores, load_bundle(output).header.classes.names), str(output))
