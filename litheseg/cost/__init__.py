"""What a model costs on paper: parameters, MACs and activation memory."""

from __future__ import annotations

from litheseg.cost.counting import Cost, LayerCost, count, layer_table
from litheseg.cost.side_by_side import LayerPair, Pair, compare_dense, layer_pairs
from litheseg.cost.widths import WidthCost, width_costs

__all__ = [
    "Cost",
    "LayerCost",
    "LayerPair",
    "Pair",
    "WidthCost",
    "compare_dense",
    "count",
    "layer_pairs",
    "layer_table",
    "width_costs",
]
