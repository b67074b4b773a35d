"""The notebooks of the documentation run from the first cell to the last, with tiny settings in place of theirs."""

from __future__ import annotations

import ast
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_training  # noqa: F401 (it registers the network "tiny")
from test_docs import ROOT, anchors

from litheseg.budget import choose
from litheseg.budget.fit import fit
from litheseg.building import stages, trials

FOLDER = ROOT / "docs" / "notebooks"
TRAINER = {"epochs": 2, "accelerator": "cpu", "threads": 1, "val_every": 1, "loggers": ["csv"]}
FIELDS = {"model": {"name": "tiny"}, "widths": [1, 0.5], "trainer": TRAINER}
SETTINGS: dict[str, dict[str, Any]] = {
    "streets": {"train_images": 8, "val_images": 2, "size": (32, 32), "budget": "1000ms", "fields": FIELDS},
    "own_data": {"drawn": 10, "size": (32, 32), "budget": "1000ms", "fields": FIELDS},
}


@pytest.fixture(params=sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> Path:
    return request.param


def cells(notebook: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == kind]


def run(notebook: Path, settings: dict[str, Any]) -> list[Any]:
    """What the cells show, as Jupyter would: the value of each last line that is an expression.

    As papermill does, settings come after the cell with the tag "parameters".
    """
    names: dict[str, Any] = {}
    shown = []
    for number, cell in enumerate(cells(notebook, "code")):
        body = ast.parse("".join(cell["source"])).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        place = f"{notebook.name}, code cell {number}"
        exec(compile(ast.Module(body, []), place, "exec"), names)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), place, "eval"), names))
        if "parameters" in cell["metadata"].get("tags", ()):
            assert settings.keys() <= names.keys()
            names |= settings
    return shown


def test_the_notebooks_run(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if notebook.stem == "streets":
        pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LITHESEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(choose, "PROOF_MS", 1)
    monkeypatch.setattr(trials, "_RUNTIMES", ("torch",))
    # Exporting takes seconds: one notebook does so in `fit`, the other in a cell of its own.
    runtime = "torch" if notebook.stem == "streets" else "onnxruntime"
    quick = partial(fit, runtime=(runtime,), precision=("fp32",), threads=(1,), sizes=((32, 32),))
    monkeypatch.setattr(stages, "fit", quick)
    monkeypatch.setattr("litheseg.budget.fit.fit", quick)
    shown = run(notebook, SETTINGS[notebook.stem])
    assert sum(bool(value._repr_png_()) for value in shown if hasattr(value, "_repr_png_")) >= 2, "pictures"
    assert sum("<table" in value._repr_html_() for value in shown if hasattr(value, "_repr_html_")) >= 1, "tables"
    assert not any(re.search(r" object at 0x|<litheseg", repr(value)) for value in shown if value is not None)
    assert "ready for training" in capsys.readouterr().out


def test_the_notebooks_are_notebooks(notebook: Path) -> None:
    """What nbformat 4.5 asks for, and no outputs."""
    content = json.loads(notebook.read_text())
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in content["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in ids)
    for cell in content["cells"]:
        own = {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else {}
        assert {name: cell[name] for name in cell.keys() - {"id", "cell_type", "metadata", "source"}} == own


def test_links_of_the_notebooks_resolve(notebook: Path) -> None:
    text = "\n".join("".join(cell["source"]) for cell in cells(notebook, "markdown"))
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) > 3
    for path, _, anchor in (link.partition("#") for link in links):
        assert (FOLDER / path).exists(), f"{notebook.name} links to {path}, which is not there"
        assert not anchor or anchor in anchors(FOLDER / path), f"{path} has no heading #{anchor}"
