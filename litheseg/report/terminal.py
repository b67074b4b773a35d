"""Text tables of scores and layers for the terminal.

Usage:
    >>> scores = evaluate_bundle(bundle, source).scores
    >>> rich.print(terminal_table(scores_table(scores, bundle.header.classes.names)))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from litheseg.bundle.verdicts import worst_class
from litheseg.cost.counting import LayerCost
from litheseg.cost.side_by_side import LayerPair, Pair
from litheseg.evaluation.metrics import Scores
from litheseg.report.card import show_worst
from litheseg.tables import Table, percent

__all__ = ["class_table", "dense_table", "kept_table", "layer_pairs_table", "layers_table", "scores_table"]

_QUANTITIES: dict[str, tuple[str, Callable[[float], str]]] = {
    "params": ("params", lambda value: f"{value / 1e6:.3f} M"),
    "macs": ("MACs", lambda value: f"{value / 1e9:.3f} G"),
    "peak_bytes": ("peak memory", lambda value: f"{value / 2**20:.1f} MiB"),
    "p50_ms": ("p50 ms (network)", lambda value: f"{value:.2f}"),
    "p95_ms": ("p95 ms (network)", lambda value: f"{value:.2f}"),
}


def scores_table(scores: Mapping[float, Scores], classes: Sequence[str]) -> Table:
    """One row a width, in percent."""
    head = ("width", "mIoU (%)", "worst class (%)", "boundary IoU (%)", "band mIoU (%)", "pixel accuracy (%)")
    names = ("boundary_iou", "band_miou", "pixel_accuracy")
    rows = (
        (
            f"{width:g}",
            percent(row.miou),
            show_worst(worst_class(classes, row.iou)),
            *(percent(getattr(row, name)) for name in names),
        )
        for width, row in scores.items()
    )
    return Table(head, tuple(rows))


def class_table(scores: Mapping[float, Scores], classes: Sequence[str]) -> Table:
    """IoU in percent, one row a class and one column a width; a class that the labels lack has a dash."""
    head = ("IoU (%)", *(f"{width:g}" for width in scores))
    rows = [(name, *(percent(row.iou[index]) for row in scores.values())) for index, name in enumerate(classes)]
    return Table(head, tuple(rows))


def layers_table(layers: Sequence[LayerCost]) -> Table:
    """One row a layer."""
    rows = [
        (layer.name, layer.type, "x".join(map(str, layer.output)), f"{layer.params:,}", f"{layer.macs / 1e6:.2f}")
        for layer in layers
    ]
    return Table(("layer", "kind", "output", "params", "MACs (M)"), tuple(rows))


def kept_table(kept: Mapping[str, float]) -> Table:
    """One row a layer: the share of the squared weights that is inside its groups."""
    return Table(("layer", "kept (%)"), tuple((name, percent(share)) for name, share in kept.items()))


def dense_table(pairs: Sequence[Pair]) -> Table:
    """A block of rows per width: what is counted or timed, dense, grouped, and dense over grouped."""
    rows = []
    for pair in pairs:
        for name, (label, show) in _QUANTITIES.items():
            width = "" if name != "params" else f"{pair.grouped['width']:g}"
            cells = [show(side[name]) if name in side else "-" for side in (pair.dense, pair.grouped)]
            rows.append((width, label, *cells, f"{pair.ratio[name]:.2f}x" if name in pair.ratio else "-"))
    return Table(("width", "", "dense", "grouped", "dense / grouped"), tuple(rows))


def layer_pairs_table(pairs: Sequence[LayerPair]) -> Table:
    """One row a layer: parameters and MACs dense and grouped, and dense over grouped MACs where they differ."""
    rows = []
    for pair in pairs:
        layer = pair.grouped
        ratio = "" if pair.dense.macs == layer.macs else f"{pair.dense.macs / layer.macs:.2f}x"
        params = (f"{value:,}" for value in (pair.dense.params, layer.params))
        macs = (f"{value / 1e6:.2f}" for value in (pair.dense.macs, layer.macs))
        rows.append((layer.name, layer.type, "x".join(map(str, layer.output)), *params, *macs, ratio))
    head = ("layer", "kind", "output", "params dense", "grouped", "MACs (M) dense", "grouped", "dense / grouped")
    return Table(head, tuple(rows))
