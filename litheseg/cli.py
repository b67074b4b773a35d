"""The command line: it parses, calls the function of the same name, and prints what that returns.

Exit status: 0 for success; 1 when `doctor` found what training cannot go on with, or `predict` or `pseudo-label` failed
on an image; 2 for wrong usage and for errors that the user can mend (one line on stderr); 130 after Ctrl-C. With
`--json`, standard output holds JSON only.

Usage:
    $ litheseg train --recipe slimseg --data.root camvid --output runs/slimseg
    $ litheseg evaluate runs/slimseg/model.safetensors --widths 1,.6,.25
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import shlex
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import Progress

from litheseg._cli_parser import COMMANDS, build_parser
from litheseg.cost import compare_dense, layer_pairs, layer_table, profile, render, render_pairs
from litheseg.cost.summary import save_scored
from litheseg.data import fetch, open_source, partition
from litheseg.data.doctor import diagnose, diagnose_path
from litheseg.data.download import CAMVID_URL
from litheseg.data.export import write_folder
from litheseg.data.source import Source
from litheseg.data.splits import write_list
from litheseg.data.streets import Streets
from litheseg.demo import run_demo
from litheseg.deploy.bundle import load_bundle
from litheseg.deploy.import_weights import import_weights, read_classes, read_normalisation
from litheseg.errors import LithesegError, ModelError, did_you_mean
from litheseg.evaluation.bundle import evaluate_bundle
from litheseg.labelling import import_labels, pseudo_label
from litheseg.models import MODELS
from litheseg.nn.efficient import Efficient
from litheseg.report.card import width_rows, width_table
from litheseg.report.run_report import report_bundles, report_run
from litheseg.report.terminal import (
    class_table,
    kept_table,
    layer_pairs_table,
    layers_table,
    scores_table,
    terminal_table,
)
from litheseg.runtime.files import predict
from litheseg.training import load_recipe, recipe_names, train
from litheseg.training.callbacks import Interrupted
from litheseg.training.convert import convert_run, cut_bundle
from litheseg.training.recipe import recipe_yaml

__all__ = ["main"]

_OVERRIDABLE = ("train", "demo")  # commands that take recipe fields as options


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _keep_quiet()
    try:
        return _run(argv)
    except Interrupted as error:
        return _complain(str(error), 130)
    except KeyboardInterrupt:
        return _complain("stopped by Ctrl-C", 130)
    except LithesegError as error:
        return _complain(str(error), 2)
    except BrokenPipeError:  # `litheseg models | head`: whoever reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(argv: list[str]) -> int:
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise LithesegError(f"unknown command '{argv[0]}'.{did_you_mean(argv[0], COMMANDS)}")
    parser = build_parser()
    try:
        args, rest = parser.parse_known_args(argv)
    except SystemExit as stop:  # --help, --version, or wrong usage, all of which argparse has printed
        return int(stop.code or 0)
    if rest and args.command not in _OVERRIDABLE:
        raise LithesegError(f"unknown option {rest[0]}; see `litheseg {args.command} --help`")
    if args.command in _OVERRIDABLE:
        args.overrides = rest
    handlers: dict[str, Callable[[Namespace], int | None]] = {
        "train": _train,
        "evaluate": _evaluate,
        "profile": _profile,
        "predict": _predict,
        "pseudo-label": _pseudo_label,
        "import-labels": _import_labels,
        "doctor": _doctor,
        "data": _data,
        "convert": _convert,
        "import-weights": _import_weights,
        "models": _models,
        "recipes": _recipes,
        "report": _report,
        "demo": _demo,
    }
    args.line = shlex.join(["litheseg", *argv])
    return handlers[args.command](args) or 0


# --- commands --------------------------------------------------------------------------------------------------------


def _train(args: Namespace) -> None:
    recipe = load_recipe(args.recipe, args.overrides)
    result = train(recipe, args.output or Path("runs") / recipe.name, resume=args.resume)
    if getattr(rank_zero_only, "rank", 0):  # one of several processes reports
        return
    report = report_run(result.folder, command=args.line)
    _print_table(width_table(width_rows(load_bundle(result.bundle).header)))
    _print_next(result.bundle, report, tuple(result.scores))


def _evaluate(args: Namespace) -> None:
    bundle = load_bundle(args.bundle)
    views = {name: getattr(args, name) for name in ("mode", "window", "flip", "scales", "band_radius", "device")}
    result = evaluate_bundle(bundle, args.data, source=args.source, split=args.split, widths=args.widths, **views)
    saved = save_scored(args.save, result.bundle, result.scores).path if args.save else None
    if args.json:
        scores = {f"{width:g}": score.to_dict() for width, score in result.scores.items()}
        facts = {"bundle": args.bundle, "data": result.data, "split": result.split, "calibrated": result.calibrated}
        return _print_json({**facts, "scores": scores})
    if result.calibrated:
        widths = ", ".join(f"{width:g}" for width in result.calibrated)
        kept = f"kept in {saved}" if saved else "not kept; --save FILE keeps it"
        print(f"width {widths}: batch-norm statistics measured on training images ({kept})")
    _print_table(scores_table(result.scores), f"{args.bundle} on {result.data} {result.split}")
    _print_table(class_table(result.scores, bundle.header.classes.names))


def _profile(args: Namespace) -> None:
    bundle = load_bundle(args.bundle)
    size = args.size or bundle.header.size
    title = f"{args.bundle} at {size[0]}x{size[1]}, batch 1, {args.device}"
    measuring = {name: getattr(args, name) for name in ("device", "threads", "repeats")}
    if args.dense:
        pairs = compare_dense(bundle, args.widths, size, **measuring)
        beside = layer_pairs(bundle.plain(1.0), size) if args.layers else ()
        tables = render_pairs(pairs, title), layer_pairs_table(beside)
        rows, layers = [pair.to_dict() for pair in pairs], [pair.to_dict() for pair in beside]
    else:
        measured = profile(bundle, args.widths, size, **measuring)
        alone = layer_table(bundle.plain(1.0), size) if args.layers else ()
        tables = render(measured, title), layers_table(alone)
        rows, layers = [asdict(row) for row in measured], [asdict(layer) for layer in alone]
    if args.json:
        content = {"bundle": args.bundle, "size": size, "widths": rows}
        return _print_json({**content, "layers": layers} if args.layers else content)
    _console().print(tables[0])
    if args.layers:
        _print_table(tables[1], "layers at width 1")


def _predict(args: Namespace) -> int:
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("labelling", total=None)
        summary = predict(
            args.bundle,
            args.inputs,
            args.output,
            width=args.width,
            kind=args.kind,
            force=args.force,
            device=args.device,
            progress=lambda done, total, _: bar.update(task, completed=done, total=total),
        )
    for _, reason in summary.failed:
        _complain(reason, 1)
    if args.json:
        _print_json(asdict(summary))
    else:
        kept = f", {summary.skipped} kept as they were (--force replaces them)" if summary.skipped else ""
        print(f"{summary.images} images: {summary.written} files written to {args.output}{kept}")
    return 1 if summary.failed else 0


def _pseudo_label(args: Namespace) -> int:
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("labelling", total=None)
        result = pseudo_label(
            args.bundle,
            args.folder,
            args.output,
            width=args.width,
            threshold=args.threshold,
            choose=args.choose,
            export=args.export,
            force=args.force,
            device=args.device,
            progress=lambda done, total, _: bar.update(task, completed=done, total=total),
        )
    for _, reason in result.failed:
        _complain(reason, 1)
    if args.json:
        _print_json({**asdict(result), "ranking": str(result.ranking), "export": str(result.export or "") or None})
    else:
        kept = f", {result.skipped} kept as they were (--force replaces them)" if result.skipped else ""
        print(f"{result.images} images: {result.written} files written to {args.output}{kept}")
        print(f"ranking {result.ranking}: to correct first {', '.join(result.chosen[:5]) or 'none'}")
        if result.export:
            print(f"export  {result.export}\n\ncorrect it, export it, and then:")
            classes = Path(args.output) / "classes.yaml"
            print(f"  litheseg import-labels EXPORT --images {args.folder} --classes {classes} --output corrected")
    return 1 if result.failed else 0


def _import_labels(args: Namespace) -> None:
    options = {name: getattr(args, name) for name in ("images", "classes", "unlabelled_as", "force")}
    result = import_labels(args.export, args.output, **options)
    if args.json:
        return _print_json({**asdict(result), "folder": str(result.folder)})
    left = f"; {len(result.left_out)} left out, nobody drew on them" if result.left_out else ""
    print(f"{result.folder}: {result.images} images with masks of {len(result.classes)} classes{left}")


def _doctor(args: Namespace) -> int:
    options = {"limit": args.limit, "crop": args.crop, "verbose": sys.stderr.isatty()}
    if args.data is None:
        report = diagnose(_open(args), **options)
    else:
        report = diagnose_path(args.data, args.source, **options)
    if args.json:
        print(report.to_json())
    else:
        _console().print(report.render())
    return 0 if report.ok else 1


def _data(args: Namespace) -> None:
    if args.action == "fetch":
        print(fetch(args.name, args.folder, url=args.url or CAMVID_URL, sha256=args.sha256))
    elif args.action == "make":
        source = Streets(train=args.train, val=args.val, size=args.size, seed=args.seed)
        folder = write_folder(source, args.folder, progress=True)
        print(f"{folder}: {args.train} training and {args.val} validation scenes")
    elif args.action == "info":
        _data_info(_open(args), args.json)
    else:
        ids = [sample.id for sample in _open(args).samples("train")]
        chosen = partition(ids, ratio=args.ratio, count=args.count, seed=args.seed)
        write_list(args.output, chosen.labelled)
        print(f"{args.output}: {len(chosen.labelled)} of {len(ids)} training images; use it as --data.labelled")


def _data_info(source: Source, as_json: bool) -> None:
    splits = {split: len(source.samples(split)) for split in source.splits()}
    facts = {"source": source.name, "licence": source.licence or "not stated", "citation": source.citation}
    if as_json:
        return _print_json({**facts, "splits": splits, "classes": source.classes.names})
    counts = ", ".join(f"{split} {count}" for split, count in splits.items())
    for name, value in {**facts, "splits": counts, "classes": ", ".join(source.classes.names)}.items():
        print(f"{name + ':':<10}{value or '-'}")


def _convert(args: Namespace) -> None:
    kept: dict[str, float] = {}
    if Path(args.model).is_dir():
        if args.groups is not None:
            raise LithesegError(f"{args.model} is a run, which says itself what it ends as; leave out --groups")
        scores = convert_run(args.model, args.output, force=args.force)
    else:
        if args.groups is None:
            raise LithesegError("say what the dense model is to become: --groups 4 --where encoder,1x1, say")
        efficient = Efficient(groups=args.groups, shuffle=False, where=args.where)
        options = {"assignment": args.assignment, "data": args.data, "source": args.source, "force": args.force}
        cut = cut_bundle(load_bundle(args.model), args.output, efficient, **options)
        scores, kept = cut.scores, cut.kept
    if args.json:
        facts = {"bundle": args.output, "kept": kept}
        return _print_json({**facts, "scores": {f"{width:g}": score.to_dict() for width, score in scores.items()}})
    if kept:
        _print_table(kept_table(kept), "squared weights that the cut left")
    _print_table(scores_table(scores), args.output)


def _import_weights(args: Namespace) -> None:
    mean, std = read_normalisation(args.normalisation, args.mean, args.std)
    options = {name: getattr(args, name) for name in ("model", "args", "size", "source_note", "licence", "force")}
    classes = read_classes(args.classes, args.extra_class)
    bundle = import_weights(args.weights, args.output, classes=classes, mean=mean, std=std, **options)
    print(f"{bundle.path}: {args.model}, {len(classes)} classes ({classes.names[0]} ... {classes.names[-1]})")
    _print_table(width_table(width_rows(bundle.header)))


def _models(args: Namespace) -> None:
    if args.name is None:
        summaries = {name: (inspect.getdoc(build) or "").splitlines()[0] for name, build in MODELS.items()}
        if args.json:
            return _print_json(summaries)
        for name, summary in summaries.items():
            print(f"{name:<16}{summary}")
        return None
    if args.name not in MODELS:
        raise ModelError(f"unknown model '{args.name}'.{did_you_mean(args.name, MODELS)}")
    text = f"{args.name}{inspect.signature(MODELS[args.name])}\n\n{inspect.getdoc(MODELS[args.name])}"
    return _print_json({"name": args.name, "help": text}) if args.json else print(text)


def _recipes(args: Namespace) -> None:
    if args.name is not None:
        print(recipe_yaml(args.name), end="")
        return
    for name in recipe_names():
        comment = " ".join(line[2:] for line in recipe_yaml(name).splitlines() if line.startswith("# "))
        print(f"{name:<16}{comment.partition('. ')[0].rstrip('.')}.")


def _report(args: Namespace) -> None:
    names = _distinct_names(args.bundles)
    bundles = {name: load_bundle(path) for name, path in zip(names, args.bundles, strict=True)}
    page = report_bundles(
        bundles,
        args.output,
        data=args.data,
        source=args.source,
        split=args.split,
        latency=args.latency,
        command=args.line,
    )
    print(page)


def _demo(args: Namespace) -> None:
    result = run_demo(args.output, args.overrides, force=args.force)
    if result.reused:
        print(f"{args.output} holds a finished demo: nothing was trained (--force begins anew)")
    _print_table(width_table(result.rows))
    _print_next(result.bundle, result.report, load_bundle(result.bundle).header.available_widths)


# --- what they share -------------------------------------------------------------------------------------------------


def _open(args: Namespace) -> Source:
    return open_source(args.source, args.data)


def _distinct_names(paths: Sequence[str]) -> list[str]:
    """File names without ending; with their folder where they would be the same, as `model.safetensors` is."""
    stems = [Path(path).stem for path in paths]
    if len(set(stems)) < len(stems):
        stems = [Path(path).resolve().parent.name for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]


def _print_next(bundle: Path, report: Path, widths: Sequence[float]) -> None:
    between = narrowest = ""
    if len(widths) > 1:
        between = f" --widths {max(widths):g},{sum(widths) / len(widths):.2g},{min(widths):g}"
        narrowest = f" --width {min(widths):g}"
    print(f"model   {bundle}\nreport  {report}\n\nnext:")
    print(f"  litheseg evaluate {bundle}{between}")
    print(f"  litheseg profile {bundle}")
    print(f"  litheseg predict {bundle} PHOTOS --output labelled{narrowest} --kind both")


def _print_table(table: Any, title: str | None = None) -> None:
    _console().print(terminal_table(table, title))


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2))


def _console() -> Console:
    """Wide enough for every table where nobody's terminal says how wide it is."""
    return Console() if sys.stdout.isatty() else Console(width=140)


def _complain(message: str, status: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status


def _keep_quiet() -> None:
    """Leave out other libraries' advice on hardware, loaders and loggers; what litheseg says itself stays."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for module in ("lightning", "torch", "tensorboard"):
        warnings.filterwarnings("ignore", module=rf"{module}\b.*")
