"""What users read: hints, lists, and names that strangers chose."""

from __future__ import annotations

import os

import pytest

from litheseg.errors import first_line, listed, printable


@pytest.mark.parametrize(
    "text",
    ["photos/a b.jpg", "caf\u00e9 \u4e2d\u6587 \u0939\u093f\u0928\u094d\u200d\u0926\u0940", "a\u00a0b", "\U0001f600"],
)
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x9b1m", r"\x9b1m"),  # a control sequence in one byte
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("a\u2028b", r"a\u2028b"),
        (os.fsdecode(b"caf\xe9"), r"caf\udce9"),
    ],
)
def test_what_a_terminal_would_obey_becomes_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).isprintable() and printable(text).encode()


def test_lists_are_bounded() -> None:
    assert listed(["a"]) == "a" and listed(list("abcde")) == "a, b, c, d, e"
    assert listed(list("abcdefg"), 2) == "a, b and 5 more"


def test_an_error_without_a_message_is_called_by_its_kind() -> None:
    assert first_line(ValueError("\n no such layer\nat line 3")) == "no such layer"
    assert first_line(RuntimeError()) == "RuntimeError"
