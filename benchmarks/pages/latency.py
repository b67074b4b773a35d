"""What does grouping save in time? Two tables, of single layers and of whole networks, from grouped_latency.jsonl.

Usage:
    >>> sections = latency_sections()
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median_high
from typing import Any

from records import report, results

from pages.writer import NONE, Section, source, table

__all__ = ["family_table", "latency_sections", "layers_table"]

REFERENCE = "erfnet-d*"  # what the groups are put into


def latency_sections() -> list[Section]:
    """Both tables; none without the file."""
    content = report(results("grouped_latency"))
    if not content:
        return []
    options = content["options"]
    threads = f"{options['threads']} thread{'s' * (options['threads'] != 1)}"
    size = "x".join(map(str, options["size"]))
    blocks = [
        f"Batch 1, {threads}, {content['clock']}, medians; all variants of a layer, and all networks, were timed in "
        f"turn. PyTorch in its better memory format. Typically, half of a cell's timings are within "
        f"{_typical_spread(content):.1%} of its median: smaller differences than that mean little.",
        f"**Single layers**, as many inputs as outputs, at the sizes that strides leave of {size}. Each cell says how "
        "many times fewer MACs than the dense layer, and how many times faster in PyTorch: `4x, 1.3x` is a quarter of "
        "the MACs in three quarters of the time, and below 1x is slower.",
        layers_table(content),
        f"**Networks** at {size} with 11 classes; parameters and MACs at 512x1024 with 20 outputs, as the paper "
        f"counts. In brackets: how many times fewer, or faster, than `{REFERENCE}`.",
        family_table(content),
        *content["notes"],
        source(content),
    ]
    return [Section("Time", blocks)]


def layers_table(content: Mapping[str, Any]) -> str:
    """A line per layer and size: milliseconds when dense, then savings in MACs and in time, by variant."""
    rows, lines = content["layers"], []
    names = list(dict.fromkeys(name for row in rows for name in row["variants"] if name != "dense"))
    for row in rows:
        dense = row["variants"]["dense"]
        head = [f"{row['kernel']}, {row['channels']}", "x".join(map(str, row["size"])), _milliseconds(dense["ms"])]
        lines.append([*head, *(_saving(dense, row["variants"].get(name)) for name in names)])
    return table(["layer", "input", "dense, ms", *names], lines)


def family_table(content: Mapping[str, Any]) -> str:
    """A line per network: parameters, MACs, milliseconds in PyTorch and ONNX Runtime, with savings over D*."""
    rows = content["family"]
    reference = next((row for row in rows if row["network"] == REFERENCE), rows[0])
    lines = [
        [
            row["network"].replace("*", "\\*"),
            f"{row['params'] / 1e6:.3f}",
            f"{row['macs'] / 1e9:.2f} ({reference['macs'] / row['macs']:.2f}x)",
            _faster(row["torch"], reference["torch"]),
            row["torch"]["format"],
            _faster(row["onnx"], reference["onnx"]),
        ]
        for row in rows
    ]
    head = ["network", "parameters, M", "MACs, G", "PyTorch, ms", "memory format", "ONNX Runtime, ms"]
    return table(head, lines, left=(0, 4))


def _saving(dense: Mapping[str, Any], variant: Mapping[str, Any] | None) -> str:
    if variant is None:
        return NONE
    return f"{_short(dense['macs'] / variant['macs'])}x, {_short(dense['ms'] / variant['ms'])}x"


def _faster(own: Mapping[str, Any] | None, reference: Mapping[str, Any] | None) -> str:
    if own is None or reference is None:
        return NONE
    return f"{_milliseconds(own['ms'])} ({reference['ms'] / own['ms']:.2f}x)"


def _short(ratio: float) -> str:
    """Two digits: 0.34, 1.3, 17."""
    return f"{ratio:.2f}" if ratio < 0.995 else f"{ratio:.1f}".removesuffix(".0") if ratio < 9.95 else f"{ratio:.0f}"


def _milliseconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _typical_spread(content: Mapping[str, Any]) -> float:
    """The median over all cells of the quartiles' distance, halved."""
    cells = [variant for row in content["layers"] for variant in row["variants"].values()]
    cells += [row[runtime] for row in content["family"] for runtime in ("torch", "onnx") if row[runtime]]
    return median_high(cell["spread"] / 2 for cell in cells)
