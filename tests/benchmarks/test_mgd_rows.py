"""The rows of the few-labels table: what each one trains, on which labels, for how long, taught by whom."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import records
import run

from litheseg.training.recipe import Recipe, load_recipe

STUDENTS = {"ddrnet": ("ddrnet", {"base": 16}), "resnet18": ("deeplabv3plus", {"encoder": "resnet18d"})}
STUDENTS |= {"mobilenetv2": ("deeplabv3plus", {"encoder": "mobilenetv2_100"})}
PROBES = ("teacher-deep-all", "teacher-wide-all")  # these alone see all labels


def rows_of(student: str, protocol: str = "camvid-half-few", share: str = "1/16", seed: int = 0) -> dict[str, Any]:
    return {row.id: row for row in run.read_rows("mgd", protocol, student, [seed], [share])}


def recipe_of(row: Any) -> Recipe:
    return load_recipe(row.recipe, row.arguments("somewhere", Path("runs")))


def test_every_row_is_a_valid_recipe_of_equal_length() -> None:
    student, protocol = "mobilenetv2", "camvid"
    lengths, optimizers = set(), set()
    for row in rows_of(student, protocol).values():
        recipe = recipe_of(row)
        assert not any(re.search(r"{[\w.-]+}", part) for part in row.arguments("x", Path("r"))), "a name is unknown"
        labelled = None if row.id in PROBES else "1/16"
        assert (recipe.data.labelled, recipe.data.root, recipe.trainer.seed) == (labelled, "somewhere", 0)
        assert not recipe.trainer.baseline and recipe.trainer.keep == "last"
        lengths.add((recipe.trainer.epochs, recipe.data.steps, recipe.data.batch_size))
        optimizers.add(recipe.optimizer)
        if "teacher" not in row.id or row.id.startswith("mgd"):
            assert (recipe.model.name, recipe.model.args) == STUDENTS[student]
    assert len(lengths) == len(optimizers) == 1
    assert next(iter(optimizers)).name == "adamw"


@pytest.mark.parametrize(("protocol", "batch"), [("camvid-half-few", 4), ("camvid", 16)])
def test_an_epoch_is_one_pass_over_the_images_unlabelled_at_1_16(protocol: str, batch: int) -> None:
    for share in ("1/16", "1/2", "all"):
        for row in rows_of("ddrnet", protocol, share).values():
            arguments = row.arguments("x", Path("r"))
            assert f"--data.batch_size={batch}" in arguments and f"--data.steps={344 // batch}" in arguments


def test_teachers_are_shared_by_students_of_one_pair() -> None:
    first, second, third = (rows_of(student) for student in ("resnet18", "mobilenetv2", "ddrnet"))
    assert first["teacher-deep"].key == second["teacher-deep"].key == "camvid-half-few-resnet-1of16-teacher-deep-seed0"
    assert third["teacher-deep"].key == "camvid-half-few-ddrnet-1of16-teacher-deep-seed0"
    assert first["mgd"].key == "camvid-half-few-resnet18-1of16-mgd-seed0"
    deep = recipe_of(second["teacher-deep"])
    assert (deep.teachers["peer"].kind, deep.model.args) == ("peer", {"encoder": "resnet101s"})
    assert recipe_of(third["teacher-wide"]).model.args == {"base": 40, "blocks": 1}


def test_a_longer_protocol_has_the_teachers_of_the_shorter_one() -> None:
    short, long = (rows_of("ddrnet", protocol) for protocol in ("camvid-half-few", "camvid-half-few-long"))
    assert long["teacher-deep"].key == short["teacher-deep"].key
    assert recipe_of(long["mgd"]).teachers == recipe_of(short["mgd"]).teachers
    assert recipe_of(long["mgd"]).objectives == recipe_of(short["mgd"]).objectives
    assert long["mgd"].key != short["mgd"].key
    assert recipe_of(long["mgd"]).trainer.epochs == 4 * recipe_of(short["mgd"]).trainer.epochs


def test_pretrained_teachers_learn_from_labels_alone_and_gently() -> None:
    rows = rows_of("ddrnet-imagenet")
    assert (rows["mgd"].label, rows["teacher-deep"].label) == ("MGD", "deep teacher (labels alone)")
    assert rows_of("ddrnet")["teacher-deep"].label == "deep teacher (CPS)"
    for name in ("teacher-deep", "teacher-wide"):
        recipe = recipe_of(rows[name])
        assert (recipe.name, recipe.teachers, recipe.data.unlabelled) == ("supervised", {}, None)
        assert recipe.optimizer.lr < recipe_of(rows["mgd"]).optimizer.lr
        assert recipe.model.args["pretrained"] == "auto"
    assert recipe_of(rows["mgd"]).model.args == {"base": 16}, "the student has seen nothing"
    assert recipe_of(rows["teacher-deep-unimatch"]).name == "unimatch"


@pytest.mark.parametrize(("student", "image", "region"), [("resnet18", 0.002, 100), ("mobilenetv2", 0.001, 50)])
def test_mgd_learns_from_the_pair_of_its_labels_and_seed(student: str, image: float, region: float) -> None:
    rows = rows_of(student, share="1/4", seed=2)
    for row in ("mgd", "lithe", "lithe-paper"):
        recipe = recipe_of(rows[row])
        folder = "runs/camvid-half-few-resnet-1of4-teacher"
        assert recipe.teachers["deep"].bundle == f"{folder}-deep-seed2/model.safetensors"
        assert recipe.teachers["wide"].bundle == f"{folder}-wide-seed2/model.safetensors"
        weights = (0.0002, 10) if row == "lithe" else (image, region)
        image_level, region_level = recipe.objectives["image"], recipe.objectives["region"]
        assert (image_level.weight, region_level.weight) == weights
        assert (image_level.teacher, region_level.teacher) == ("deep", "wide")
    other = recipe_of(rows["mgd-unimatch-teachers"]).teachers
    assert other["deep"].bundle == f"{folder}-deep-unimatch-seed2/model.safetensors"


def test_parts_add_up_to_mgd() -> None:
    rows = rows_of("ddrnet")

    def weights(name: str) -> tuple[float, ...]:
        recipe = recipe_of(rows[name])
        pixels = [recipe.objectives[f"pixel-{teacher}"] for teacher in ("deep", "wide")]
        assert pixels[0].loss == pixels[1].loss and pixels[0].streams == pixels[1].streams == ("labelled", "unlabelled")
        levels = [recipe.objectives[level].weight if level in recipe.objectives else 0 for level in ("image", "region")]
        return (pixels[0].weight, pixels[1].weight * (recipe.data.unlabelled is not None), *levels)

    assert weights("pixel-labelled") == (1, 0, 0, 0) and recipe_of(rows["pixel-labelled"]).data.unlabelled is None
    assert weights("pixel-unlabelled") == (1, 1, 0, 0)
    assert weights("image") == (1, 1, 0.002, 0)
    assert weights("mgd") == (1, 1, 0.002, 100)
    assert list(recipe_of(rows["mgd-deep-only"]).teachers) == ["deep"]
    assert list(recipe_of(rows["mgd-wide-only"]).teachers) == ["wide"]


def test_distillers_learn_from_the_deep_teacher_on_all_images() -> None:
    rows = rows_of("ddrnet")
    for name, loss in (("kd", "kl"), ("cwd", "channel-wise"), ("pairwise", "pairwise"), ("intra-class", "intra-class")):
        recipe = recipe_of(rows[name])
        [objective] = [item for item in recipe.objectives.values() if item.teacher]
        assert recipe.data.unlabelled == "rest" and (objective.loss.name, objective.teacher) == (loss, "deep")
        assert objective.streams == ("labelled", "unlabelled") and objective.weight > 0
        bundle = "runs/camvid-half-few-ddrnet-1of16-teacher-deep-seed0/model.safetensors"
        assert recipe.teachers["deep"].bundle == bundle


def test_where_all_is_labelled_only_rows_from_labels_remain() -> None:
    rows = rows_of("ddrnet", share="all")
    assert set(rows) == {"labelled-only", "slimseg", *(f"labelled-only-{width}" for width in (0.75, 0.5, 0.25))}
    data = recipe_of(rows["slimseg"]).data
    assert data.labelled is None and data.unlabelled is None
    assert rows["slimseg"].key == "camvid-half-few-ddrnet-all-slimseg-seed0"


def test_seeds_then_shares_then_rows() -> None:
    rows = run.read_rows("mgd", "camvid", None, [0, 1], ["1/16", "1/2"])
    order = [(row.seed, row.labelled) for row in rows]
    assert list(dict.fromkeys(order)) == [(0, "1/16"), (0, "1/2"), (1, "1/16"), (1, "1/2")]
    assert order == sorted(order, key=lambda pair: (pair[0], pair[1] != "1/16"))
    assert {row.network for row in rows} == {"ddrnet"} and len({row.key for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("camvid", "unet", [0]), r"no student 'unet'; choose from ddrnet, ddrnet-imagenet, resnet18, mobilenetv2"),
        (("camvid", None, [0], ["1/3"]), r"no share '1/3'; choose from 1/16"),
        (("camvid-half", None, [0]), r"no steps for protocol 'camvid-half'; choose from camvid-half-few, camvid-"),
    ],
)
def test_what_the_table_does_not_have_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        run.read_rows("mgd", *arguments)


# --- running them ----------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders of the runs that a stand-in for `train` was asked for."""
    folders: list[str] = []

    def train(recipe: Recipe, folder: Path, *, resume: bool) -> Any:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.csv").write_text("epoch,step,train/labels@1\n0,85,0.5\n")
        (folder / "model.safetensors").touch()
        folders.append(folder.name)
        return SimpleNamespace(bundle=folder / "model.safetensors")

    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(run, "train", train)
    header = SimpleNamespace(metrics={"1": {"miou": 0.5}})
    monkeypatch.setattr(run, "load_bundle", lambda path: SimpleNamespace(header=header))
    return folders


