from __future__ import annotations

import base64
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from litheseg.errors import LithesegError
from litheseg.masks.classes import Classes
from litheseg.report.card import Bullets, Code, Section, Table
from litheseg.report.html import Page, ReportFigure, render, write_page

EVIL = "<script>alert('x')</script>&\""
CLASSES = Classes(names=("road", EVIL), colors=((200, 0, 0), (0, 0, 100)))
VOID = {"meta", "img", "br", "link"}


class ParsedPage(HTMLParser):
    """Tags with their attributes, the visible text, and whether the tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (3, 2), (1, 2, 3)).save(tmp_path / "figure.png")
    return tmp_path / "figure.png"


@pytest.fixture
def report(image: Path) -> Page:
    figure = ReportFigure(image, caption=EVIL, alt=EVIL, heading=EVIL)
    return Page(
        title=EVIL,
        lead=EVIL,
        table=Table(("width", EVIL), (("1", EVIL),)),
        figures=(figure, figure, ReportFigure(image, "plain", heading="Gallery")),
        class_iou={EVIL: (0.0, 1.0), "width 0.5": (0.5, math.nan)},
        classes=CLASSES,
        card=(Section(EVIL, (EVIL, Bullets((EVIL,)), Code(EVIL))),),
        command=EVIL,
    )


def test_everything_is_escaped_and_nothing_is_lost(report: Page) -> None:
    text = render(report)
    page = ParsedPage(text)
    assert "<script" not in text
    # title, h1, lead, two table cells, link, heading, 2 captions, class, label, 3 in the card and its heading, command
    assert page.text.count(EVIL) == 16
    assert page.all("img")[0]["alt"] == EVIL


def test_the_page_needs_nothing_from_outside(report: Page, image: Path) -> None:
    text = render(report)
    page = ParsedPage(text)
    assert not re.search(r"https?:|url\(|@import", text)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in page.all("meta"))
    head, data = str(page.all("img")[0]["src"]).split(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == image.read_bytes()


def test_the_page_is_accessible(report: Page) -> None:
    page = ParsedPage(render(report))
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == len(page.all("main")) == 1
    assert all(image["alt"] for image in page.all("img"))
    assert all(cell["scope"] in ("row", "col") for cell in page.all("th"))
    targets = [str(link["href"]).removeprefix("#") for link in page.all("a")]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert targets == ids and len(set(ids)) == len(ids)
    assert [section["aria-labelledby"] for section in page.all("section")] == ids


def test_figures_with_one_heading_share_a_section(report: Page) -> None:
    page = ParsedPage(render(report))
    # Widths, two kinds of figures, classes, card, command.
    assert len(page.all("section")) == 6 and len(page.all("figure")) == 3


def test_heat_cells_are_legible_and_hold_the_number(report: Page) -> None:
    text = render(report)
    assert '<td style="background:#f7fbff;color:#000000">0.0</td>' in text
    assert '<td style="background:#08306b;color:#ffffff">100.0</td>' in text
    assert "<td>–</td>" in text


def test_warnings_stand_at_the_top_and_are_escaped() -> None:
    page = render(Page("title", lead="lead", warnings=["<pole> is hardly found"], command="make"))
    assert '<p class="warning">&lt;pole&gt; is hardly found</p>' in page
    assert page.index("lead") < page.index("&lt;pole&gt;") < page.index("Make this report again")


def test_empty_parts_are_left_out() -> None:
    page = ParsedPage(render(Page("t", command="litheseg demo")))
    assert len(page.all("section")) == 1 and not page.all("table")
    with pytest.raises(LithesegError, match="empty"):
        render(Page("t", lead="only words"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"figures": (ReportFigure("missing.png", "c"),)}, r"missing\.png: cannot be read"),
        ({"figures": (ReportFigure("figure.pdf", "c"),)}, "convert the figure"),
        ({"class_iou": {"w": (0.1,)}, "classes": CLASSES}, "1 scores for 2 classes"),
        ({"class_iou": {"w": (0.1,)}}, "1 scores for 0 classes"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(LithesegError, match=message):
        write_page(tmp_path / "r.html", Page("t", **changes))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_the_file_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    write_page(tmp_path / "r.html", Page("Straße", command="x"))
    assert "<h1>Straße</h1>" in (tmp_path / "r.html").read_bytes().decode("utf-8")
