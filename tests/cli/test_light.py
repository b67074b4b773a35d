"""What a command loads is what it needs: help and looking at data need no PyTorch, lists of recipes no Lightning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from litheseg.cli import main
status = main(sys.argv[2:])
loaded = [name for name in sys.argv[1].split(",") if name in sys.modules]
assert not status and not loaded, (status, loaded)
"""
TRAINING = "torch,torchvision,lightning,timm,scipy,matplotlib,jsonargparse"


def loads_none_of(modules: str, *command: str) -> None:
    words = [sys.executable, "-c", SCRIPT, modules, *command]
    result = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr


def test_help_and_data_sets_need_no_pytorch(tmp_path: Path) -> None:
    loads_none_of(TRAINING, "train", "--help")
    made = str(tmp_path / "made")
    loads_none_of(TRAINING, "data", "make", "streets", made, "--train", "2", "--val", "2", "--size", "32x48")
    loads_none_of(TRAINING, "data", "info", made)
    loads_none_of(TRAINING, "doctor", made)


@pytest.mark.parametrize("command", [["recipes", "slimseg"], ["models", "ddrnet"]])
def test_lists_come_without_lightning(command: list[str]) -> None:
    loads_none_of("lightning", *command)


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("lightning", ["train", "--recipe", "slimseg", "--data.source", "streets", "--output", "run"]),
        ("timm", ["models", "ddrnet"]),
        ("safetensors", ["evaluate", "model.safetensors"]),
    ],
)
def test_half_an_install_is_named_with_what_mends_it(missing: str, command: list[str], tmp_path: Path) -> None:
    script = f"import sys; sys.modules[{missing!r}] = None; from litheseg.cli import main; sys.exit(main({command!r}))"
    line = [sys.executable, "-c", script]
    result = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    expected = f"error: `litheseg {command[0]}` needs the package '{missing}': pip install 'litheseg[train]'"
    assert result.stderr.strip().splitlines()[-1] == expected
    assert not list(tmp_path.iterdir())


def test_help_loads_nothing_but_the_command_line() -> None:
    script = (
        "import sys\nfrom litheseg.cli import main\nassert main(['--help']) == 0\n"
        "heavy = [name for name in ('numpy', 'PIL', 'yaml', 'rich', 'onnxruntime', 'torch') if name in sys.modules]\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "pseudo-label" in result.stdout
