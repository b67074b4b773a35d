"""The house rules that a reader relies on: imports go downward, names are declared, models are never unpickled."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "litheseg"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the ground up: a room imports only from itself and from rooms before it. Up to BOX, nothing imports PyTorch.
HOUSE = (
    "errors",
    "progress",
    "values",
    "files",
    "downloads",
    "lazy",
    "locks",
    "machine",
    "tables",
    "masks",
    "streets",
    "bundle",
    "runtime",
    "serving",
    "nn",
    "models",
    "data.sources",
    "data.formats",
    "data",
    "data.doctor",
    "data.loading",
    "losses",
    "cost",
    "evaluation",
    "deploy",
    "deploy.quantize",
    "training",
    "labelling",
    "report",
    "budget",
    "building",
    "demo",
    "cli",
)
BOX = "serving"
UNPICKLERS = ("cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve")


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str | None:
    """The entry of HOUSE that the module belongs to; None for the package itself (which holds the version only)."""
    name = module.removeprefix("litheseg").removeprefix(".")
    fitting = [entry for entry in HOUSE if name == entry or name.startswith(entry + ".")]
    assert fitting or not name or name.startswith("__"), f"{module} is in no room of the house: add it to HOUSE"
    return max(fitting, key=len, default=None)


def imports(code: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module) of each import from litheseg."""
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the import in full, starting with 'litheseg.'"
            # Of `from litheseg import bundle` the room is `bundle`.
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if is_module(name) else str(node.module) for name in inside]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "litheseg")


def is_module(name: str) -> bool:
    place = PACKAGE.parent.joinpath(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


def reading_order(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Constants, then classes, then functions, each as a person sorts them (what ruff's RUF022 writes)."""
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return kind, [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|\D+", name)]


@cache
def tree(module: Path) -> ast.Module:
    return ast.parse(module.read_text())


def upward(module: Path) -> Iterator[str]:
    own = room(dotted(module))
    for line, target in imports(tree(module)):
        other = room(target)
        if own and other and HOUSE.index(other) > HOUSE.index(own):
            yield f"{module}:{line}: {own} must not import {target} from above"


def undescribed(module: Path) -> Iterator[str]:
    if len(ast.get_docstring(tree(module)) or "") <= 20:
        yield f"{module}: say in the docstring what the module does and what it does not know"


def undeclared(module: Path) -> Iterator[str]:
    loaded = importlib.import_module(dotted(module))
    names = getattr(loaded, "__all__", None)
    if names is None:
        if module != PACKAGE / "__init__.py" and module.name != "__main__.py":
            yield f"{module}: has no __all__"
        return
    if list(names) != sorted(names, key=reading_order):
        yield f"{module}: __all__ is not sorted"
    if len(set(names)) != len(names):
        yield f"{module}: __all__ repeats a name"
    missing = [name for name in names if not hasattr(loaded, name)]
    if missing:
        yield f"{module}: __all__ names {missing}, which the module does not have"


def unpickled(module: Path) -> Iterator[str]:
    for node in ast.walk(tree(module)):
        used = ""
        if isinstance(node, ast.ImportFrom) and node.module in UNPICKLERS:
            used = ", ".join(alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in UNPICKLERS:
            used = node.attr
        # The error is what torch.load raises with weights_only=True on a file that holds more than weights.
        if used not in ("", "UnpicklingError"):
            yield f"{module}:{node.lineno}: uses {used}, which can run code from a file"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            if not any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords):
                yield f"{module}:{node.lineno}: torch.load runs code from the file without weights_only=True"


@pytest.mark.parametrize("check", [upward, undescribed, undeclared, unpickled])
def test_every_module_keeps_to_the_rules(check: Callable[[Path], Iterator[str]]) -> None:
    """All modules in one test: with one for each, every fifth test of the suite was one of these."""
    assert [fault for module in MODULES for fault in check(module)] == []


def test_a_class_name_occurs_once() -> None:
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(dotted(path))
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


@pytest.mark.parametrize(
    ("own", "statement"),
    [
        ("nn", "from litheseg.models import ddrnet"),
        ("cost", "import litheseg.cli"),
        ("data", "from litheseg import report"),
    ],
)
def test_the_check_itself_sees_upward_imports(own: str, statement: str) -> None:
    [(_, target)] = imports(ast.parse(statement))
    other = room(target)
    assert other is not None and HOUSE.index(other) > HOUSE.index(own)
