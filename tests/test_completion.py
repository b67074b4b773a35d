"""Shell completion, as the shells themselves see it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from litheseg import cli

pytest.importorskip("shtab")
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "BASH_COMPLETION_USER_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", "/bin/bash")
    return tmp_path


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BASH_COMPLETION_USER_DIR", str(folder))
        assert cli.main(["--install-completion", "bash"]) == 0
    return folder / "completions/litheseg"


def candidates(script: Path, *words: str) -> set[str]:
    """What bash offers for the last word."""
    line = """
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
        read -ra spec <<< "$(complete -p litheseg)"
        for ((i = 0; i < ${#spec[@]}; i++)); do [[ ${spec[i]} == -F ]] && function=${spec[i + 1]}; done
        "$function" litheseg "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    command = ["bash", "--norc", "-c", line, "bash", str(script), "litheseg", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=script.parent)
    return {entry.strip() for entry in result.stdout.splitlines() if entry.strip()}


def test_bash_offers_every_command(script: Path) -> None:
    assert set(cli.COMMANDS) <= candidates(script, "")
    assert candidates(script, "pse") == {"pseudo-label"}


def test_bash_offers_options_choices_and_actions(script: Path) -> None:
    assert candidates(script, "predict", "--wid") == {"--width"}
    assert {"mask", "overlay", "both"} <= candidates(script, "predict", "--kind", "")
    assert {"fetch", "import", "split"} <= candidates(script, "data", "")
    assert candidates(script, "data", "split", "--rat") == {"--ratio"}


def test_bash_offers_fields_of_recipes_and_files(script: Path) -> None:
    assert {"--data.root", "--data.size"} <= candidates(script, "train", "--data.")
    (script.parent / "model.safetensors").touch()
    assert "model.safetensors" in candidates(script, "evaluate", "model")


def test_the_script_is_put_where_each_shell_looks(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"bash": ".local/share/bash-completion/completions/litheseg", "zsh": ".zfunc/_litheseg"}
    for shell, place in (places | {"fish": ".config/fish/completions/litheseg.fish"}).items():
        assert cli.main(["--install-completion", shell]) == 0
        assert str(home / place) in capsys.readouterr().out
        assert "pseudo-label" in (home / place).read_text()
    assert (home / places["zsh"]).read_text().startswith("#compdef litheseg")


def test_the_shell_in_use_is_the_default(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--show-completion"]) == 0
    assert "complete -o" in capsys.readouterr().out
    assert not list(home.iterdir())


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--install-completion", "cmd"]) == 2
    assert "bash, zsh or fish" in capsys.readouterr().err.replace("`", "")


def test_a_command_without_its_packages_is_a_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "litheseg.cli.tune", None)
    monkeypatch.setitem(sys.modules, "litheseg.training.recipe", None)
    assert cli.main(["--show-completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "tune" in script and "--find-lr" in script and "--data.root" not in script


def test_other_commands_do_not_load_it() -> None:
    check = "import sys; from litheseg.cli import main; main(['--help']); sys.exit('shtab' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, check=False).returncode == 0
