"""The dial and the rounding rule, against hand-computed values."""

from __future__ import annotations

import copy

import pytest
import torch

from litheseg.errors import WidthError
from litheseg.nn import ChannelPart, Channels, WidthDial, round_channels
from litheseg.values import check_width


@pytest.mark.parametrize(
    ("channels", "width", "divisor", "kept"),
    [
        (64, 1.0, 8, 64),
        (64, 0.5, 8, 32),
        (64, 0.25, 8, 16),
        (64, 0.3, 8, 16),  # 19.2 is nearer to 16 than to 24
        (64, 0.3125, 8, 24),  # 20 lies in the middle: halves go up
        (64, 0.01, 8, 8),  # never nothing
        (13, 0.5, 8, 8),
        (13, 0.99, 8, 13),  # never more than there is
        (13, 1.0, 8, 13),
        (4, 0.25, 8, 4),
        (100, 0.25, 1, 25),
    ],
)
def test_rounding(channels: int, width: float, divisor: int, kept: int) -> None:
    assert round_channels(channels, width, divisor) == kept


def test_rounding_is_monotone_and_exact_at_one() -> None:
    for channels in range(1, 200):
        counts = [round_channels(channels, width / 50, 8) for width in range(1, 51)]
        assert counts == sorted(counts)
        assert counts[-1] == channels


@pytest.mark.parametrize("width", [0, -0.5, 1.0001, float("nan"), float("inf")])
def test_width_outside_the_range(width: float) -> None:
    with pytest.raises(WidthError, match=r"outside \(0, 1\]"):
        check_width(width)


def test_groups_go_as_a_whole() -> None:
    part = ChannelPart(24, unit=8)
    assert [part.count(width) for width in (1.0, 0.75, 0.5, 0.25, 0.01)] == [24, 16, 16, 8, 8]


def test_parts_keep_their_own_first_channels() -> None:
    channels = Channels((ChannelPart(16), ChannelPart(3, elastic=False), ChannelPart(8)))
    kept = channels.select(torch.arange(27), 0, 0.5).tolist()
    assert kept == [*range(8), 16, 17, 18, *range(19, 27)]
    assert channels.count(0.5) == len(kept) == 19
    weight = torch.rand(4, 27)
    assert torch.equal(channels.select(weight, 1, 0.5), weight[:, kept])


def test_dial_refuses_what_it_has_not() -> None:
    dial = WidthDial((0.25, 1, 0.5))
    assert dial.widths == (1.0, 0.5, 0.25)
    with pytest.raises(WidthError, match=r"0\.6 .*available: 1, 0\.5, 0\.25.*recalibrate"):
        dial.turn(0.6)
    dial.turn(0.5)
    assert dial.width == 0.5
    dial.add(0.6)
    dial.turn(0.6)
    assert dial.width == 0.6
    assert dial.available == (1.0, 0.6, 0.5, 0.25)


def test_dial_needs_a_width() -> None:
    with pytest.raises(WidthError, match="no widths"):
        WidthDial(())


def test_a_copied_model_has_one_dial_of_its_own() -> None:
    dial = WidthDial((1.0, 0.5))
    first, second = copy.deepcopy([dial, dial])
    first.turn(0.5)
    assert (first.width, second.width, dial.width) == (0.5, 0.5, 1.0)
