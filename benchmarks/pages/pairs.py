"""Which encoder and decoder give most for their time? From pairs_time.jsonl, and the trained rows of pairs.jsonl.

Usage:
    >>> sections = pairs_sections()
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from records import newest, results
from rows import read_protocols

from pages.writer import NONE, Section, details, table

__all__ = ["pairs_sections"]

PROTOCOL = "camvid-half-seq"
_SIZE = "360x480"
Row = Mapping[str, Any]


def pairs_sections() -> list[Section]:
    """What was timed, what was trained, and both together."""
    records = newest(results("pairs_time"))
    if not records:
        return []
    rows = [record["metrics"] for record in records]
    scores = trained(newest(results("pairs")))
    sections = [_joined(rows, scores), Section("Time of every pair", [_TIMES, times_table(rows)])]
    if refused := _refused(rows):
        sections.append(Section("What was left out, and why", [refused]))
    return [*sections, Section("Origin", [_origin(records)])]


_TIMES = (
    f"Milliseconds of CPU time of the network alone at {_SIZE}, image in, logits out, one thread: the median in turns "
    "with the default pair, and in brackets the share of the default pair's median in those turns, which is what to "
    "compare. The faster runtime of each precision counts, o for OpenVINO, r for ONNX Runtime. Weights are random."
)


def trained(records: list[Row]) -> dict[tuple[str, str], tuple[float, list[str]]]:
    """By encoder and decoder: percent of mIoU, the mean over the sequences that every trained pair was scored on."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for record in records:
        if record["protocol"] == PROTOCOL and record["seed"] == 0:
            encoder, decoder = record["label"].split(", ")
            found.setdefault((encoder, decoder), {})[record["fold"]] = 100 * record["metrics"]["1"]["miou"]
    shared = [fold for fold in read_protocols()[PROTOCOL].folds if all(fold in own for own in found.values())]
    return {pair: (mean(own[fold] for fold in shared), shared) for pair, own in found.items()} if shared else {}


def fastest(times: Row, beside: Row, precision: str) -> tuple[float, float, str] | None:
    """Milliseconds, their share of the default pair's, and the runtime."""
    own = {choice: time["cpu_median"] for choice, time in times.items() if choice.endswith(precision)}
    if not own:
        return None
    choice = min(own, key=lambda name: own[name])
    default = min(time["cpu_median"] for name, time in beside.items() if name.endswith(precision))
    return own[choice], own[choice] / default, choice.split()[0]


def times_table(rows: list[Row]) -> str:
    """A line per pair and width."""
    lines = []
    for row in rows:
        for width, found in row["widths"].items():
            cost = [f"{found['params'] / 1e6:.2f}", f"{found['macs'] / 1e9:.2f}"]
            times = [_cell(fastest(found["times"], row["default"], precision)) for precision in ("fp32", "int8")]
            lines.append([row["encoder"], row["decoder"], width, *cost, *times])
    return table(["encoder", "decoder", "width", "params, M", "MACs, G", "fp32", "int8"], lines, left=(0, 1))


def _cell(found: tuple[float, float, str] | None) -> str:
    if found is None:
        return NONE
    return f"{found[0]:.1f} ({found[1]:.2f}) {'o' if found[2] == 'openvino' else 'r'}"


def _joined(rows: list[Row], scores: Mapping[tuple[str, str], tuple[float, list[str]]]) -> Section:
    """The trained pairs at width 1, most mIoU per time of int8 first."""
    heading = "mIoU and time"
    if not scores:
        text = f"Not trained yet: `python benchmarks/run.py pairs --protocol {PROTOCOL} --data data/camvid`."
        return Section(heading, [text])
    lines = []
    for row in rows:
        pair = row["encoder"], row["decoder"]
        if pair in scores:
            miou, times = scores[pair][0], row["widths"]["1"]["times"]
            shares = [
                found[1] if (found := fastest(times, row["default"], name)) else None for name in ("fp32", "int8")
            ]
            lines.append((miou, shares, pair))
    lines.sort(key=lambda line: line[0] / line[1][1] if line[1][1] else 0.0, reverse=True)
    cells = [
        [*pair, f"{miou:.2f}", *(text for share in shares for text in _gain(miou, share))]
        for miou, shares, pair in lines
    ]
    folds = next(iter(scores.values()))[1]
    text = (
        f"mIoU in percent after protocol `{PROTOCOL}` from ImageNet weights, width 1, the mean over the sequences "
        f"left out: {', '.join(folds)}. Times are in units of the default pair's in the same precision."
    )
    head = ["encoder", "decoder", "mIoU", "time, fp32", "mIoU per time", "time, int8", "mIoU per time"]
    return Section(heading, [text, table(head, cells, left=(0, 1))])


def _gain(miou: float, share: float | None) -> tuple[str, str]:
    return (NONE, NONE) if share is None else (f"{share:.2f}", f"{miou / share:.1f}")


def _refused(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        name = f"{row['encoder']}, {row['decoder']}"
        if "one width" in row:
            lines.append(f"- {name}, narrower widths: {row['one width']}")
        for width, found in row["widths"].items():
            lines += [
                f"- {name}, width {width}, {what}: {why.splitlines()[0]}" for what, why in found["refused"].items()
            ]
    return "\n".join(lines)


def _origin(records: list[Row]) -> str:
    lines = []
    for record in records:
        versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        lines.append(
            f"- **{record['key']}**, {record['date']}, load average {record['load_average'][0]}, {record['hardware']}, "
            f"commit {(record['commit'] or '')[:12]}, {versions}\n  `{record['command']}`"
        )
    return details("Where the numbers come from", "\n".join(lines))
