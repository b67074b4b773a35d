"""The list of failures while it grows: whole lines, none twice, and none for what works by now."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from litheseg.errors import LithesegError
from litheseg.runtime import failures
from litheseg.runtime.failures import FailureLog
from litheseg.runtime.storage import open_folder


def lines(folder: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in (folder / "failed.jsonl").read_text("utf-8").splitlines()]
    return [(row["image"], row["reason"]) for row in rows]


def test_nothing_is_made_until_something_fails(tmp_path: Path) -> None:
    log = FailureLog(open_folder(tmp_path / "out"))
    log.labelled("a.png")
    assert not (tmp_path / "out").exists()
    log.failed([("b.png", "broken")])
    log.failed([("c.png", "broken"), ("d.png", "gone")])
    assert lines(tmp_path / "out") == [("b.png", "broken"), ("c.png", "broken"), ("d.png", "gone")]


def test_a_rerun_repeats_no_line_and_forgets_what_works(tmp_path: Path) -> None:
    FailureLog(open_folder(tmp_path)).failed([("a", "1"), ("b", "1"), ("c", "1")])
    log = FailureLog(open_folder(tmp_path))
    log.failed([("a", "2")])
    log.failed([("d", "2")])
    log.labelled("b")
    assert [image for image, _ in lines(tmp_path)] == ["a", "b", "c", "d"]  # as a kill would leave it
    log.close()
    assert dict(lines(tmp_path)) == {"a": "2", "c": "1", "d": "2"} and len(lines(tmp_path)) == 3
    log.close([("d", "2")])
    assert lines(tmp_path) == [("d", "2")]
    log.close([])
    assert not (tmp_path / "failed.jsonl").exists()


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    FailureLog(open_folder(tmp_path)).failed([("a", "1"), ("b", "1")])
    path = tmp_path / "failed.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    FailureLog(open_folder(tmp_path)).failed([("c", "1")])
    assert lines(tmp_path) == [("a", "1"), ("c", "1")]


def test_any_name_can_be_told_and_found_again(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \xf0\x9f\x98\x80\x1b\n.png")
    FailureLog(open_folder(tmp_path)).failed([(name, f"{name} is broken")])
    content = (tmp_path / "failed.jsonl").read_bytes()
    assert "\U0001f600" in content.decode("utf-8") and content.count(b"\n") == 1 and b"\x1b" not in content
    ((image, _),) = lines(tmp_path)
    assert os.fsencode(image) == b"caf\xe9 \xf0\x9f\x98\x80\x1b\n.png"


def test_objects_are_written_anew_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    memory = pytest.importorskip("fsspec").filesystem("memory")
    place = f"memory://{tmp_path.name}/out"
    log = FailureLog(open_folder(place))
    log.failed([("a", "1")])
    assert not memory.exists(f"{place}/failed.jsonl")  # too soon
    monkeypatch.setattr(failures, "_EVERY", -1.0)
    log.failed([("b", "1")])
    assert memory.cat_file(f"{place}/failed.jsonl").count(b"\n") == 2
    assert FailureLog(open_folder(place))._earlier == {"a": "1", "b": "1"}
    log.close([])
    assert not memory.exists(f"{place}/failed.jsonl")


def test_a_list_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    folder = failures.FailureLog(open_folder(tmp_path / "other"))
    folder._folder._path = tmp_path / "out"  # type: ignore[attr-defined]
    with pytest.raises(LithesegError, match=r"cannot write .*failed\.jsonl"):
        folder.failed([("a", "1")])
