from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from litheseg.errors import FolderInUseError, LithesegError
from litheseg.locks import LOCK_FILE, folder_lock

HOLD = """
import sys, time
from litheseg.locks import folder_lock
with folder_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that holds ``tmp_path / "run"``."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(FolderInUseError) as caught, folder_lock(tmp_path / "run"):
        pass
    message = str(caught.value)
    for part in (str(tmp_path / "run"), f"process {holder.pid} on {os.uname().nodename} since 20", "choose another"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_dies_lets_go(tmp_path: Path, holder: subprocess.Popen[str], death: signal.Signals) -> None:
    holder.send_signal(death)
    holder.wait()
    with folder_lock(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert not list((tmp_path / "run").glob(".*"))


def test_a_file_that_nobody_holds_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text("left by a crash")
    with folder_lock(tmp_path):
        pass


def test_it_holds_within_one_process_too_and_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(FolderInUseError, match=f"process {os.getpid()} "), folder_lock(tmp_path), folder_lock(tmp_path):
        pass
    with folder_lock(tmp_path):
        pass


def test_a_folder_that_will_be_replaced_is_held_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "export"
    with folder_lock(target, beside=True):
        assert not target.exists()
        with pytest.raises(FolderInUseError, match="export is in use"), folder_lock(target, beside=True):
            pass
    assert not list(tmp_path.iterdir())


def test_a_folder_made_for_the_lock_goes_again_if_nothing_was_written(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "empty"):
        pass
    with folder_lock(tmp_path / "full"):
        (tmp_path / "full" / "result").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_fork_does_not_keep_the_lock(tmp_path: Path) -> None:
    """As a loader's worker does that outlives its killed parent."""
    read, write = os.pipe()
    with folder_lock(tmp_path):
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)  # lives until the parent has tried
            os._exit(0)
    with folder_lock(tmp_path):
        pass
    os.close(write)
    os.waitpid(child, 0)
    os.close(read)


def test_without_locks_a_warning_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="file system without locks"), folder_lock(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LithesegError, match=r"cannot write .*file/run"), folder_lock(tmp_path / "file" / "run"):
        pass
