from __future__ import annotations

import html
import re

import pytest

from litheseg.tables import Table, escaped, fenced, filled_table, markdown_table, percent

NASTY = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a & b &lt;",
    "[click](javascript:alert(1))",
    "![pixel](https://example.org/x.png)",
    "`code` *bold* _em_ **x** ~~gone~~",
    "a|b",
    "back\\slash \\<b>",
    "# heading",
    "- item",
    "+ item",
    "1. item",
    "2) item",
    "---",
    "===",
)


def shown(markdown: str) -> str:
    """What a reader sees of one line that holds escapes only (CommonMark 0.31, 2.4 and 2.5)."""
    return html.unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", markdown))


@pytest.mark.parametrize("text", NASTY)
def test_what_is_shown_is_the_text(text: str) -> None:
    result = escaped(text)
    assert shown(result) == text
    assert not re.search(r"<[a-zA-Z/!?]", result)
    assert not re.search(r"(?<!\\)[`*\[\]|~]", result)
    assert not re.match(r"(#{1,6}|[-+]|\d+[.)])(\s|$)|(-+|=+)$", result)


@pytest.mark.parametrize("text", ["side walk", "data_licence: CC-BY-4.0", "0.5", "–", "C# and 3.5 m", "-0.5", "#1"])
def test_plain_texts_stay_as_they_are(text: str) -> None:
    assert escaped(text) == text


def test_markdown_libraries_agree() -> None:
    markdown = pytest.importorskip("markdown_it")
    for text in NASTY:
        page = markdown.MarkdownIt("commonmark").enable("table").render(escaped(text))
        assert page == f"<p>{html.escape(text)}</p>\n".replace("&#x27;", "'")


def test_lines_become_one_and_code_is_never_ended() -> None:
    assert escaped("a\n\n# b") == "a # b"
    assert fenced("x\n`````\ny") == "``````\nx\n`````\ny\n``````"
    assert markdown_table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_columns_that_say_nothing_are_left_out() -> None:
    columns = {"IoU (%)": [percent(0.5), percent(None)], "ECE (%)": [percent(float("nan")), percent("?")]}
    assert filled_table("class", ["road", "car"], columns) == Table(
        ("class", "IoU (%)"), (("road", "50.0"), ("car", "–"))
    )
