"""Documents keep their word: links lead somewhere, commands parse, Python compiles, sizes are those counted."""

from __future__ import annotations

import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from litheseg.bundle.targets import TARGETS
from litheseg.cli import COMMANDS, read
from litheseg.cost import width_costs
from litheseg.losses import LOSSES
from litheseg.models import build_model
from litheseg.nn import slim
from litheseg.training.recipe import load_recipe, recipe_names, recipe_to_dict
from litheseg.training.teacher import TEACHERS

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PLACEHOLDERS = ("COMMAND", "TABLE", "DATA")


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text()) if language in languages]


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text())


def commands(page: Path) -> list[str]:
    """Every `litheseg ...` in shell blocks and between backticks."""
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`([^`\n]+)`", prose(page)) if page.parent.name != "results" else []
    return [line.strip() for line in [*lines, *inline] if re.match(r"\s*litheseg\s", line)]


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}, which is not there"
        assert not anchor or anchor in anchors(file), f"{page.name}: {path or page.name} has no heading #{anchor}"


def test_commands_parse(page: Path) -> None:
    for command in commands(page):
        words = shlex.split(command.split(" > ")[0], comments=True)[1:]
        if len(words) == 1 and not words[0].startswith("-"):  # a command's name
            assert words[0] in COMMANDS, f"{page.name}: there is no `{command}`"
            continue
        if "..." in words or set(words) & set(PLACEHOLDERS) or "--help" in words or words[0].startswith("--"):
            continue
        call = read(words)
        if words[0] in ("train", "demo"):
            recipe = call.keywords.get("recipe", "slimseg" if words[0] == "train" else "demo")
            load_recipe("supervised" if recipe.endswith(".yaml") else recipe, list(call.args))


def test_python_compiles(page: Path) -> None:
    for index, code in enumerate(blocks(page, "python")):
        compile(code, f"{page.name}, Python block {index + 1}", "exec")


def test_python_imports_exist(page: Path) -> None:
    absent = {target.imported for target in TARGETS.values() if find_spec(target.imported) is None}
    for code in blocks(page, "python"):
        found = re.findall(r"^(?:from|import) (\w+).*$", code, re.MULTILINE)
        lines = [line for line in code.splitlines() if re.match(r"(from|import) ", line)]
        exec("\n".join(line for line, name in zip(lines, found, strict=True) if name not in absent), {})


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)\)", (ROOT / "README.md").read_text()))
    assert linked == {page.name for page in (ROOT / "docs").glob("*.md")}


@pytest.mark.parametrize(("page", "least"), [("training.md", 12), ("few-labels.md", 8)])
def test_every_recipe_field_that_a_page_names_exists(page: str, least: int) -> None:
    sections = r"data|grouping|model|optimizer|trainer|(?:objectives|teachers)\.[\w-]+"
    names = re.findall(rf"(?:`|--)((?:{sections})(?:\.[\w-]+)+)", prose(ROOT / "docs" / page))
    assert len(names) > least
    recipes = [recipe_to_dict(load_recipe(name)) for name in recipe_names()]
    for name in names:
        assert any(has(recipe, name.split(".")) for recipe in recipes), f"{page} names {name}, which no recipe has"


def has(values: Any, path: list[str]) -> bool:
    return not path or (isinstance(values, dict) and path[0] in values and has(values[path[0]], path[1:]))


def test_the_page_on_training_tells_of_every_loss_and_kind_of_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs/training.md").read_text()
    shipped = [name for name, loss in LOSSES.items() if loss.__module__.startswith("litheseg.")]
    assert len(shipped) > 10 and all(f"`{name}`" in text for name in (*shipped, *TEACHERS))
    (tmp_path / "mine.yaml").write_text(blocks(ROOT / "docs/training.md", "yaml")[0])
    assert list(load_recipe(str(tmp_path / "mine.yaml")).teachers) == ["wider", "big"]
    try:
        module = ModuleType("example")
        monkeypatch.setitem(sys.modules, "example", module)
        exec(blocks(ROOT / "docs/training.md", "python")[0], vars(module))
        overrides = ["--objectives.near={loss: squared-error, teacher: wider, margin: 0.1}"]
        assert "near" in load_recipe("slimseg", overrides).objectives
    finally:
        LOSSES.pop("squared-error", None)


def test_the_example_in_elastic_networks_runs() -> None:
    exec(blocks(ROOT / "docs/elastic.md", "python")[0], {})


@pytest.mark.parametrize("name", ["ddrnet", "erfnet"])
def test_sizes_in_the_models_page_are_those_counted(name: str) -> None:
    text = (ROOT / "docs/models.md").read_text()
    model = slim(build_model(name, num_classes=11), (1, 0.75, 0.5, 0.25))
    for row in width_costs(model, size=(360, 480)):
        assert f"| {name} | {row.width:g} | {row.params / 1e6:.3f} | {row.macs / 1e9:.3f} |" in text
