"""Label images, one or millions.

What exists is kept: a run that was stopped goes on with the same command. Images that cannot be labelled are listed in
failed.jsonl in the output folder, as they fail. A list has a column `image` and, if you like, `output` for the results'
names.

Examples:
  litheseg predict model.safetensors street.jpg --output out/ --kind both
  litheseg predict model.safetensors photos/ --output out/ --width 0.25
  litheseg predict model.safetensors frames.parquet --output s3://bucket/masks --engine ray --workers 32
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Any

from litheseg.cli.parsing import command
from litheseg.cli.printing import complain_of, print_json, show
from litheseg.cli.stopping import sigterm_stops, stopped
from litheseg.progress import work
from litheseg.runtime import files
from litheseg.runtime.failures import REPORT

__all__ = ["predict"]


@command(files.predict_files, without=("size",))
def predict(
    model: str, inputs: Sequence[str], *, output: str, force: bool = False, json: bool = False, **options: Any
) -> int:
    """Print how many files were written, and what failed.

    Args:
        model: a model file, or an export: its folder or one of its networks.
        inputs: images, folders, .parquet or .csv lists; paths or URIs.
        output: folder for NAME.png and NAME_overlay.png; a path or a URI.
        force: replace results that exist.
        json: print JSON.
        **options: of `predict_files`.
    """

    def note(state: files.Progress) -> None:
        speed = f"{(state.done - state.kept) / images.seconds:.1f} images/s" if images.seconds > 1 else ""
        failed = f"{state.failed} failed" if state.failed else ""
        images.show(state.done, state.total, speed, failed, free=state.kept)

    try:
        # Ray prints on standard output, which with --json holds JSON only.
        with work("labelling images") as images, sigterm_stops(), redirect_stdout(sys.stderr):
            summary = files.predict_files(model, inputs, output, force=force, progress=note, **options)
    except KeyboardInterrupt as stop:
        how_far = "nothing begun" if images.total is None else f"{images.done} of {images.total} images done"
        again = "the same command without --force" if force else "the same command"
        return stopped(stop, f" with {how_far}; {again} goes on")
    complain_of([reason for _, reason in summary.failed], f", all of them in {output.rstrip('/')}/{REPORT}")
    if json:
        print_json(asdict(summary))
    else:
        kept = f", {summary.skipped} kept as they were (--force replaces them)" if summary.skipped else ""
        failed = f", {len(summary.failed)} images failed (see {REPORT} there)" if summary.failed else ""
        show(f"{summary.images} images: {summary.written} files written to {output}{kept}{failed}")
    return 1 if summary.failed else 0
