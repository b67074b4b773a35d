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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from litheseg.budget.candidates import scaled
from litheseg.building.effort import FIT_SHARE, PROBE_SCALE, VALIDATIONS, Effort, choose_effort
from litheseg.building.fingerprint import Fingerprint
from litheseg.building.folds import FoldPlan, plan_folds
from litheseg.building.validation import divided, hold_out
from litheseg.building.wishes import WIDTH_SETS, Wishes
from litheseg.errors import LithesegError
from litheseg.machine import cores, memory
from litheseg.tables import Table

__all__ = ["Plan", "PlannedField", "make_plan", "read_plan"]

_ENOUGH = 20_000  # steps
_OF_MEMORY = 0.4  # of the machine's: what decoded images may take
_EPOCHS = 10  # at least: after each one the run is saved
_FIT_LEAST, _FIT_MOST = 1.0, 10.0  # minutes for choosing, exporting and proving
_FIT_ONE_SIZE = 0.12  # in place of `FIT_SHARE` where no budget asks for smaller images
_OF_FOLDS = ("folds", "folds.epochs", "folds.minutes")  # what a plan says beside a recipe
_DIM = 0.25  # spread of brightness above which augmentation is doubled
_MANY_UNLABELLED = 2.0  # per labelled image, from which on teachers pay
_ENCODER, _DECODER = "efficientnet_lite0", "swiftnet"
_TEACHING_MINUTES = 120.0  # that teachers and their student need together, at least


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
    batch = _batch(facts, wishes)
    decisions.append(batch)
    share = FIT_SHARE if wishes.budget else _FIT_ONE_SIZE
    training = minutes - min(max(_FIT_LEAST, share * wishes.minutes), _FIT_MOST, minutes / 2)
    size = list(scaled(facts.size, PROBE_SCALE))
    probe = [*_options(decisions), f"--data.size={size}", f"--data.crop={size}", *wishes.overrides]
    times = latencies(probe, facts.size) if wishes.budget else {}
    chosen = choose_effort(facts, wishes, 60 * training, step_seconds(probe), times, batch=batch.value)
    count, teachers = len(chosen.widths), recipe != "slimseg"
    folds = plan_folds(facts, wishes.folds, steps=chosen.steps, widths=count, teachers=teachers)
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


def _decided(facts: Fingerprint, wishes: Wishes, chosen: Effort, folds: FoldPlan, minutes: float) -> list[PlannedField]:
    batch, share = _batch(facts, wishes).value, folds.steps / chosen.steps
    whole, steps = max(1, facts.train // batch), min(chosen.steps - folds.count * folds.steps, _ENOUGH)
    epoch = min(whole, max(1, steps // _EPOCHS))
    epochs = steps // epoch
    shrunk = f"{chosen.scale:g} of the images' own {facts.size[0]}x{facts.size[1]}"
    own = "the images' own size" if chosen.scale == 1 else shrunk
    thin = f"{facts.thinnest.name}, the thinnest, is {facts.thinnest.thickness * chosen.scale:.1f} pixels thick then"
    others = f"{folds.count} folds, choosing" if folds.count else "choosing"
    rest = f"of {wishes.minutes:g} minutes; the rest is for {others}, exporting and proving"
    fewer = "every width" if chosen.widths == WIDTH_SETS[0] else "more would leave too few steps"
    decisions = [
        PlannedField("data.size", list(chosen.size), f"{own}; {thin}"),
        PlannedField("data.crop", list(chosen.crop), "of a training view"),
        PlannedField("widths", list(chosen.widths), fewer),
        PlannedField("trainer.minutes", round(minutes * (1 - folds.count * share), 2), rest),
        PlannedField("trainer.epochs", epochs, f"{epochs * epoch} steps of about {chosen.step:.2f} seconds"),
        PlannedField("trainer.val_every", max(1, math.ceil(epochs / VALIDATIONS)), "scores now and then"),
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
