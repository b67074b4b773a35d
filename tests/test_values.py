"""Values as people write them."""

from __future__ import annotations

import pytest

from litheseg.errors import LithesegError
from litheseg.values import (
    parse_bytes,
    parse_counts,
    parse_duration,
    parse_mapping,
    parse_names,
    parse_numbers,
    parse_quantity,
    parse_size,
    parse_sizes,
    parse_width,
    parse_widths,
)


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("20ms", 20), (" 20 ms", 20), ("0.02s", 20), ("50fps", 20), ("15 FPS", 1000 / 15), (".5ms", 0.5), ("800us", 0.8)],
)
def test_budgets(text: str, milliseconds: float) -> None:
    assert parse_duration(text) == pytest.approx(milliseconds)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("20", "has no unit"),
        ("abc ms", "is no time"),
        ("", "is no time"),
        ("0ms", "is no time"),
        ("-5ms", "is no time"),
        ("20 parsecs", "is no time"),
        ("ms", "is no time"),
        ("nanms", "is no time"),
        ("20ms20", "is no time"),
    ],
)
def test_nonsense_budgets(text: str, problem: str) -> None:
    with pytest.raises(LithesegError, match=f"'{text}' {problem}; write a time such as 20ms or a rate"):
        parse_duration(text)


def test_quantities() -> None:
    assert parse_bytes("50MB") == 50e6 and parse_bytes("2 MiB") == 2 * 2**20 and parse_bytes("900b") == 900
    assert parse_quantity("1G") == 1e9 and parse_quantity("2.5e8") == 2.5e8
    for text in ("50", "50M", "many", "0MB"):
        with pytest.raises(LithesegError, match="50MB"):
            parse_bytes(text)
    with pytest.raises(LithesegError, match="a number such as"):
        parse_quantity("1GB")


def test_sizes_and_numbers() -> None:
    assert parse_size("360x480") == parse_size("[360, 480]") == (360, 480)
    assert parse_sizes("180x240,136x184,180x240") == ((180, 240), (136, 184))
    assert parse_numbers("1,.5") == parse_numbers("[1, .5]") == parse_widths("1,0.5") == (1.0, 0.5)
    assert parse_counts("4,1,4") == (4, 1) and parse_names("onnx, openvino") == ("onnx", "openvino")
    assert parse_width(".25") == 0.25 and parse_mapping("{up: bilinear}") == {"up": "bilinear"}


@pytest.mark.parametrize(
    ("parse", "text", "remedy"),
    [
        (parse_size, "12", "such as 360x480"),
        (parse_sizes, "180x240,0x3", "'0x3' is no size"),
        (parse_numbers, "a", "write e.g. 1,.5"),
        (parse_counts, "0,1", "write e.g. 1,2"),
        (parse_widths, "1,2", r"outside \(0, 1\]"),
        (parse_width, "1,.5", "more than one width"),
        (parse_mapping, "[1]", "write e.g. '{up: bilinear}'"),
        (parse_mapping, "{a", "is no mapping"),
    ],
)
def test_what_cannot_be_read_is_named_with_a_remedy(parse: object, text: str, remedy: str) -> None:
    with pytest.raises(LithesegError, match=remedy):
        parse(text)  # type: ignore[operator]
