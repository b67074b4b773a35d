"""One HTML file that holds a whole report: tables, figures, per-class scores, the model card and how to repeat it.

The file is self-contained: images are inlined, there is no script, and a content security policy forbids external
content. It follows the light or dark theme and suits screen readers and print. All text is escaped. Figures are files
that `litheseg.report.plots` wrote.

Usage:
    >>> figure = ReportFigure("frontier.png", caption="Accuracy against cost", alt="mIoU rises from 58 to 68 %")
    >>> page = Page("lithe", table=width_table(rows), figures=(figure,), command="litheseg demo")
    >>> write_page("report.html", page)
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from pathlib import Path

from litheseg.errors import LithesegError
from litheseg.files import write_text
from litheseg.masks.classes import Classes
from litheseg.report.card import Bullets, Code, Section, Table
from litheseg.tables import html_table

__all__ = ["Page", "ReportFigure", "render", "write_page"]

_MIME = {".png": "image/png", ".svg": "image/svg+xml", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
_PALE, _DEEP = (247, 251, 255), (8, 48, 107)

_STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --page: #fff; --quiet: #595959; --line: #d0d0d0; --code: #f4f4f4; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8e8; --page: #17191c; --quiet: #a8a8a8; --line: #444444; --code: #24272b; }
}
body { font: 16px/1.55 system-ui, sans-serif; color: var(--text); background: var(--page); margin: 0; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem; }
h1 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
p, li { max-width: 46rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0; }
a { color: inherit; }
a:focus-visible { outline: 3px solid #0072b2; outline-offset: 2px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--quiet); padding-bottom: .5rem; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child { text-align: left; font-weight: 600; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line); border-radius: 6px; }
figcaption { color: var(--quiet); }
pre { background: var(--code); padding: .9rem; overflow-x: auto; border-radius: 6px; font-size: .875rem; }
.warning { border-left: .3rem solid #d55e00; padding-left: .8rem; font-weight: 600; }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .5em; border: 1px solid var(--quiet); }
@media print { nav { display: none; } pre { white-space: pre-wrap; } figure, table { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class ReportFigure:
    """An image file that is copied into the report.

    Attributes:
        path: .png, .svg or .jpg.
        caption: what it shows, for everybody.
        alt: what the figure shows, for screen readers; empty: the caption.
        heading: of its section; figures in a row with the same heading share one.
    """

    path: str | Path
    caption: str
    alt: str = ""
    heading: str = "Figures"


@dataclass(frozen=True)
class Page:
    """All that a page holds; empty parts are left out.

    Attributes:
        title: of the page.
        lead: one paragraph that says what was done and what came out.
        warnings: what must not be overlooked, below it.
        table: the widths, such as `litheseg.report.card.width_table` makes.
        sections: further tables and texts, each under its own heading.
        figures: in this order.
        class_iou: column label, such as ``"width 0.5"`` -> IoU in [0, 1] of each class; NaN: the class does not occur.
        classes: names and colours of the rows of `class_iou`; needed where that is given.
        card: the model card, such as `litheseg.report.card.card_sections` makes.
        command: the shell command that makes this report again.
    """

    title: str
    lead: str = ""
    warnings: Sequence[str] = ()
    table: Table | None = None
    sections: Sequence[Section] = ()
    figures: Sequence[ReportFigure] = ()
    class_iou: Mapping[str, Sequence[float]] = field(default_factory=dict)
    classes: Classes | None = None
    card: Sequence[Section] = ()
    command: str = ""


def write_page(path: str | Path, page: Page) -> None:
    """Write `render(page)` to a file, whole or not at all.

    Raises:
        LithesegError: as `render`, or the file cannot be written.
    """
    write_text(path, render(page))


def render(page: Page) -> str:
    """The page as text.

    Raises:
        LithesegError: an empty report, a figure that is missing or of another type, or scores that do not fit the
            classes.
    """
    parts: list[tuple[str, str]] = []
    if page.table is not None:
        parts.append(("Widths", _block(page.table)))
    parts += [(section.heading, "\n".join(map(_block, section.blocks))) for section in page.sections]
    for heading, figures in groupby(page.figures, key=lambda figure: figure.heading):
        parts.append((heading, "\n".join(_figure(figure) for figure in figures)))
    if page.class_iou:
        parts.append(("IoU of each class", _heat_table(page.class_iou, page.classes)))
    if page.card:
        parts.append(("Model card", "\n".join(_card_section(section) for section in page.card)))
    if page.command:
        parts.append(("Make this report again", _block(Code(page.command))))
    if not parts:
        raise LithesegError(f"the report '{page.title}' is empty; give it a table, figures, scores or a card")
    warnings = "\n".join(f'<p class="warning">{escape(warning)}</p>' for warning in page.warnings)
    return _page(page.title, f"{_block(page.lead) if page.lead else ''}\n{warnings}", parts)


def _page(title: str, lead: str, parts: Sequence[tuple[str, str]]) -> str:
    links = "\n".join(
        f'<li><a href="#part-{index}">{escape(heading)}</a></li>' for index, (heading, _) in enumerate(parts)
    )
    body = "\n".join(
        f'<section aria-labelledby="part-{index}">\n<h2 id="part-{index}">{escape(heading)}</h2>\n{content}\n</section>'
        for index, (heading, content) in enumerate(parts)
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{lead}
<nav aria-label="Contents"><ul>
{links}
</ul></nav>
{body}
</main>
</body>
</html>
"""


