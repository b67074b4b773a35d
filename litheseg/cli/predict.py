"""`litheseg predict`: label images, one or millions."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from contextlib import redirect_stdout
from dataclasses import asdict

from rich import progress as bars
from rich.console import Console

from litheseg.bundle.exported import PRECISIONS, RUNTIMES
from litheseg.cli.options import bundle_argument, device_option, json_option, max_pixels_option, parse_width
from litheseg.cli.printing import complain, print_json, show
from litheseg.cli.stopping import sigterm_stops, stop_status, stopped_by
from litheseg.runtime.failures import REPORT
from litheseg.runtime.files import ENGINES, Progress, Summary, predict_files

__all__ = ["add", "run"]


_SHOWN = 20  # failures; the others are in the report


def add(parser: ArgumentParser) -> None:
    """Declare the options."""
    bundle_argument(parser)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="images, folders, .parquet or .csv lists; or URIs")
    parser.add_argument("--output", required=True, metavar="DIR", help="where NAME.png and NAME_overlay.png go; or URI")
    parser.add_argument("--width", type=parse_width, metavar="W", help="one of the bundle's [the widest]")
    parser.add_argument("--kind", choices=("mask", "overlay", "both"), default="mask", help="what to write [mask]")
    parser.add_argument("--force", action="store_true", help="replace results that exist")
    parser.add_argument("--engine", choices=ENGINES, default="local", help="this process, or Ray's processes [local]")
    parser.add_argument("--workers", type=int, metavar="N", help="images at once [one for each core]")
    parser.add_argument("--runtime", choices=RUNTIMES, help="what runs it [torch, or what an export takes]")
    parser.add_argument("--precision", choices=PRECISIONS, help="of the network [fp32 if it has it]")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the CPU for each image [1]")
    max_pixels_option(parser)
    device_option(parser)
    json_option(parser)
    parser.epilog = f"""examples:
  litheseg predict model.safetensors street.jpg --output out/ --kind both
  litheseg predict model.safetensors photos/ --output out/ --width 0.25
  litheseg predict model.safetensors frames.parquet --output s3://bucket/masks --engine ray --workers 32

What exists is kept: a run that was stopped goes on with the same command. Images that cannot be labelled are listed in
{REPORT} in the output folder, as they fail. A list has a column `image` and, if you like, `output` for the results'
names.
"""


def run(args: Namespace) -> int:
    """Do it and print what came of it."""
    bar = _Bar()
    try:
        # Ray prints on standard output, which with --json is to hold JSON only.
        with bar, sigterm_stops(), redirect_stdout(sys.stderr):
            summary = predict_files(
                args.bundle,
                args.inputs,
                args.output,
                width=args.width,
                kind=args.kind,
                engine=args.engine,
                workers=args.workers,
                force=args.force,
                device=args.device,
                runtime=args.runtime,
                precision=args.precision,
                threads=args.threads,
                max_pixels=args.max_pixels,
                progress=bar.show,
            )
    except KeyboardInterrupt as stop:
        again = "the same command without --force" if args.force else "the same command"
        return complain(f"stopped by {stopped_by(stop)} with {bar.state}; {again} goes on", stop_status(stop))
    _print(summary, args)
    return 1 if summary.failed else 0


def _print(summary: Summary, args: Namespace) -> None:
    for _, reason in summary.failed[:_SHOWN]:
        complain(reason, 1)
    if len(summary.failed) > _SHOWN:
        complain(f"{len(summary.failed) - _SHOWN} more, all of them in {args.output.rstrip('/')}/{REPORT}", 1)
    if args.json:
        print_json(asdict(summary))
        return
    kept = f", {summary.skipped} kept as they were (--force replaces them)" if summary.skipped else ""
    failed = f", {len(summary.failed)} images failed (see {REPORT} there)" if summary.failed else ""
    show(f"{summary.images} images: {summary.written} files written to {args.output}{kept}{failed}")


class _Bar:
    """A line on standard error that says how far it is, if somebody is there to read it."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        console = Console(file=sys.stderr)
        self._bar = bars.Progress(
            bars.TextColumn("labelling"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[speed]}"),
            bars.TextColumn("[red]{task.fields[failures]}"),
            bars.TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not sys.stderr.isatty(),
            redirect_stdout=False,
        )
        self._task = self._bar.add_task("", total=None, speed="", failures="")
        self._begun = time.monotonic()

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Take note, and show it."""
        if self._progress is None:
            self._begun = time.monotonic()
        self._progress = progress
        fresh, seconds = progress.done - progress.kept, time.monotonic() - self._begun
        speed = f"{fresh / seconds:.1f} images/s" if fresh and seconds else ""
        failures = f"{progress.failed} failed" if progress.failed else ""
        self._bar.update(self._task, completed=progress.done, total=progress.total, speed=speed, failures=failures)

    @property
    def state(self) -> str:
        """How far it came."""
        return f"{self._progress.done} of {self._progress.total} images done" if self._progress else "nothing begun"
