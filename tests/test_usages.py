"""Usages in module docstrings and in docs are not stale: what they call exists and takes these arguments."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_architecture import MODULES, dotted, tree
from test_docs import blocks

ROOT = Path(__file__).parents[1]
OURS = [path for path in MODULES if path.name != "__main__.py" and "cli" not in path.parts]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
STAND_INS = {"Trainer", "model", "module", "narrow", "wide", "write_into"}
"""What a reader takes for a network or function of their own, or Lightning's trainer."""


def prompts(text: str) -> str:
    """The statements behind ``>>>`` and ``...``."""
    lines = (re.match(r"\s*(?:>>>|\.\.\.) ?(.*)", line) for line in text.splitlines())
    return "\n".join(line[1] for line in lines if line)


def public_names() -> dict[str, Any]:
    """Everything that a module of the package declares; what two modules call the same is left out."""
    found: dict[str, list[Any]] = {}
    for path in OURS:
        module = importlib.import_module(dotted(path))
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if all(value is not other for other in found.setdefault(name, [])):
                found[name].append(value)
    return {name: values[0] for name, values in found.items() if len(values) == 1}


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    return public_names()


def called(node: ast.expr, names: dict[str, Any]) -> Any:
    """What is called: a function or class of ours (also by way of its module), or None."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = called(node.value, names)
        return getattr(owner, node.attr, None) if inspect.ismodule(owner) or inspect.isclass(owner) else None
    return None


def faults(code: str, names: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the calls in a piece of code."""
    parsed = ast.parse(code)
    names = dict(names)
    for node in ast.walk(parsed):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("litheseg"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                value = getattr(module, alias.name, None) or importlib.import_module(f"{node.module}.{alias.name}")
                names[alias.asname or alias.name] = value
        elif isinstance(node, ast.Import):
            names |= {
                (alias.asname or alias.name.partition(".")[0]): importlib.import_module(
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                for alias in node.names
                if alias.name.startswith("litheseg")
            }
    bound = {*STAND_INS, *vars(builtins)}
    for node in ast.walk(parsed):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            bound.add(node.name)
        elif isinstance(node, ast.arguments):
            bound |= {argument.arg for argument in node.args}
    for node in ast.walk(parsed):
        if not isinstance(node, ast.Call):
            continue
        text, target = ast.unparse(node), called(node.func, names)
        if target is None:
            if isinstance(node.func, ast.Name) and node.func.id not in bound:
                yield f"{text}: there is no {node.func.id}"
            continue
        if any(isinstance(part, ast.Starred) for part in node.args) or any(word.arg is None for word in node.keywords):
            continue
        try:
            signature = inspect.signature(target)
        except (TypeError, ValueError):
            continue
        try:
            signature.bind(*([None] * len(node.args)), **{str(word.arg): None for word in node.keywords})
        except TypeError as error:
            yield f"{text}: {error}"


def test_usages_in_docstrings(known: dict[str, Any]) -> None:
    found = []
    for path in OURS:
        names = {**known, **vars(importlib.import_module(dotted(path)))}
        code = prompts(ast.get_docstring(tree(path)) or "")
        found += [f"{dotted(path)}: {fault}" for fault in faults(code, names)]
    assert found == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_usages_on_pages(path: Path, known: dict[str, Any]) -> None:
    code = "\n".join(block for block in blocks(path, "python") if ">>>" not in block)
    assert list(faults(code, known)) == []


def test_the_check_sees_what_is_stale(known: dict[str, Any]) -> None:
    assert list(faults("no_such_function(1)", known)) == ["no_such_function(1): there is no no_such_function"]
    [fault] = faults("load_bundle('a', 'b', c=1)", known)
    assert "load_bundle" in fault
    assert list(faults("from litheseg.models.bundle import load_bundle\nload_bundle('model.safetensors')", known)) == []
