"""What a command loads is what it needs: a folder is examined without PyTorch, recipes are listed without Lightning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# The command's own module, without the command line around it.
SCRIPT = """
import importlib, sys, types
from argparse import ArgumentParser
import litheseg
package = types.ModuleType("litheseg.cli")
package.__path__ = [f"{litheseg.__path__[0]}/cli"]
sys.modules["litheseg.cli"] = package
command = importlib.import_module(f"litheseg.cli.{sys.argv[2]}")
parser = ArgumentParser()
command.add(parser)
status = command.run(parser.parse_args(sys.argv[3:]))
loaded = [name for name in sys.argv[1].split(",") if name in sys.modules]
assert not status and not loaded, (status, loaded)
"""
TRAINING = "torch,torchvision,lightning,timm,scipy,matplotlib,jsonargparse"


def loads_none_of(modules: str, *command: str) -> None:
    words = [sys.executable, "-c", SCRIPT, modules, *command]
    result = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr


def test_data_sets_are_made_and_looked_at_without_pytorch(tmp_path: Path) -> None:
    made = str(tmp_path / "made")
    loads_none_of(TRAINING, "data", "make", "streets", made, "--train", "2", "--val", "2", "--size", "32x48")
    loads_none_of(TRAINING, "data", "info", made)
    loads_none_of(TRAINING, "doctor", made)


@pytest.mark.parametrize("command", [["recipes"], ["recipes", "slimseg"], ["models"], ["models", "ddrnet"]])
def test_lists_come_without_lightning(command: list[str]) -> None:
    loads_none_of("lightning,matplotlib", *command)
