"""How do our widths compare with light networks of other libraries? From peers_time.jsonl: ratios, and the targets.

Usage:
    >>> sections = peers_sections()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from records import report, results

from pages.writer import NONE, Section, Target, source, table

__all__ = ["TARGETS", "headline", "peers_sections", "peers_tables"]

TARGETS = {"speed": 4.0, "narrow int8": 0.15}
"""At least so many times as fast as the fastest peer of equal or better mIoU; at most this share of LR-ASPP's time."""

_LRASPP = "LR-ASPP"
_TITLES = {
    "scored": "As trained and scored: 360x480 images in, networks at 180x240, 360x480 masks out",
    "full": "Networks at 384x480, nothing resized (mIoU as scored above)",
}
Row = Mapping[str, Any]
Key = tuple[str, float, str]  # network, width, precision


def peers_sections() -> list[Section]:
    """A section per setting; none without the file."""
    content = report(results("peers_time"))
    if not content:
        return []
    text = (
        f"End to end, batch 1, {content['options']['threads']} CPU threads, {content['clock']}: each network through "
        "the fastest runtime for it, in float32 and in int8. Ours in bold; mIoU on val, as deployed, after the same "
        f"training (protocol `{content['protocol']}`)."
    )
    scores = dict(_scores(content["scored"]))
    sections = [
        Section(title, [text, _table(content[name], scores)], _targets(content[name], scores))
        for name, title in _TITLES.items()
    ]
    return [*sections, Section("Origin of both tables", [source(content)])]


def headline() -> str:
    """Trained networks in the scored setting, each in its faster precision, fastest first; empty without the file."""
    content = report(results("peers_time"))
    if not content:
        return ""
    return _table(content["scored"], dict(_scores(content["scored"])), short=True)


def peers_tables(settings: Mapping[str, Sequence[Row]]) -> str:
    """The tables and targets of settings, for the console."""
    scores = dict(_scores(settings["scored"]))
    sections = [
        Section(_TITLES[name], [_table(rows, scores)], _targets(rows, scores)) for name, rows in settings.items()
    ]
    return "\n\n".join(map(str, sections))


def _scores(rows: Sequence[Row]) -> Iterator[tuple[Key, float]]:
    """Percent of mIoU, of the networks that were trained."""
    for row, timed in _timed(rows):
        if timed["miou"] is not None:
            yield (row["network"], row["width"], timed["precision"]), 100 * timed["miou"]


def _timed(rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """Every network with the fastest runtime of each precision."""
    return ((row, timed) for row in rows for timed in row["ways"])


def _table(rows: Sequence[Row], scores: Mapping[Key, float], short: bool = False) -> str:
    """Fastest first; in short: trained networks only, the faster precision of each, and fewer columns."""
    head = ["network", "precision", "runtime", "p50 ms", "mIoU", "params, M", "MACs, G", "p95 ms", "peak MiB"]
    shown = len(head) - 2 * short
    lines, seen = [], set()
    for row, timed in sorted(_timed(rows), key=lambda pair: pair[1]["p50"]):
        key = row["network"], row["width"]
        score = scores.get((*key, timed["precision"]))
        if short and (score is None or key in seen):
            continue
        seen.add(key)
        name = f"**{row['network']}, width {row['width']:g}**" if row["ours"] else row["network"]
        cost = [f"{row['params'] / 1e6:.2f}", f"{row['macs'] / 1e9:.2f}", f"{timed['p95']:.2f}"]
        peak = NONE if timed["peak_mib"] is None else f"{timed['peak_mib']:.0f}"
        score_text = NONE if score is None else f"{score:.2f}"
        lines.append(
            [name, timed["precision"], timed["runtime"], f"{timed['p50']:.2f}", score_text, *cost, peak][:shown]
        )
    return table(head[:shown], lines, left=(0, 1, 2))


def _targets(rows: Sequence[Row], scores: Mapping[Key, float]) -> list[Target]:
    return [_speed(rows, scores), _narrow(rows)]


def _speed(rows: Sequence[Row], scores: Mapping[Key, float]) -> Target:
    """Of ours that some peer equals in mIoU: how many times as fast as the fastest such peer.

    Shown are the best, and the most accurate one that still has an equal among the peers.
    """
    text = f"at least {TARGETS['speed']:g}x as fast as the fastest peer of equal or better mIoU"
    scored = [
        (timed["p50"], scores[key], row, timed)
        for row, timed in _timed(rows)
        if (key := (row["network"], row["width"], timed["precision"])) in scores
    ]
    ratios = []
    for own, miou, row, timed in scored:
        rivals = [time for time, other, peer, _ in scored if not peer["ours"] and other >= miou]
        if row["ours"] and rivals:
            name = f"{row['network']}, width {row['width']:g}, {timed['precision']}"
            ratio = min(rivals) / own
            ratios.append((ratio, f"{ratio:.1f}x by {name}, mIoU {miou:.2f}", miou))
    if not ratios:
        return Target(text, None, "no peer reached the mIoU of any of ours, or none was trained")
    best, last = max(ratios), max(ratios, key=lambda entry: entry[2])
    return Target(text, best[0] >= TARGETS["speed"], "; ".join(dict.fromkeys([best[1], last[1]])))


def _narrow(rows: Sequence[Row]) -> Target:
    limit = TARGETS["narrow int8"]
    text = f"width 0.25 in int8 at most {limit:g} of LR-ASPP's time"
    peer = min((timed["p50"] for row, timed in _timed(rows) if row["network"].startswith(_LRASPP)), default=None)
    narrow = [timed for row, timed in _timed(rows) if row["ours"] and row["width"] == 0.25]
    own = min((timed["p50"] for timed in narrow if timed["precision"] == "int8"), default=None)
    if peer is None or own is None:
        return Target(text, None, "not measured")
    return Target(text, own / peer <= limit, f"{own / peer:.2f}")
