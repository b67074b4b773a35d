"""Files and folders are whole or as they were, whatever ends the process: tried by ending it."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from litheseg import files
from litheseg.errors import LithesegError
from litheseg.files import atomic_folder, atomic_path, cache_folder

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and permissions of POSIX")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is brought to the disk, and what is renamed, in order; by the names of the files."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def noted_replace(source: Any, target: Any) -> None:
        done.append(f"rename {Path(source).name} {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    return done


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are Linux's")
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, calls: list[str]) -> None:
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert calls == [f"sync {temporary.name}", f"rename {temporary.name} a.txt", f"sync {tmp_path.name}"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are Linux's")
def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path: Path, calls: list[str]) -> None:
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "inside").mkdir()
        (temporary / "inside" / "a").write_text("a")
        (temporary / "b").write_text("b")
    assert calls[:4] == ["sync a", "sync inside", "sync b", f"sync {temporary.name}"]
    assert calls[4:] == [f"rename {temporary.name} out", f"sync {tmp_path.name}"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_where_nothing_can_be_synced_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(os, "fsync", _raises(code))
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "b").write_text("b")
    assert (tmp_path / "a.txt").read_text() == "new" and (tmp_path / "out" / "b").read_text() == "b"


def test_a_disk_that_fails_while_syncing_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("old")
    monkeypatch.setattr(os, "fsync", _raises(errno.EIO))
    with pytest.raises(LithesegError, match=r"cannot write .*a\.txt"), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def _raises(code: int) -> Callable[[int], None]:
    def fails(_: int) -> None:
        raise OSError(code, os.strerror(code))

    return fails


@POSIX
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_permissions_are_those_of_any_new_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "a.txt") as temporary:
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))  # as temporary files are made
        with atomic_path(tmp_path / "b.txt") as temporary:
            temporary.write_text("b")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize("can_swap", [True, False])
def test_a_folder_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_swap: bool) -> None:
    if not can_swap:
        monkeypatch.setattr(files, "_swap", lambda first, second: False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "new").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]


@pytest.mark.skipif(sys.platform != "linux", reason="others cannot swap folders")
def test_no_moment_without_the_folder(tmp_path: Path, calls: list[str]) -> None:
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "new").write_text("new")
    assert not any(call.startswith("rename") for call in calls)  # one swap instead of two renames


WRITERS = {
    "file": """
        while True:
            with atomic_path(target / "a.txt") as temporary, temporary.open("w") as file:
                number += 1
                file.write(f"{number}\\n" * 200_000)
    """,
    "folder": """
        while True:
            with atomic_folder(target / "out") as temporary:
                number += 1
                for name in "ab":
                    (temporary / name).write_text(f"{number}\\n" * 50_000)
    """,
}


@POSIX
@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("moment", [0.0, 0.05, 0.11, 0.23])
def test_a_killed_writer_leaves_the_old_or_the_new(tmp_path: Path, kind: str, moment: float) -> None:
    script = f"""
        import sys
        from pathlib import Path
        from litheseg.files import atomic_folder, atomic_path
        target, number = Path(sys.argv[1]), 0
        print("ready", flush=True)
        {textwrap.dedent(WRITERS[kind]).replace(chr(10), chr(10) + " " * 8)}
    """
    (tmp_path / "a.txt").write_text("0\n")
    (tmp_path / "out").mkdir()
    for name in "ab":
        (tmp_path / "out" / name).write_text("0\n")
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(moment)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    found = [tmp_path / "a.txt"] if kind == "file" else [tmp_path / "out" / name for name in "ab"]
    lines = [path.read_text().splitlines() for path in found]
    assert all(len(set(content)) == 1 and len(content) in (1, 50_000, 200_000) for content in lines)
    assert len({content[0] for content in lines}) == 1, "the files of a folder are of one run"
    leftovers = [path.name for path in tmp_path.iterdir() if path.name not in ("a.txt", "out")]
    assert all(name.startswith(".") for name in leftovers)
    with atomic_path(tmp_path / "a.txt") as temporary:  # leftovers are in nobody's way
        temporary.write_text("next")
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "next").write_text("next")
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "out" / "next").read_text() == "next"


def test_the_cache_is_where_caches_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LITHESEG_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("budget") == tmp_path / "litheseg" / "budget"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("budget") == Path.home() / ".cache" / "litheseg" / "budget"
    monkeypatch.setenv("LITHESEG_CACHE", str(tmp_path / "own"))
    assert cache_folder("budget") == tmp_path / "own" / "budget"
