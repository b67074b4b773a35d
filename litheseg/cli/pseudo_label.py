"""Label images, and choose which to correct by hand.

The ranking is in labelled/ranking.csv, uncertain images that are unlike each other first. What exists is kept: a run
that was stopped goes on with the same command. The output is a data set too: --data.root labelled/.

Examples:
  litheseg pseudo-label model.safetensors photos/ --output labelled/ --choose 50 --export cvat
  litheseg pseudo-label model.safetensors photos/ --output labelled/ --threshold 0.9     (and nothing to correct)
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from litheseg.cli.parsing import command
from litheseg.cli.printing import complain_of, print_json, show
from litheseg.cli.stopping import sigterm_stops, stopped
from litheseg.labelling import pseudo

__all__ = ["pseudo_label"]


@command(pseudo.pseudo_label)
def pseudo_label(model: Path, folder: Path, *, output: Path, json: bool = False, **options: Any) -> int:
    """Print how many files were written, and which images to correct first.

    Args:
        model: a model file, such as runs/NAME/model.safetensors.
        folder: the images, also in folders below it.
        output: folder for masks, confidence and ranking.
        json: print JSON.
        **options: of `litheseg.labelling.pseudo_label`.
    """
    try:
        with sigterm_stops():
            result = pseudo.pseudo_label(model, folder, output, **options)
    except KeyboardInterrupt as stop:
        return stopped(stop, "; the same command goes on")
    complain_of([reason for _, reason in result.failed], " could not be labelled; --json lists all")
    if json:
        print_json({**asdict(result), "ranking": str(result.ranking), "export": str(result.export or "") or None})
        return 1 if result.failed else 0
    kept = f", {result.skipped} kept as they were (--force replaces them)" if result.skipped else ""
    show(f"{result.images} images: {result.written} files written to {output}{kept}")
    show(f"ranking {result.ranking}: to correct first {', '.join(result.chosen[:5]) or 'none'}")
    if result.export:
        show(f"export  {result.export}")
        print("\ncorrect it, export it, and then:")
        classes = output / "classes.yaml"
        show(f"  litheseg import-labels EXPORT --images {folder} --classes {classes} --output corrected")
    return 1 if result.failed else 0