def _figure(figure: ReportFigure) -> str:
    path = Path(figure.path)
    kind = _MIME.get(path.suffix.lower())
    if kind is None:
        raise LithesegError(f"{path}: a report holds {', '.join(_MIME)}; convert the figure to one of these")
    try:
        data = base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as error:
        raise LithesegError(f"{path}: cannot be read ({error.strerror}); draw the figure before the report") from error
    alt, caption = escape(figure.alt or figure.caption), escape(figure.caption)
    return f'<figure><img src="data:{kind};base64,{data}" alt="{alt}"><figcaption>{caption}</figcaption></figure>'


def _heat_table(class_iou: Mapping[str, Sequence[float]], classes: Classes | None) -> str:
    """One row per class, one column per label; each cell has its number, and a stronger shade if better."""
    names = () if classes is None else classes.names
    for label, scores in class_iou.items():
        if len(scores) != len(names):
            raise LithesegError(f"'{label}' has {len(scores)} scores for {len(names)} classes; give `classes` that fit")
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label in ("class", *class_iou))
    rows = []
    for index, (name, color) in enumerate(zip(names, classes.colors if classes else (), strict=True)):
        swatch = f'<span class="swatch" style="background:{_hex(color)}"></span>'
        cells = "".join(_heat_cell(scores[index]) for scores in class_iou.values())
        rows.append(f'<tr><th scope="row">{swatch}{escape(name)}</th>{cells}</tr>')
    caption = "IoU in percent; a deeper blue is better, – marks a class that the labels do not hold."
    body = "\n".join(("<tbody>", *rows, "</tbody>"))
    return _scrolling(f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead>\n{body}</table>")


def _heat_cell(score: float) -> str:
    if not math.isfinite(score):
        return "<td>–</td>"
    share = min(max(score, 0.0), 1.0)
    red, green, blue = (round(pale + share * (deep - pale)) for pale, deep in zip(_PALE, _DEEP, strict=True))
    # Black on light and white on dark: the text keeps a contrast of at least 4.5 to 1 on every shade.
    text = "#000000" if _luminance((red, green, blue)) > 0.18 else "#ffffff"
    return f'<td style="background:{_hex((red, green, blue))};color:{text}">{100 * score:.1f}</td>'


def _luminance(color: tuple[int, int, int]) -> float:
    """Relative luminance in [0, 1] (WCAG 2.1, definition of relative luminance)."""
    linear = [value / 3294.6 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _card_section(section: Section) -> str:
    return "\n".join([f"<h3>{escape(section.heading)}</h3>", *(_block(block) for block in section.blocks)])


def _block(block: str | Bullets | Code | Table) -> str:
    match block:
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
        case Code(text):
            return f'<pre tabindex="0"><code>{escape(text.rstrip())}</code></pre>'
        case Table():
            return _scrolling(html_table(block))
        case str():
            return f"<p>{escape(block)}</p>"


def _scrolling(table: str) -> str:
    """A table that scrolls by itself where the page is narrow."""
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _hex(color: Sequence[int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in color)
