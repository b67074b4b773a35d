"""How large images are, how many widths are trained and for how many steps: what minutes and budget allow.

Usage:
    >>> effort = choose_effort(facts, wishes, 2400.0, {4: 1.5, 2: 1.05, 1: 0.75}, {1.0: 30.0}, batch=8)
    >>> effort.size, effort.widths, effort.steps
    ((360, 480), (1.0, 0.5), 1013)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from litheseg.budget.candidates import scaled
from litheseg.budget.found import BudgetError
from litheseg.building.fingerprint import Fingerprint
from litheseg.building.wishes import Wishes
from litheseg.errors import LithesegError

__all__ = ["FIT_SHARE", "PROBE_SCALE", "VALIDATIONS", "Effort", "choose_effort"]

FIT_SHARE = 0.2
"""Of all minutes, those for choosing, exporting and proving."""
PROBE_SCALE = 0.5
"""Of the images' own size: at which a training step is timed."""
VALIDATIONS = 3
"""While a network is trained; there is one more behind it."""

_SCALES = (1.0, 0.75, 0.5, 0.375, 0.25)  # of the images' own size
_SCALES_OF_LARGE = (0.1875, 0.125)  # likewise, where images have more than a megapixel
_MEGAPIXEL = 1_000_000
_CROP_AREA = 240 * 320  # pixels of a training view: more make a step slower than they make it better
_LEAST_SEEN = 0.1  # of an image, in a training view: sizes that show less are not taken unless thin parts need them
_THINNEST, _THIN_STEPS = 3.0, 100  # pixels: sizes that leave thinner parts are not taken, if others allow so many steps
_WANTED = 400  # steps for each width; fewer of them are worse than fewer widths, and then than smaller images
_FEWEST = 20  # steps
_FORWARD = 1 / 3  # of a training step's time: a forward pass


@dataclass(frozen=True)
class Effort:
    """A way to spend the minutes.

    Attributes:
        scale: of the images' own size.
        size: height and width of the images.
        crop: likewise of a training view.
        widths: that are trained.
        step: seconds of a training step.
        steps: for which there is time.
    """

    scale: float
    size: tuple[int, int]
    crop: tuple[int, int]
    widths: tuple[float, ...]
    step: float
    steps: int


def choose_effort(
    facts: Fingerprint,
    wishes: Wishes,
    seconds: float,
    step_seconds: Mapping[int, float],
    times: Mapping[float, float],
    *,
    batch: int,
) -> Effort:
    """The largest images and the most widths that there is time for, and that may be fast enough.

    Args:
        facts: about the data.
        wishes: what is asked for.
        seconds: for training.
        step_seconds: of a step of images at `PROBE_SCALE`, by number of widths.
        times: milliseconds of an image at its own size, by width; needed with a budget only.
        batch: images of a step.

    Raises:
        BudgetError: no network is that fast.
        LithesegError: no time to train one.
    """
    choices = list(_choices(facts, wishes, seconds, step_seconds, batch))
    within = [choice for choice in choices if _fits(choice, times, wishes.budget)]
    if not within:
        width, fastest = min(times.items(), key=lambda item: item[1])
        least = choices[-1]
        raise BudgetError(
            f"no network is as fast as {wishes.budget:g} ms here: the nearest, width {width:g} at "
            f"{least.size[0]}x{least.size[1]}, takes about {fastest * least.scale**2:.1f} ms; give a longer --budget"
        )
    seen = _that_show_enough(within, facts.thinnest.thickness)
    chosen = next((c for c in seen if c.steps >= _WANTED * len(c.widths)), max(seen, key=lambda c: c.steps))
    if chosen.steps < _FEWEST:
        missing = (_FEWEST - chosen.steps) * chosen.step / 60 / (1 - FIT_SHARE)
        raise LithesegError(
            f"{wishes.minutes:g} minutes leave time for {max(0, chosen.steps)} training steps here; give --minutes "
            f"{math.ceil(wishes.minutes + missing)} at least"
        )
    return chosen


def _choices(
    facts: Fingerprint, wishes: Wishes, seconds: float, step_seconds: Mapping[int, float], batch: int
) -> Iterator[Effort]:
    """All sizes with all sets of widths, the largest first."""
    asked = wishes.asked.data
    size = asked.size if "data.size" in wishes.fixed else None
    crop = asked.crop if "data.crop" in wishes.fixed else None
    scales = (*_SCALES, *_SCALES_OF_LARGE) if math.prod(facts.size) > _MEGAPIXEL else _SCALES
    probe = math.prod(scaled(facts.size, PROBE_SCALE))
    for scale in [size[0] / facts.size[0]] if size else scales:
        own = size or scaled(facts.size, scale)
        view = crop or _crop(own)
        for widths in wishes.width_sets:
            step = step_seconds[len(widths)] * math.prod(view) / probe
            image = step / batch * math.prod(own) / math.prod(view) * _FORWARD
            steps = int((seconds - (VALIDATIONS + 1) * facts.val * image) / step)
            yield Effort(scale, own, view, widths, step, steps)


def _crop(size: tuple[int, int]) -> tuple[int, int]:
    area = math.prod(size)
    return size if area <= 1.25 * _CROP_AREA else scaled(size, math.sqrt(_CROP_AREA / area))


def _fits(choice: Effort, times: Mapping[float, float], budget: float | None) -> bool:
    """Whether one of its widths is likely to be fast enough."""
    own = [ms * choice.scale**2 for width, ms in times.items() if width >= min(choice.widths)]
    return budget is None or min(own, default=0.0) <= budget


def _that_show_enough(choices: list[Effort], thinnest: float) -> list[Effort]:
    """Those that leave thin parts visible, and of these those whose training view shows enough of an image."""
    largest = max(choice.scale for choice in choices)
    clear = [c for c in choices if c.scale == largest or thinnest * c.scale >= _THINNEST]
    kept = clear if any(choice.steps >= _THIN_STEPS for choice in clear) else choices
    smallest = min(choice.scale for choice in kept)
    return [c for c in kept if c.scale == smallest or math.prod(c.crop) >= _LEAST_SEEN * math.prod(c.size)]