def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> None:
    words = ["run.py", "mgd", "--protocol", "camvid-half-few", "--data", "/data", "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", [*words, *arguments])
    run.main()


def test_a_row_waits_for_its_teachers(trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"1of16-teacher-deep-seed0.*is missing: run that row first"):
        call(monkeypatch, tmp_path, "--only", "kd")
    call(monkeypatch, tmp_path, "--only", "teacher-deep", "kd")
    assert [re.sub(r".*1of16-", "", name) for name in trained] == ["teacher-deep-seed0", "kd-seed0"]


def test_the_line_names_student_share_and_steps(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(monkeypatch, tmp_path, "--student", "mobilenetv2", "--labelled", "1/8", "--only", "teacher-wide", "unimatch")
    lines = [json.loads(line) for line in (tmp_path / "results/mgd.jsonl").read_text().splitlines()]
    assert [(line["network"], line["id"], line["model"], line["labelled"]) for line in lines] == [
        ("resnet", "teacher-wide", "deeplabv3plus", "1/8"),
        ("mobilenetv2", "unimatch", "deeplabv3plus", "1/8"),
    ]
    assert {line["steps"] for line in lines} == {24 * 86}
    assert "--data.labelled=1/8" in lines[1]["command"] and "/data" not in json.dumps(lines)


def test_done_rows_are_only_repeated_when_asked(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for more in ([], [], ["--again"]):
        call(monkeypatch, tmp_path, "--only", "labelled-only", *more)
    assert len(trained) == 2
