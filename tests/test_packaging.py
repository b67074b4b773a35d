"""What is around the code agrees with it: versions, workflows, templates, image."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import litheseg

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def test_every_place_has_one_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] == litheseg.__version__
    assert citation["license"] == PROJECT["license"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_job_ends_by_itself_and_may_only_read(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] and all("uses" in step or "run" in step for step in job["steps"])


def test_ci_runs_on_every_python_that_the_package_names() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    named = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if "Python :: 3." in text]
    assert jobs["test"]["strategy"]["matrix"]["python"] == jobs["package"]["strategy"]["matrix"]["python"] == named


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_forms_ask_for_something(name: str) -> None:
    form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text())
    assert form["name"] and form["description"]
    assert any(part.get("validations", {}).get("required") for part in form["body"])


def test_the_site_has_every_page_in_its_navigation() -> None:
    text = re.sub(r"!!python/\S+", "", (ROOT / "mkdocs.yml").read_text())
    listed = set(re.findall(r"[\w/-]+\.md", str(yaml.safe_load(text)["nav"])))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    notebooks = {f"notebooks/{path.stem}.md" for path in (ROOT / "docs/notebooks").glob("*.ipynb")}
    rooms = {
        path.stem for path in (ROOT / "litheseg").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    reference = {f"reference/{room}.md" for room in rooms - {"__init__", "__main__", "cli", "recipes"}}
    assert listed == pages | notebooks | reference | {"index.md", "CONTRIBUTING.md", "CHANGELOG.md"}


def test_the_image_installs_extras_that_exist_and_no_pytorch() -> None:
    [extras] = re.findall(r"^ARG EXTRAS=(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for extra in extras.split(","):
        assert not any(Requirement(text).name.startswith(("torch", "litheseg")) for text in EXTRAS[extra])


def test_the_lock_file_holds_what_development_needs() -> None:
    lock = (Requirement(line) for line in (ROOT / "requirements-dev.lock").read_text().splitlines() if "==" in line)
    pins: dict[str, list[Requirement]] = {}
    for pin in lock:
        pins.setdefault(pin.name, []).append(pin)
    for need in (Requirement(text) for text in [*PROJECT["dependencies"], *EXTRAS["train"], *EXTRAS["dev"]]):
        if need.name != "litheseg":
            found = [str(pin.specifier)[2:] for pin in pins[re.sub(r"[-_.]+", "-", need.name).lower()]]
            assert all(need.specifier.contains(version) for version in found), need
