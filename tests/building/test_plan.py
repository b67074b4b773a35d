"""A plan follows from the data, the time and the budget; each value has a reason, and can be overruled."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from litheseg.budget.found import BudgetError
from litheseg.building.fingerprint import ClassFacts, Fingerprint
from litheseg.building.plan import Plan, make_plan, read_plan
from litheseg.building.wishes import Wishes, one_word_each
from litheseg.data.sources.folder import FolderSource
from litheseg.errors import LithesegError
from litheseg.training.recipe import load_recipe

FACTS = Fingerprint(
    train=360,
    val=100,
    unlabelled=0,
    measured=180,
    size=(360, 480),
    sizes=1,
    classes=(ClassFacts("road", 0.9, 180, 60.0), ClassFacts("pole", 0.1, 90, 9.0)),
    brightness=0.1,
    sequences={"a": 200, "b": 100, "c": 60},
    holds_out=False,
)
ONE_CORE = {4: 1.5, 2: 1.05, 1: 0.75}  # seconds of a step at half size
FAST = {1.0: 30.0, 0.25: 8.0}  # milliseconds at full size


def planned(
    facts: Fingerprint = FACTS, step: float = 1.0, times: Any = FAST, **wishes: Any
) -> tuple[Plan, dict[str, Any]]:
    asked = Wishes("data/mine", **{"minutes": 60, **wishes})
    seconds = {count: step * value for count, value in ONE_CORE.items()}
    plan = make_plan(facts, asked, lambda _: seconds, lambda *_: times, minutes=asked.minutes)
    return plan, {item.option: item.value for item in plan.decisions}


def test_with_time_images_keep_their_size_and_every_width_is_trained() -> None:
    plan, values = planned(minutes=120)
    assert plan.recipe == "slimseg" and values["data.size"] == [360, 480] and values["widths"] == [1.0, 0.75, 0.5, 0.25]
    height, width = values["data.crop"]
    assert height * width == pytest.approx(240 * 320, rel=0.1) and height / width == pytest.approx(360 / 480, rel=0.05)
    assert values["data.batch_size"] == 8


def test_training_fits_into_its_minutes() -> None:
    _, values = planned(minutes=60)
    steps = values["trainer.epochs"] * (360 // 8)
    crop, half = values["data.crop"], (176, 240)
    assert values["widths"] == [1.0, 0.5]
    assert steps * 1.05 * crop[0] * crop[1] / (half[0] * half[1]) <= 60 * values["trainer.minutes"] < 60 * 60
    assert 60 - values["trainer.minutes"] >= 7  # for choosing, exporting and proving


def test_less_time_means_fewer_widths_then_smaller_images() -> None:
    assert planned(minutes=60)[1]["widths"] == [1.0, 0.5] and planned(minutes=60)[1]["data.size"] == [360, 480]
    _, values = planned(minutes=20)
    assert values["widths"] == [1.0] and values["data.size"] == [360, 480]
    assert values["objectives.kl"] is None and values["teachers.wider"] is None
    assert planned(minutes=6)[1]["data.size"][0] < 360


def test_images_without_an_up_are_also_flipped_upside_down() -> None:
    assert planned(replace(FACTS, upright=False))[1]["data.augment.flip_vertical"] == 0.5
    assert "data.augment.flip_vertical" not in planned()[1]


def test_epochs_are_short_enough_to_be_saved_often() -> None:
    _, values = planned(replace(FACTS, train=80_000), minutes=60)
    assert values["data.steps"] == values["trainer.epochs"] * values["data.steps"] // 10 < 10_000
    assert "data.steps" not in planned()[1]


def test_images_that_do_not_fit_into_memory_are_decoded_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "data.cache" not in planned()[1]
    monkeypatch.setattr("litheseg.building.plan.memory", lambda: 460 * 360 * 480 * 4 / 0.41)
    _, values = planned()
    assert values["data.cache"] == "none" and values["data.workers"] >= 1


def test_too_few_minutes_are_refused_with_the_least() -> None:
    with pytest.raises(
        LithesegError, match=r"0.3 minutes leave time for \d+ training steps here; give --minutes 4 at least"
    ):
        planned(replace(FACTS, train=40_000, val=5000), minutes=0.3)


def test_thin_parts_keep_images_large() -> None:
    def size(thickness: float, minutes: float) -> list[int]:
        facts = replace(FACTS, classes=(FACTS.classes[0], ClassFacts("wire", 0.01, 50, thickness)))
        return list(planned(facts, minutes=minutes)[1]["data.size"])

    assert size(9.0, minutes=5) == [136, 176]
    assert size(4.5, minutes=5) in ([272, 360], [360, 480]) and size(2.0, minutes=5) == [360, 480]
    assert size(2.0, minutes=1.5)[0] < 360, "fewer than 100 steps are worse"


def test_a_view_shows_a_tenth_of_an_image_unless_thin_parts_need_more_pixels() -> None:
    def seen(size: tuple[int, int], thickness: float) -> tuple[list[int], float]:
        facts = replace(FACTS, size=size, classes=(FACTS.classes[0], ClassFacts("weed", 0.01, 50, thickness)))
        values = planned(facts, minutes=600)[1]
        return values["data.size"], math.prod(values["data.crop"]) / math.prod(values["data.size"])

    assert seen((720, 960), 30.0)[0] == [720, 960]
    size, share = seen((3000, 4000), 300.0)
    assert size == [752, 1000] and share > 0.1
    size, share = seen((3000, 4000), 7.0)
    assert size == [1504, 2000] and share < 0.1, "3.5 pixels thick then"
    assert seen((3000, 4000), 2.0)[0] == [3000, 4000]
    assert seen((6000, 8000), 300.0)[0] == [752, 1000]


def test_a_budget_that_only_a_narrow_width_meets_is_trained_for() -> None:
    _, values = planned(budget=10.0, minutes=120)
    assert min(values["widths"]) == 0.25 and values["data.size"] == [360, 480]
    _, values = planned(budget=3.0)
    assert values["data.size"] == [176, 240], "8 ms x 1/4"


def test_a_budget_that_nothing_meets_names_the_nearest() -> None:
    with pytest.raises(
        BudgetError, match=r"no network is as fast as 0.2 ms here: the nearest, width 0.25 at 88x120.* 0.5"
    ):
        planned(budget=0.2)


def test_what_the_data_decides() -> None:
    _, values = planned(replace(FACTS, brightness=0.4, holds_out=True), classes="mine.yaml")
    assert values["data.augment.brightness"] == 0.5
    assert values["data.options"] == {"classes": "mine.yaml", "hold_out": "sequences"}
    assert "data.options" not in planned()[1] and "data.augment.brightness" not in planned()[1]
    assert planned(replace(FACTS, train=12, sequences={}))[1]["data.batch_size"] == 2


def held(**facts: Any) -> Any:
    plan, values = planned(replace(FACTS, holds_out=True, **facts))
    reason = next((item.because for item in plan.decisions if item.option == "data.options"), "")
    assert not reason or reason.startswith("the data has no val split: ")
    return values.get("data.options")


def test_numbered_images_are_a_video_only_if_they_are_alike() -> None:
    numbered = {"IMG": 300, "": 60}
    assert held(sequences=numbered) is None
    assert held(sequences=numbered, clips=("IMG",)) == {"hold_out": "last"}
    assert held(sequences=numbered, groups=(("a", "b", "c"), ("d", "e"))) == {"hold_out": "groups"}
    assert held(sequences=numbered, groups=(tuple(map(str, range(440))),)) == {"hold_out": "last"}, (
        "one video of near duplicates"
    )
    assert held(sequences={str(i): 1 for i in range(360)}) is None


def test_of_few_images_few_are_held_out() -> None:
    few: dict[str, Any] = {"train": 19, "val": 5}
    assert held(**few, sequences={"": 19}) == {"val_fraction": 0.15}
    assert held(**few, sequences={"": 19}, clips=("",)) == {"hold_out": "last", "val_fraction": 0.15}
    assert held(**few, sequences={"a": 7, "b": 6, "c": 6}) == {"val_fraction": 0.15}, "one would be a third"
    assert held(**few, sequences={"a": 8, "b": 8, "c": 3})["hold_out"] == "sequences"


def test_each_class_is_on_both_sides_and_in_what_each_fold_is_trained_on(tmp_path: Path) -> None:
    """Of 14 images two show the pole: which, the names say, and for some names chance would hold out both or none."""
    asked = set()
    for first in range(1, 13):
        shown = {f"photo{index}": (0, 1) if index in (0, first) else (0,) for index in range(14)}
        options = held(train=12, val=2, sequences={"photo": 14}, shown=shown)
        source = folder(tmp_path / str(first), shown, **options)
        sides = [{sample.id for sample in source.samples(split)} for split in ("train", "val")]
        assert all(any(1 in shown[name] for name in side) for side in sides)
        for fold in source.folds(list(shown), 3):
            assert {"photo0", f"photo{first}"} - fold
        asked.add("seed" in options)
    assert asked == {True, False}, "no seed where it is not needed"


def folder(path: Path, names: Iterable[str], **options: Any) -> FolderSource:
    for kind in ("images", "masks"):
        (path / kind).mkdir(parents=True)
        for name in names:
            (path / kind / f"{name}.png").touch()
    return FolderSource(path, classes=["road", "pole"], **options)


def test_unlabelled_images_teach_where_there_is_time() -> None:
    many = replace(FACTS, unlabelled=2000)
    plan, values = planned(many, minutes=600, unlabelled="photos")
    assert plan.recipe == "lithe" and values["data.unlabelled"] == "photos"
    plan, values = planned(many, minutes=30, unlabelled="photos")
    assert plan.recipe == "slimseg" and "data.unlabelled" not in values and "120 minutes" in plan.because


@pytest.mark.parametrize("minutes", [4, 20, 600])
def test_a_plan_is_a_recipe_and_can_be_edited(minutes: int) -> None:
    plan, _ = planned(minutes=minutes)
    recipe = load_recipe(plan.recipe, plan.overrides)
    assert recipe.data.root == "data/mine"
    assert read_plan(plan.text()) == plan
    edited = read_plan(plan.text().replace("data.batch_size: 8", "data.batch_size: 4"))
    assert load_recipe(edited.recipe, edited.overrides).data.batch_size == 4
    assert all(item.because for item in plan.decisions)


@pytest.mark.parametrize(
    ("option", "kept"),
    [
        ("--objectives.kl.weight=3", {"model.args", "grouping.shape", "objectives.labels.class_weights"}),
        ("--objectives.labels.class_weights=none", {"model.args", "grouping.shape"}),
        ("--model.name=ddrnet", {"objectives.labels.class_weights"}),
        ("--grouping.shape=linear", {"model.args", "objectives.labels.class_weights"}),
    ],
)
def test_the_plan_says_what_the_network_is_but_for_what_is_overruled(option: str, kept: set[str]) -> None:
    _, values = planned(overrides=(option,))
    assert {"model.args", "grouping.shape", "objectives.labels.class_weights"} & set(values) == kept


def test_options_may_be_two_words() -> None:
    words = ["--data.size", "[180,240]", "--widths=[1,.5]", "--trainer.epochs", "3"]
    assert one_word_each(words) == ("--data.size=[180,240]", "--widths=[1,.5]", "--trainer.epochs=3")
    _, values = planned(overrides=one_word_each(words))
    assert "data.size" not in values and "widths" not in values and "trainer.epochs" not in values


def test_other_minutes_mean_other_epochs() -> None:
    plan, values = planned(minutes=60)
    longer = load_recipe(plan.recipe, plan.within(120)).trainer
    assert longer.minutes == pytest.approx(values["trainer.minutes"] + 60)
    assert longer.epochs == round(values["trainer.epochs"] * longer.minutes / values["trainer.minutes"])
    assert load_recipe(plan.recipe, plan.within(4)).trainer.minutes == 2
    same = load_recipe(plan.recipe, plan.within(60))
    assert same == load_recipe(plan.recipe, plan.overrides)


def test_a_file_that_is_no_plan_is_refused() -> None:
    for text in ("", "recipe: slimseg", "- 1", "a: [", "recipe: a\ndecisions: 3"):
        with pytest.raises(LithesegError, match="no plan of a build"):
            read_plan(text)


def test_steps_are_of_the_images_that_are_trained_on() -> None:
    few = replace(FACTS, train=19, val=5, sequences={"": 24}, holds_out=True)
    plan, values = planned(few, minutes=10, step=0.1, folds=0)
    steps = next(item.because for item in plan.decisions if item.option == "trainer.epochs")
    assert int(steps.split()[0]) == values["trainer.epochs"] * (20 // values["data.batch_size"]), "24 less 15 %"
