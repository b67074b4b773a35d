"""What the site adds to docs/: the README as first page, API reference, notebooks, files that pages link to."""

from __future__ import annotations

import json
import re
from pathlib import Path
from posixpath import dirname, normpath, relpath
from typing import Any

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = "repository"  # folder of the site for linked files that lie outside docs/
ROOT_PAGES = {"index.md": "README.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
LINK = re.compile(r"(\]\()([^)\s#:]+)([#)])")


class UsageAsExamples(Extension):
    """Sections called "Usage" of docstrings are shown as code, as griffe does with "Examples"."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rename the section."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nUsage:\n", "\nExamples:\n")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from other files."""
    pages = {uri: (ROOT / name).read_text(encoding="utf-8") for uri, name in ROOT_PAGES.items()}
    pages = {uri: text.replace("](docs/", "](") for uri, text in pages.items()}
    for path in (ROOT / "docs/notebooks").glob("*.ipynb"):
        pages[f"notebooks/{path.stem}.md"] = _notebook(path)
    pages |= {f"reference/{room}.md": _reference(room) for room in _rooms()}
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    linked = {target for page in files.documentation_pages() for target in _outside(page)}
    for target in sorted(linked):
        files.append(File.generated(config, f"{OUTSIDE}/{target}", abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links out of docs/ to the copies, and links to notebooks to their pages."""

    def lead(found: re.Match[str]) -> str:
        target = found[2]
        if target.endswith(".ipynb"):
            target = f"{target.removesuffix('.ipynb')}.md"
        elif outside := _outside_target(page.file.src_uri, target):
            target = relpath(f"{OUTSIDE}/{outside}", dirname(page.file.src_uri) or ".")
        return f"{found[1]}{target}{found[3]}"

    return LINK.sub(lead, markdown)


def _outside(page: File) -> set[str]:
    targets = (_outside_target(page.src_uri, found[2]) for found in LINK.finditer(page.content_string))
    return {target for target in targets if target}


def _outside_target(page: str, target: str) -> str:
    """The path in the repository of a link that leaves docs/, or nothing."""
    if page in ROOT_PAGES:
        return target if not (ROOT / "docs" / target).exists() and target not in ROOT_PAGES else ""
    path = normpath(f"docs/{dirname(page)}/{target}")
    return path if not path.startswith("docs/") else ""


def _notebook(path: Path) -> str:
    """A notebook's cells as a page; the notebooks in the repository hold no outputs."""
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = [
        "".join(cell["source"]) if cell["cell_type"] == "markdown" else f"```python\n{''.join(cell['source'])}\n```"
        for cell in cells
    ]
    title, *rest = texts
    return "\n\n".join([title, *rest])


def _rooms() -> list[str]:
    package = ROOT / "litheseg"
    names = {path.name.removesuffix(".py") for path in package.iterdir() if path.suffix == ".py" or path.is_dir()}
    return sorted(name for name in names if not name.startswith("__") and name not in ("cli", "recipes"))


def _reference(room: str) -> str:
    """A page with every module of a room."""
    package = ROOT / "litheseg"
    paths = sorted([*(package / room).rglob("*.py"), *package.glob(f"{room}.py")])
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths)
    return f"# litheseg.{room}\n\n" + "\n\n".join(f"::: {name}" for name in names)
