from __future__ import annotations

from pathlib import Path

import pytest

from litheseg.errors import DataError, LithesegError
from litheseg.runtime.storage import fetch, files_below, is_folder, local_path, open_folder, read_bytes


@pytest.fixture(params=["path", "file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty folder, in each of its kinds."""
    if request.param == "path":
        return str(tmp_path)
    pytest.importorskip("pyarrow")
    pytest.importorskip("fsspec")
    return tmp_path.as_uri() if request.param == "file" else f"memory://{tmp_path.name}/{request.node.name}"


def test_what_is_written_is_there(folder: str) -> None:
    results = open_folder(f"{folder}/out")
    assert not is_folder(f"{folder}/out") and results.names("") == set() and not results.exists("a.png")
    results.write("a.png", b"first")
    results.write("deep/b #1%.png", b"other")
    results.write("a.png", b"second")
    assert is_folder(f"{folder}/out") and results.exists("a.png") and not results.exists("b.png")
    assert results.names("") == {"a.png", "deep"} and results.names("deep") == {"b #1%.png"}
    assert [name for _, name in files_below(f"{folder}/out")] == ["a.png", "deep/b #1%.png"]
    contents = [read_bytes(address) for address, _ in files_below(f"{folder}/out")]
    assert contents == [b"second", b"other"]
    results.remove("a.png")
    results.remove("a.png")
    assert not results.exists("a.png")


def test_what_is_not_there(folder: str) -> None:
    with pytest.raises(DataError, match=r"none\.png does not exist"):
        read_bytes(f"{folder}/none.png")
    assert list(files_below(f"{folder}/none")) == []


def test_addresses_of_this_machine() -> None:
    assert local_path("a b.png") == Path("a b.png")
    assert local_path("file:///data/a%20b.png") == Path("/data/a b.png")
    assert local_path("~/a.png") == Path.home() / "a.png"
    assert local_path("s3://bucket/a.png") is None


def test_paths_stay_and_objects_are_named(tmp_path: Path) -> None:
    assert fetch(f"{tmp_path}/a.png") == tmp_path / "a.png"
    pytest.importorskip("fsspec").filesystem("memory").pipe_file("memory://named/a.png", b"data")
    content = fetch("memory://named/a.png")
    assert not isinstance(content, Path) and content.read() == b"data" and str(content) == "memory://named/a.png"


def test_stores_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file; give a folder"):
        open_folder(tmp_path / "file")
    with pytest.raises(LithesegError, match="cannot write"):
        open_folder(tmp_path / "file2").write("a/" + 300 * "x", b"")
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match="ftp:// may be left with half a file"):
        open_folder("ftp://host/out")
    with pytest.raises(DataError, match="nowhere://"):
        read_bytes("nowhere://a/b.png")
