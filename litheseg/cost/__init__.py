"""What a model costs: parameters, MACs, activation memory and measured milliseconds."""

from __future__ import annotations

from litheseg.cost.counting import Cost, Layer, count, layer_table
from litheseg.cost.latency import Latency, measure_latency
from litheseg.cost.profile import Profile, profile, render

__all__ = ["Cost", "Latency", "Layer", "Profile", "count", "layer_table", "measure_latency", "profile", "render"]
