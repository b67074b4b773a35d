"""What a model costs on paper: parameters, MACs and activation memory."""

from __future__ import annotations

from litheseg.cost.counting import Cost, Layer, count, layer_table
from litheseg.cost.side_by_side import LayerPair, Pair, compare_dense, layer_pairs, render_pairs
from litheseg.cost.widths import WidthCost, width_costs

__all__ = [
    "Cost",
    "Layer",
    "LayerPair",
    "Pair",
    "WidthCost",
    "compare_dense",
    "count",
    "layer_pairs",
    "layer_table",
    "render_pairs",
    "width_costs",
]
