"""The plan of a build: how the network is trained, decided by a few rules from data, machine and wishes.

No rule searches by training. Each decision is a field of a recipe, its value and the reason; whoever knows better
overrules it by the option of that name (`--data.size "[360,480]"`), or edits the file.

Usage:
    >>> plan = make_plan(facts, Wishes("data/mine", budget=20.0, minutes=60), step_seconds, latencies, minutes=58.0)
    >>> plan.overrides
    ['--data.size=[360, 480]', '--data.crop=[224, 320]', ...]
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import yaml

from litheseg.budget.candidates import scaled
from litheseg.budget.found import BudgetError
from litheseg.building.fingerprint import Fingerprint
from litheseg.building.folds import FoldPlan, plan_folds
from litheseg.building.validation import divided, hold_out
from litheseg.errors import LithesegError
from litheseg.machine import cores, memory
from litheseg.tables import Table
from litheseg.training.recipe import Recipe, load_recipe

__all__ = ["Plan", "PlannedField", "Wishes", "make_plan", "one_word_each", "read_plan"]

_WIDTH_SETS = ((1.0, 0.75, 0.5, 0.25), (1.0, 0.5), (1.0,))  # the largest first
_SCALES = (1.0, 0.75, 0.5, 0.375, 0.25)  # of the images' own size
_SCALES_OF_LARGE = (0.1875, 0.125)  # likewise, where images have more than a megapixel
_CROP_AREA = 240 * 320  # pixels of a training view: more make a step slower than they make it better
_MEGAPIXEL = 1_000_000
_LEAST_SEEN = 0.1  # of an image, in a training view: sizes that show less are not taken unless thin parts need them
_WANTED = 400  # steps for each width; fewer of them are worse than fewer widths, and then than smaller images
_FEWEST, _ENOUGH = 20, 20_000  # steps
_OF_MEMORY = 0.4  # of the machine's: what decoded images may take
_EPOCHS = 10  # at least: after each one the run is saved
_THINNEST, _THIN_STEPS = 3.0, 100  # pixels: sizes that leave thinner parts are not taken, if others allow so many steps
_FIT_SHARE, _FIT_LEAST, _FIT_MOST = 0.2, 1.0, 10.0  # of all minutes, for choosing, exporting and proving
_FIT_ONE_SIZE = 0.12  # likewise where no budget asks for smaller images
_VALIDATIONS = 3
_OF_FOLDS = ("folds", "folds.epochs", "folds.minutes")  # what a plan says beside a recipe
_FORWARD = 1 / 3  # of a training step's time: a forward pass
_DIM = 0.25  # spread of brightness above which augmentation is doubled
_MANY_UNLABELLED = 2.0  # per labelled image, from which on teachers pay
_ENCODER, _DECODER = "efficientnet_lite0", "swiftnet"
_TEACHING_MINUTES = 120.0  # that teachers and their student need together, at least


@dataclass(frozen=True)
class Wishes:
    """What somebody asks for.

    Attributes:
        data: folder of labelled images.
        budget: milliseconds of one image, end to end; None for the most accurate network.
        minutes: that everything may take together.
        unlabelled: folder of images without labels; None for none.
        classes: file that says what mask values mean; None for the one in `data`.
        overrides: fields of the recipe that are not left to the plan, as options ``--NAME=VALUE``.
        target: file of timings of another machine; None for this one.
        min_class_iou: least IoU of the worst class, in [0, 1]; None for any.
        folds: of a cross-validation; 0 or 1 for none, None for the plan's choice.
    """

    data: str
    budget: float | None = None
    minutes: float = 60.0
    unlabelled: str | None = None
    classes: str | None = None
    overrides: tuple[str, ...] = ()
    target: str | None = None
    min_class_iou: float | None = None
    folds: int | None = None

    @property
    def fixed(self) -> frozenset[str]:
        """Names of the fields that are overruled."""
        return frozenset(option.removeprefix("--").partition("=")[0] for option in self.overrides)

    def overrules(self, *parts: str) -> bool:
        """Whether a field of one of these parts of the recipe, such as "model.", is overruled."""
        return any(f"{name}.".startswith(parts) for name in self.fixed)

    @cached_property
    def asked(self) -> Recipe:
        """The recipe with these fields.

        Raises:
            RecipeError: a field that does not exist, or a value out of range.
        """
        return load_recipe("slimseg", list(self.overrides))

    @property
    def width_sets(self) -> tuple[tuple[float, ...], ...]:
        """The sets of widths to choose among, the largest first."""
        return (self.asked.widths,) if "widths" in self.fixed else _WIDTH_SETS


@dataclass(frozen=True)
class PlannedField:
    """A field of the recipe, its value, and why."""

    option: str
    value: Any
    because: str


@dataclass(frozen=True)
class Plan:
    """How a network will be trained.

    Attributes:
        recipe: its name.
        because: why that one.
        decisions: all that it does not say itself.
        wished: minutes that were asked for.
    """

    recipe: str
    because: str
    decisions: tuple[PlannedField, ...]
    wished: float

    @property
    def overrides(self) -> list[str]:
        """The decisions as options of `litheseg train`."""
        return _options([item for item in self.decisions if item.option not in _OF_FOLDS])

    @property
    def folds(self) -> tuple[int, list[str]]:
        """How many folds there are, 0 for none, and the options that a fold has instead of the network's.

        Raises:
            LithesegError: a plan was edited to have folds, and does not say how long they are trained.
        """
        values = {item.option: item.value for item in self.decisions}
        try:
            count = int(values.get("folds", 0))
            names = ("epochs", "minutes") if count > 1 else ()
            return count, [f"--trainer.{name}={values[f'folds.{name}']}" for name in names]
        except (KeyError, TypeError, ValueError) as error:
            raise LithesegError(
                f"folds is {values['folds']}, and {error} is not said; add folds.epochs and folds.minutes, or ask for "
                "folds before training begins, by --folds"
            ) from error

    def within(self, minutes: float) -> list[str]:
        """The options for other minutes than those that were asked for: more or fewer epochs, and all else as it is."""
        values = {item.option: item.value for item in self.decisions}
        before = values.get("trainer.minutes", self.wished)
        now = max(before + minutes - self.wished, minutes / 2)
        epochs = {"trainer.epochs": max(1, round(values.get("trainer.epochs", 1) * now / before))}
        changes = {"trainer.minutes": round(now, 2), **(epochs if "trainer.epochs" in values else {})}
        return [*self.overrides, *(f"--{name}={value}" for name, value in changes.items())]

    def table(self) -> Table:
        """For people."""
        rows = [(item.option, _written(item.value), item.because) for item in self.decisions]
        return Table(("field", "value", "why"), (("recipe", self.recipe, self.because), *rows))

    def text(self) -> str:
        """As a YAML file that may be edited."""
        lines = [
            "# The plan of `litheseg build`. To overrule a line, give the option of its name, as in",
            '# litheseg build ... --data.size "[360,480]"; or, before training begins, edit its value here.',
            f"minutes: {self.wished:g}  # as asked for",
            f"recipe: {self.recipe}  # {self.because}",
            "decisions:",
        ]
        for item in self.decisions:
            lines.append(f"  {item.option}: {json.dumps(item.value)}  # {item.because}")
        return "\n".join(lines) + "\n"


def one_word_each(options: Sequence[str]) -> tuple[str, ...]:
    """Options as ``--NAME=VALUE`` that were written so or as two words."""
    words, result = iter(options), []
    for word in words:
        result.append(word if "=" in word else f"{word}={next(words, '')}")
    return tuple(result)


def read_plan(text: str) -> Plan:
    """The plan that a file holds.

    Raises:
        LithesegError: it holds none.
    """
    try:
        content = yaml.safe_load(text)
        reasons = {line.split(":")[0].strip(): line.partition("  # ")[2] for line in text.splitlines()}
        decisions = content["decisions"].items()
        return Plan(
            str(content["recipe"]),
            reasons["recipe"],
            tuple(PlannedField(option, value, reasons.get(option, "")) for option, value in decisions),
            float(content["minutes"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise LithesegError(f"it is no plan of a build ({error!r}); remove it to have a new one made") from error


def make_plan(
    facts: Fingerprint,
    wishes: Wishes,
    step_seconds: Callable[[list[str]], Mapping[int, float]],
    latencies: Callable[[list[str], tuple[int, int]], Mapping[float, float]],
    *,
    minutes: float,
) -> Plan:
    """Decide.

    Args:
        facts: about the data.
        wishes: what is asked for.
        step_seconds: options -> seconds of a training step, by number of widths, as `trials.step_seconds`.
        latencies: (options, size) -> milliseconds by width, as `trials.latencies`.
        minutes: that are left.

    Raises:
        BudgetError: no network is that fast.
    """
    facts = divided(facts)
    recipe, because = _recipe(facts, wishes)
    decisions = [*_data(facts, wishes, recipe), *_network(facts, wishes), *_augmentation(facts)]
    decisions.append(_batch(facts, wishes))
    share = _FIT_SHARE if wishes.budget else _FIT_ONE_SIZE
    training = minutes - min(max(_FIT_LEAST, share * wishes.minutes), _FIT_MOST, minutes / 2)
    probe = [*_options(decisions), *(f"--data.{name}={list(scaled(facts.size, 0.5))}" for name in ("size", "crop"))]
    seconds = step_seconds([*probe, *wishes.overrides])
    times = latencies([*probe, *wishes.overrides], facts.size) if wishes.budget else {}
    chosen, folds = _effort(facts, wishes, 60 * training, seconds, times, teachers=recipe != "slimseg")
    effort = _decided(facts, wishes, chosen, folds, training)
    return Plan(recipe, because, (*decisions, *effort), wishes.minutes)


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _options(decisions: Sequence[PlannedField]) -> list[str]:
    return [f"--{item.option}={_written(item.value)}" for item in decisions]


def _recipe(facts: Fingerprint, wishes: Wishes) -> tuple[str, str]:
    if facts.unlabelled < _MANY_UNLABELLED * facts.train:
        return (
            "slimseg",
            f"all widths in one network; {facts.unlabelled} images without labels are too few for teachers",
        )
    if wishes.minutes < _TEACHING_MINUTES:
        reason = f"teachers for the {facts.unlabelled} images without labels need {_TEACHING_MINUTES:g} minutes"
        return "slimseg", f"all widths in one network; {reason}"
    return (
        "lithe",
        f"{facts.unlabelled} images without labels beside {facts.train} labelled ones: two teachers label them",
    )


def _data(facts: Fingerprint, wishes: Wishes, recipe: str) -> list[PlannedField]:
    decisions = [PlannedField("data.root", wishes.data, "as asked for")]
    options, reasons = ({"classes": wishes.classes}, ["classes as asked for"]) if wishes.classes else ({}, [])
    if facts.holds_out:
        held, reason = hold_out(facts)
        options |= held
        reasons.append(f"the data has no val split: {reason}")
    if options:
        decisions.append(PlannedField("data.options", options, "; ".join(reasons)))
    if wishes.unlabelled and recipe == "lithe":
        decisions.append(PlannedField("data.unlabelled", wishes.unlabelled, "as asked for"))
    return decisions


def _network(facts: Fingerprint, wishes: Wishes) -> list[PlannedField]:
    """What the defaults are, and why, where nobody overrules them."""
    network, rarest = {"encoder": _ENCODER, "decoder": _DECODER}, facts.rarest
    # Of another network and other objectives it says nothing: it does not know what their fields mean.
    decisions = []
    if not wishes.overrules("model."):
        decisions.append(PlannedField("model.args", network, "from ImageNet; light and fast on a CPU"))
    if not wishes.overrules("model.", "grouping."):
        reason = f"the 3x3 convolutions of {_ENCODER} and {_DECODER} are depthwise"
        decisions.append(PlannedField("grouping.shape", "none", reason))
    if "objectives" not in wishes.fixed and not wishes.overrules("objectives.labels."):
        reason = f"{rarest.name} has {rarest.share:.2%} of the pixels: rare classes count more"
        decisions.append(PlannedField("objectives.labels.class_weights", "log", reason))
    return decisions


def _augmentation(facts: Fingerprint) -> list[PlannedField]:
    decisions = []
    if facts.brightness > _DIM:
        reason = f"images differ in brightness by {facts.brightness:.0%} (standard deviation over mean)"
        decisions.append(PlannedField("data.augment.brightness", 0.5, reason))
    if not facts.upright:
        reason = "upper and lower halves are alike: the images have no up"
        decisions.append(PlannedField("data.augment.flip_vertical", 0.5, reason))
    return decisions


def _batch(facts: Fingerprint, wishes: Wishes) -> PlannedField:
    if "data.batch_size" in wishes.fixed:
        return PlannedField("data.batch_size", wishes.asked.data.batch_size, "as asked for")
    most = max(1, facts.train // 4)
    size = min(8, 2 ** int(math.log2(most)))
    return PlannedField(
        "data.batch_size", size, "small enough for many steps" if size == 8 else f"{facts.train} images"
    )


@dataclass(frozen=True)
class _Effort:
    """What may be chosen: how large images are, and how many widths are trained."""

    scale: float
    size: tuple[int, int]
    crop: tuple[int, int]
    widths: tuple[float, ...]
    step: float
    steps: int


def _effort(
    facts: Fingerprint,
    wishes: Wishes,
    seconds: float,
    step_seconds: Mapping[int, float],
    times: Mapping[float, float],
    *,
    teachers: bool,
) -> tuple[_Effort, FoldPlan]:
    """Size, crop, widths and steps: what the time allows, folds included."""
    batch = _batch(facts, wishes).value
    probe = math.prod(scaled(facts.size, 0.5))
    choices: list[_Effort] = []
    for scale, size, crop in _sizes(facts, wishes):
        for widths in wishes.width_sets:
            step = step_seconds[len(widths)] * math.prod(crop) / probe
            image = step / batch * math.prod(size) / math.prod(crop) * _FORWARD
            steps = int((seconds - (_VALIDATIONS + 1) * facts.val * image) / step)
            choices.append(_Effort(scale, size, crop, widths, step, steps))
    within = [choice for choice in choices if _fits(choice, times, wishes.budget)]
    largest = max((choice.scale for choice in within), default=0.0)
    clear = [c for c in within if c.scale == largest or facts.thinnest.thickness * c.scale >= _THINNEST]
    within = clear if any(choice.steps >= _THIN_STEPS for choice in clear) else within
    smallest = min((choice.scale for choice in within), default=0.0)
    within = [c for c in within if c.scale == smallest or math.prod(c.crop) >= _LEAST_SEEN * math.prod(c.size)]
    if not within:
        width, fastest = min(times.items(), key=lambda item: item[1])
        scale = _scales(facts)[-1]
        least = fastest * scale**2
        raise BudgetError(
            f"no network is as fast as {wishes.budget:g} ms here: the nearest, width {width:g} at "
            f"{_by(scaled(facts.size, scale))}, takes about {least:.1f} ms; give a longer --budget"
        )
    chosen = next((c for c in within if c.steps >= _WANTED * len(c.widths)), max(within, key=lambda c: c.steps))
    if chosen.steps < _FEWEST:
        missing = (_FEWEST - chosen.steps) * chosen.step / 60 / (1 - _FIT_SHARE)
        raise LithesegError(
            f"{wishes.minutes:g} minutes leave time for {max(0, chosen.steps)} training steps here; give --minutes "
            f"{math.ceil(wishes.minutes + missing)} at least"
        )
    folds = plan_folds(facts, wishes.folds, steps=chosen.steps, widths=len(chosen.widths), teachers=teachers)
    return chosen, folds


def _sizes(facts: Fingerprint, wishes: Wishes) -> Iterator[tuple[float, tuple[int, int], tuple[int, int]]]:
    """Scale, size and crop of the images, the largest first."""
    asked = wishes.asked.data
    fixed = asked.size if "data.size" in wishes.fixed else None
    for scale in [fixed[0] / facts.size[0]] if fixed else _scales(facts):
        size = fixed or scaled(facts.size, scale)
        yield scale, size, (asked.crop if "data.crop" in wishes.fixed else None) or _crop(size)


def _scales(facts: Fingerprint) -> tuple[float, ...]:
    return (*_SCALES, *_SCALES_OF_LARGE) if math.prod(facts.size) > _MEGAPIXEL else _SCALES


def _fits(choice: _Effort, times: Mapping[float, float], budget: float | None) -> bool:
    """Whether one of its widths is likely to be fast enough."""
    known = {width: ms * choice.scale**2 for width, ms in times.items()}
    narrowest = min(choice.widths)
    return budget is None or min((ms for width, ms in known.items() if width >= narrowest), default=0.0) <= budget


def _decided(
    facts: Fingerprint, wishes: Wishes, chosen: _Effort, folds: FoldPlan, minutes: float
) -> list[PlannedField]:
    batch, share = _batch(facts, wishes).value, folds.steps / chosen.steps
    whole, steps = max(1, facts.train // batch), min(chosen.steps - folds.count * folds.steps, _ENOUGH)
    epoch = min(whole, max(1, steps // _EPOCHS))
    epochs = steps // epoch
    own = "the images' own size" if chosen.scale == 1 else f"{chosen.scale:g} of the images' own {_by(facts.size)}"
    thin = f"{facts.thinnest.name}, the thinnest, is {facts.thinnest.thickness * chosen.scale:.1f} pixels thick then"
    others = f"{folds.count} folds, choosing" if folds.count else "choosing"
    rest = f"of {wishes.minutes:g} minutes; the rest is for {others}, exporting and proving"
    fewer = "every width" if chosen.widths == _WIDTH_SETS[0] else "more would leave too few steps"
    decisions = [
        PlannedField("data.size", list(chosen.size), f"{own}; {thin}"),
        PlannedField("data.crop", list(chosen.crop), "of a training view"),
        PlannedField("widths", list(chosen.widths), fewer),
        PlannedField("trainer.minutes", round(minutes * (1 - folds.count * share), 2), rest),
        PlannedField("trainer.epochs", epochs, f"{epochs * epoch} steps of about {chosen.step:.2f} seconds"),
        PlannedField("trainer.val_every", max(1, math.ceil(epochs / _VALIDATIONS)), "scores now and then"),
    ]
    pixel = 1 + facts.channels * np.dtype(facts.dtype).itemsize  # of mask and image
    bytes_needed = (facts.train + facts.val + facts.unlabelled) * math.prod(chosen.size) * pixel
    if bytes_needed > _OF_MEMORY * memory():
        reason = f"decoded, all images would take {bytes_needed / 1e9:.0f} GB"
        decisions += [PlannedField("data.cache", "none", reason), PlannedField("data.workers", cores(), "one a core")]
    if epoch < whole:
        decisions.append(PlannedField("data.steps", epoch, f"of an epoch: a pass over all images has {whole}"))
    if len(chosen.widths) == 1:
        decisions.append(PlannedField("teachers.wider", None, "there is no wider width"))
        decisions.append(PlannedField("objectives.kl", None, "likewise"))
    decisions.append(PlannedField("folds", folds.count, folds.because))
    if folds.count:
        fewer_images = max(1, facts.labelled * (folds.count - 1) // folds.count // batch)
        passes = max(1, round(folds.steps / (epoch if epoch < whole else fewer_images)))
        decisions.append(PlannedField("folds.epochs", passes, f"{folds.steps} steps of each fold"))
        decisions.append(PlannedField("folds.minutes", round(minutes * share, 2), "of each fold"))
    return [item for item in decisions if item.option not in wishes.fixed]


def _crop(size: tuple[int, int]) -> tuple[int, int]:
    area = math.prod(size)
    if area <= 1.25 * _CROP_AREA:
        return size
    return scaled(size, math.sqrt(_CROP_AREA / area))


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
