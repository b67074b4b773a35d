"""The page of the comparison with other libraries' networks, made from `results/peers.json`.

It computes ratios and says whether targets are met; it measures nothing.

Usage:
    >>> peers_tables(json.loads(Path("benchmarks/results/peers.json").read_text()))
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from page_parts import NONE, markdown, origin

__all__ = ["PEERS_TARGETS", "peers_block", "peers_section", "peers_tables"]

PEERS_TARGETS = {"speed": 4.0, "narrow int8": 0.15}
"""At least so many times as fast as the fastest peer of equal or better mIoU; at most this share of LR-ASPP's time."""

_LRASPP = "LR-ASPP"
_TITLES = {
    "scored": "As trained and scored: 360x480 images in, networks at 180x240, 360x480 masks out",
    "full": "Networks at 384x480, nothing resized (mIoU as scored above)",
}
_SHOWN = ("settings", "protocol")


def peers_section(root: Path) -> str:
    """Heading, both tables, what was learnt, in words, and where it comes from; empty without the file."""
    report = _report(root)
    if report is None:
        return ""
    notes = root / "benchmarks/peers.md"
    heading = (
        "## Beside other libraries' networks\n\n"
        f"End to end, batch 1, {report['options']['threads']} CPU threads, {report['clock']}: each network through the "
        "fastest runtime for it, in float32 and in int8. Ours in bold; mIoU on val, as deployed, after the same "
        f"training (protocol `{report['protocol']}`)."
    )
    learnt = notes.read_text().strip() if notes.exists() else ""
    return "\n\n".join(filter(None, [heading, peers_tables(report), learnt, origin(report, _SHOWN)]))


def peers_block(root: Path) -> str:
    """The scored setting, for the README; empty without the file."""
    report = _report(root)
    if report is None:
        return ""
    rows = report["settings"]["scored"]
    scores = dict(_scores(rows))
    text = "Beside other libraries' networks, from a 360x480 image to its mask, on a CPU with "
    text += f"{report['options']['threads']} threads, after the same training (protocol `{report['protocol']}`):"
    return "\n\n".join([text, _table(rows, scores, short=True), _targets(rows, scores)])


def _report(root: Path) -> dict[str, Any] | None:
    path = root / "benchmarks/results/peers.json"
    return json.loads(path.read_text()) if path.exists() else None


def peers_tables(report: Mapping[str, Any]) -> str:
    """Both settings, and the targets."""
    scores = dict(_scores(report["settings"]["scored"]))
    parts = []
    for name, rows in report["settings"].items():
        parts += [f"### {_TITLES[name]}", _table(rows, scores), _targets(rows, scores)]
    return "\n\n".join(parts)


def _scores(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[tuple[str, float, str], float]]:
    """Percent of mIoU by network, width and precision, of those that were trained."""
    for row in rows:
        for way in row["ways"]:
            if way["miou"] is not None:
                yield (row["network"], row["width"], way["precision"]), 100 * way["miou"]


def _ways(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    return ((row, way) for row in rows for way in row["ways"])


def _table(
    rows: Sequence[Mapping[str, Any]], scores: Mapping[tuple[str, float, str], float], short: bool = False
) -> str:
    """Fastest first; in short: trained networks only, the faster precision of each, and less of it."""
    head = ["network", "precision", "runtime", "p50 ms", "mIoU", "params, M", "MACs, G", "p95 ms", "peak MiB"]
    shown = len(head) - 2 * short
    lines = [head[:shown], ["---", "---", "---", *["---:"] * (shown - 3)]]
    told = set()
    for row, way in sorted(_ways(rows), key=lambda pair: pair[1]["p50"]):
        key = row["network"], row["width"]
        score = scores.get((*key, way["precision"]))
        if short and (score is None or key in told):
            continue
        told.add(key)
        name = f"**{row['network']}, width {row['width']:g}**" if row["ours"] else row["network"]
        cost = [f"{row['params'] / 1e6:.2f}", f"{row['macs'] / 1e9:.2f}", f"{way['p95']:.2f}"]
        peak = NONE if way["peak_mib"] is None else f"{way['peak_mib']:.0f}"
        score_text = NONE if score is None else f"{score:.2f}"
        lines.append([name, way["precision"], way["runtime"], f"{way['p50']:.2f}", score_text, *cost, peak][:shown])
    return markdown(lines)


def _targets(rows: Sequence[Mapping[str, Any]], scores: Mapping[tuple[str, float, str], float]) -> str:
    return "Targets:\n\n" + "\n".join(f"- {line}" for line in [_speed(rows, scores), _narrow(rows)])


def _speed(rows: Sequence[Mapping[str, Any]], scores: Mapping[tuple[str, float, str], float]) -> str:
    """Of ours that some peer equals in mIoU: how many times as fast as the fastest such peer; the best, and the last.

    The last is the most accurate one that still has an equal among the peers.
    """
    goal = f"at least {PEERS_TARGETS['speed']:g}x as fast as the fastest peer of equal or better mIoU"
    scored = [
        (way["p50"], scores[key], row, way)
        for row, way in _ways(rows)
        if (key := (row["network"], row["width"], way["precision"])) in scores
    ]
    ratios = []
    for own, miou, row, way in scored:
        rivals = [time for time, other, peer, _ in scored if not peer["ours"] and other >= miou]
        if row["ours"] and rivals:
            name = f"{row['network']}, width {row['width']:g}, {way['precision']}"
            ratio = min(rivals) / own
            ratios.append((ratio, f"{ratio:.1f}x by {name}, mIoU {miou:.2f}", miou))
    if not ratios:
        return f"{goal}: **not comparable** (no peer reached the mIoU of any of ours, or none was trained)"
    best, last = max(ratios), max(ratios, key=lambda entry: entry[2])
    told = "; ".join(dict.fromkeys([best[1], last[1]]))
    return f"{goal}: **{'met' if best[0] >= PEERS_TARGETS['speed'] else 'missed'}** ({told})"


def _narrow(rows: Sequence[Mapping[str, Any]]) -> str:
    limit = PEERS_TARGETS["narrow int8"]
    goal = f"width 0.25 in int8 at most {limit:g} of LR-ASPP's time"
    peer = min((way["p50"] for row, way in _ways(rows) if row["network"].startswith(_LRASPP)), default=None)
    own = [
        way["p50"] for row, way in _ways(rows) if row["ours"] and row["width"] == 0.25 and way["precision"] == "int8"
    ]
    if peer is None or not own:
        return f"{goal}: **open** (not measured)"
    share = min(own) / peer
    return f"{goal}: **{'met' if share <= limit else 'missed'}** ({share:.2f})"
