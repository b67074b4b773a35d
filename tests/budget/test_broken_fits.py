"""Fits that are killed, and two at once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tiny_training
import warm

from litheseg.budget import choose
from litheseg.budget.store import store_folder
from litheseg.cli import main
from litheseg.locks import folder_lock
from litheseg.models.bundle import Bundle, load_bundle

KILLED = """
import json, os, signal, sys
import tiny_budget
from litheseg.budget import choose, fit_result, store
from litheseg.cli import main

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def killed(where, words):
    choose.PROOF_MS = 1
    save = store.Store.save_samples
    if where == "timing":
        store.Store.save_samples = lambda self: (save(self), die())
    else:
        fit_result.FitResult.draw = die
    main(words)
    os._exit(0)

for where, words in json.loads(sys.argv[1]).items():
    child = os.fork()
    if not child:
        killed(where, words)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, where
"""


def words(bundle: Bundle, tmp_path: Path) -> list[str]:
    fast = "--budget 10s --percentile 50 --sizes 32x48 --threads 1 --runtime torch --widths 1,.5".split()
    return ["fit", str(bundle.path), *fast, "--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "out")]


@pytest.fixture(scope="module")
def killed(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of fits that were killed after the first timings were saved, and before the last file was written."""
    folders = {where: tmp_path_factory.mktemp(where) for where in ("timing", "writing")}
    commands = json.dumps({where: words(bundle, folder) for where, folder in folders.items()})
    done = warm.run(["-c", KILLED, commands], env=tiny_training.environment())
    assert done.returncode == 0, done.stderr
    return folders


@pytest.mark.parametrize("where", ["timing", "writing"])
def test_a_killed_fit_goes_on_with_the_same_command(
    bundle: Bundle, killed: dict[str, Path], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(choose, "PROOF_MS", 1)
    folder = killed[where]
    [timings] = (folder / "cache").rglob("timings-*.json")
    assert json.loads(timings.read_text())["entries"]  # whole, and remembered
    assert not (folder / "out" / "fit.json").exists()
    assert main(words(bundle, folder)) == 0
    assert json.loads((folder / "out" / "fit.json").read_text())["litheseg"] == "fit"
    assert load_bundle(folder / "out" / "model.safetensors").header.widths == bundle.header.widths
    assert not [path for path in folder.rglob(".*") if path.is_file()]


@pytest.mark.parametrize("what", ["output", "cache"])
def test_two_fits_do_not_share(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    held = tmp_path / "out" if what == "output" else store_folder(bundle, tmp_path / "cache")
    with folder_lock(held):
        assert main(words(bundle, tmp_path)) == 2
    assert f"{held} is in use by process {os.getpid()}" in capsys.readouterr().err
