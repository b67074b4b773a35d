"""What a command loads is what it needs: help and looking at data need no PyTorch, lists of recipes no Lightning."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import warm

SCRIPT = """
import json, sys
from litheseg.cli import main
for words in json.loads(sys.argv[2]):
    status = main(words)
    loaded = [name for name in sys.argv[1].split(",") if name in sys.modules]
    assert not status and not loaded, (words, status, loaded)
"""
TRAINING = "torch,torchvision,lightning,timm,scipy,matplotlib,jsonargparse"


def load_none_of(modules: str, *commands: list[str]) -> None:
    words = [sys.executable, "-c", SCRIPT, modules, json.dumps(commands)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr


def test_help_and_data_sets_need_no_pytorch(tmp_path: Path) -> None:
    made = str(tmp_path / "made")
    make = ["data", "make", "streets", made, "--train", "2", "--val", "2", "--size", "32x48"]
    load_none_of(TRAINING, ["train", "--help"], make, ["data", "info", made], ["doctor", made])


def test_lists_come_without_lightning() -> None:
    load_none_of("lightning", ["recipes", "slimseg"], ["models", "ddrnet"])


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("lightning", ["train", "--recipe", "slimseg", "--data.source", "streets", "--output", "run"]),
        ("timm", ["models", "ddrnet"]),
        ("safetensors", ["evaluate", "model.safetensors"]),
    ],
)
def test_half_an_install_is_named_with_what_mends_it(missing: str, command: list[str], tmp_path: Path) -> None:
    script = f"""
import sys
for name in [name for name in sys.modules if name.partition(".")[0] in ("litheseg", {missing!r})]:
    del sys.modules[name]
sys.modules[{missing!r}] = None
from litheseg.cli import main
sys.exit(main({command!r}))
"""
    result = warm.run(["-c", script], cwd=tmp_path)
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
