"""What does one network cost on every target, and does it label alike? From targets.jsonl, and web.jsonl for the page.

Usage:
    >>> sections = target_sections()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from records import report, results

from pages.writer import NONE, Section, Target, source, table

__all__ = ["target_sections"]

_ALIKE, _FALL = 0.999, 0.005  # least share of pixels in float; greatest fall of mIoU in int8
_FIRST_MS, _STEP_MS = 3000, 200  # of the page in the browser
_NAMES = {  # title, and its page in docs/targets
    "torch": ("PyTorch (`torch.export`)", ""),
    "onnxruntime": ("ONNX Runtime", ""),
    "openvino": ("OpenVINO", ""),
    "onnxruntime-web": ("ONNX Runtime Web, in Chromium", "web"),
    "ncnn": ("ncnn", "ncnn"),
    "executorch": ("ExecuTorch", "executorch"),
    "coreml": ("Core ML", "coreml"),
    "litert": ("LiteRT", "litert"),
}

Row = Mapping[str, Any]


def target_sections() -> list[Section]:
    """The table of all targets, and the page in the browser; of what was measured."""
    return [*_table_section(), *_browser_section()]


def _table_section() -> list[Section]:
    content = report(results("targets"))
    if not content:
        return []
    rows: list[Row] = content["rows"]
    options, load = content["options"], content["load_average"][0]
    timed = sorted((row for row in rows if "times" in row), key=lambda row: row["times"]["cpu"])
    reference = next((row for row in timed if (row["target"], row["precision"]) == ("onnxruntime", "fp32")), None)
    size, machine = "x".join(map(str, options["size"])), f"{content['hardware']}, load {load:g} at the end"
    words = (
        f"`{options['model']}` at width {options['width']:g}, {size}: {content['clock']}; medians of "
        f"{options['rounds']} ({machine}: other programs lengthen times of the clock, those of the CPU hardly). In "
        "brackets: times ONNX Runtime's in fp32. Pixels unlike PyTorch's, and in int8 mIoU with the class that lost "
        "most, are the certificate's; *alike* is the share of equal labels on the timed pictures."
    )
    head = ["target", "precision", "CPU, ms", "clock, ms", "MB", "pixels unlike", "mIoU (%)", "alike (%)", ""]
    lines = [_line(row, reference) for row in (*timed, *(row for row in rows if "times" not in row))]
    blocks = [words, table(head, lines, left=(0, 1, 8)), source(content)]
    return [Section("Every target in one run", blocks, _judged(rows))]


def _judged(rows: Sequence[Row]) -> list[Target]:
    """What certificates were to reach, of those that there are."""
    certified = {(row["target"], row["precision"]): row["certificate"] for row in rows if "certificate" in row}
    floats = {name: 1 - own["differing"] / own["pixels"] for (name, kind), own in certified.items() if kind == "fp32"}
    falls = {
        name: own["reference_miou"] - own["miou"]
        for (name, kind), own in certified.items()
        if kind == "int8" and own["miou"] is not None
    }
    found = []
    if floats:
        least, text = min(floats.values()), f"at least {_ALIKE:.1%} of the pixels as in PyTorch in float, everywhere"
        found.append(Target(text, least >= _ALIKE, f"{len(floats)} compared; {100 * least:.4f} % at least"))
    if falls:
        most, text = max(falls.values()), f"mIoU in int8 within {100 * _FALL:g} points of PyTorch's, or refused"
        found.append(Target(text, most <= _FALL, f"{len(falls)} compared; {100 * most:.2f} points at most"))
    return found


def _line(row: Row, reference: Row | None) -> list[str]:
    title, page = _NAMES.get(row["target"], (row["target"], ""))
    name = f"[{title}](../targets/{page}.md)" if page else title
    times, found = row.get("times"), row.get("certificate")
    cpu = clock = unlike = miou = NONE
    if times:
        ratio = f" ({times['cpu'] / reference['times']['cpu']:.2f}x)" if reference else ""
        cpu, clock = f"{times['cpu']:.1f}{ratio}", f"{times['p50']:.1f}"
    if found:
        unlike = f"{found['differing']:,} of {found['pixels']:,}"
        miou = NONE if found["miou"] is None else f"{100 * found['miou']:.2f}"
        if row["precision"] == "int8" and found["worst_class"]:
            unlike, worst = f"{found['differing'] / found['pixels']:.2%}", found["worst_class"]
            miou += f" ({worst[0]} {100 * worst[1]:+.1f})"
    size = f"{row['megabytes']:.2f}" if "megabytes" in row else NONE
    alike = f"{100 * row['agreement']:.3f}" if "agreement" in row else NONE
    return [name, row["precision"], cpu, clock, size, unlike, miou, alike, _note(row)]


def _note(row: Row) -> str:
    """Why it was not timed, what ran the certificate where that is another runtime, and what int8 keeps."""
    found, notes = row.get("certificate"), []
    if found and found["runtime"] != row["target"]:
        notes.append(f"certificate: {found['runtime']}")
    if "megabytes" in row and not found:
        notes.append("no certificate in this precision")
    if row.get("kept"):
        notes.append(f"{row['kept']} layer{'s' * (row['kept'] > 1)} in floating point")
    if "missing" in row:
        notes.append(row["missing"].replace("|", "\\|"))
    return "; ".join(notes)


def _browser_section() -> list[Section]:
    content = report(results("web"))
    if not content:
        return []
    first, *steps = content["rows"]
    slowest = max(step["slider_ms"] for step in steps)
    lines = [[f"to width {row['width']:g}", f"{row['slider_ms']:.0f}", f"{row['work_ms']:.0f}"] for row in steps]
    lines.insert(0, ["from opening the page to the first mask", f"{first['slider_ms']:.0f}", NONE])
    targets = [
        Target(f"in the browser, the first mask in {_FIRST_MS / 1e3:g} s", first["slider_ms"] <= _FIRST_MS),
        Target(
            f"in the browser, a step of the slider in {_STEP_MS} ms", slowest <= _STEP_MS, f"{slowest:.0f} ms at most"
        ),
    ]
    head = ["", "clock, ms", "of which network, resize and labels"]
    words = f"Headless Chromium with {content['threads']} threads on {content['hardware']}; {content['clock']}."
    return [Section("The page in the browser", [words, table(head, lines), source(content)], targets)]
