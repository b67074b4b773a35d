"""What a model costs: parameters, MACs, activation memory and measured milliseconds."""

from __future__ import annotations

from litheseg.cost.counting import Cost, Layer, count, layer_table
from litheseg.cost.latency import Latency, measure_latency
from litheseg.cost.profile import Profile, profile, render
from litheseg.cost.side_by_side import LayerPair, Pair, compare_dense, layer_pairs, render_pairs

__all__ = [
    "Cost",
    "Latency",
    "Layer",
    "LayerPair",
    "Pair",
    "Profile",
    "compare_dense",
    "count",
    "layer_pairs",
    "layer_table",
    "measure_latency",
    "profile",
    "render",
    "render_pairs",
]
