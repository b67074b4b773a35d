"""The house rules that a reader relies on: imports go downward, names are declared, models are never unpickled."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
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


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module) of each import from litheseg."""
    for node in ast.walk(tree):
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


@pytest.fixture(params=MODULES, ids=dotted)
def module(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_imports_go_downward(module: Path) -> None:
    own = room(dotted(module))
    for line, target in imports(ast.parse(module.read_text())):
        other = room(target)
        if own and other:
            assert HOUSE.index(other) <= HOUSE.index(own), f"{module}:{line}: {own} must not import {target} from above"


def test_has_a_docstring(module: Path) -> None:
    text = ast.get_docstring(ast.parse(module.read_text())) or ""
    assert len(text) > 20, f"{module}: say in the docstring what the module does and what it does not know"


def test_declares_its_names(module: Path) -> None:
    loaded = importlib.import_module(dotted(module))
    names = getattr(loaded, "__all__", None)
    if names is None:
        assert module == PACKAGE / "__init__.py" or module.name == "__main__.py", f"{module}: has no __all__"
        return
    assert list(names) == sorted(names, key=reading_order), f"{module}: __all__ is not sorted"
    assert len(set(names)) == len(names), f"{module}: __all__ repeats a name"
    missing = [name for name in names if not hasattr(loaded, name)]
    assert not missing, f"{module}: __all__ names {missing}, which the module does not have"


def test_a_class_name_occurs_once() -> None:
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(dotted(path))
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


def test_never_unpickles(module: Path) -> None:
    for node in ast.walk(ast.parse(module.read_text())):
        used = ""
        if isinstance(node, ast.ImportFrom) and node.module in UNPICKLERS:
            used = ", ".join(alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in UNPICKLERS:
            used = node.attr
        # The error is what torch.load raises with weights_only=True on a file that holds more than weights.
        assert used in ("", "UnpicklingError"), f"{module}:{node.lineno}: uses {used}, which can run code from a file"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            safe = any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
            assert safe, f"{module}:{node.lineno}: torch.load runs code from the file without weights_only=True"


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
