from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from litheseg.errors import DataError
from litheseg.runtime.jobs import Item, read_manifest


def _parquet(file: Path, **columns: Any) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), file)
    return file


def test_parquet_and_csv_say_the_same(tmp_path: Path) -> None:
    images = ["a.jpg", "deep/b.c.png", "../x/d.png", "/data/e.tif", "s3://bucket/2024/f #1.jpg", "g.png", "g.png"]
    output = [None, None, None, None, None, "new/name", "new/other.png"]
    table = _parquet(tmp_path / "list.parquet", image=images, output=output, label=list(range(7)))
    lines = ["label,image,output", *(f"0,{image},{name or ''}" for image, name in zip(images, output, strict=True))]
    (tmp_path / "list.csv").write_text("\ufeff" + "\n".join(lines) + "\n")
    expected = [
        Item(f"{tmp_path}/a.jpg", "a"),
        Item(f"{tmp_path}/deep/b.c.png", "deep/b.c"),
        Item(f"{tmp_path}/../x/d.png", "x/d"),
        Item("/data/e.tif", "data/e"),
        Item("s3://bucket/2024/f #1.jpg", "2024/f #1"),
        Item(f"{tmp_path}/g.png", "new/name"),
        Item(f"{tmp_path}/g.png", "new/other"),
    ]
    assert read_manifest(table) == expected
    assert read_manifest(tmp_path / "list.csv") == expected


def test_output_is_optional_and_a_folder_of_parts_is_one_list(tmp_path: Path) -> None:
    _parquet(tmp_path / "list.parquet" / "part-1.parquet", image=["b.png"])
    _parquet(tmp_path / "list.parquet" / "part-0.parquet", image=["a.png"])
    (tmp_path / "list.parquet" / "_SUCCESS").touch()
    assert [item.name for item in read_manifest(tmp_path / "list.parquet")] == ["a", "b"]


def test_relative_images_of_a_remote_list_lie_beside_it() -> None:
    memory = pytest.importorskip("fsspec").filesystem("memory")
    memory.pipe_file("memory://lists/day/one.csv", b"image\nphotos/a.png\n/data/b.png\n")
    first, second = read_manifest("memory://lists/day/one.csv")
    assert first == Item("memory://lists/day/photos/a.png", "photos/a")
    assert second == Item("/data/b.png", "data/b")


@pytest.mark.parametrize("name", ["../up", "/abs", "folder/", "a/../../b"])
def test_results_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "list.csv").write_text(f"image,output\na.png,{name}\n")
    [item] = read_manifest(tmp_path / "list.csv")
    assert item.problem is not None and name in item.problem and "row 1" in item.problem


def test_lists_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv does not exist"):
        read_manifest(tmp_path / "none.csv")
    (tmp_path / "wrong.csv").write_text("path,label\na,b\n")
    with pytest.raises(DataError, match=r"wrong\.csv has no column 'image' \(but path, label\)"):
        read_manifest(tmp_path / "wrong.csv")
    (tmp_path / "latin.csv").write_bytes("image\nä.png\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.csv is no CSV file in UTF-8"):
        read_manifest(tmp_path / "latin.csv")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(DataError, match=r"no column 'image' \(but none\)"):
        read_manifest(tmp_path / "empty.csv")
    with pytest.raises(DataError, match="no column 'image'"):
        read_manifest(_parquet(tmp_path / "wrong.parquet", path=["a"]))
    with pytest.raises(DataError, match=r"bytes\.parquet cannot be read as Parquet"):
        read_manifest(_parquet(tmp_path / "bytes.parquet", image=[{"bytes": b"x"}]))
    (tmp_path / "broken.parquet").write_text("no table")
    with pytest.raises(DataError, match=r"broken\.parquet cannot be read as Parquet"):
        read_manifest(tmp_path / "broken.parquet")
    (tmp_path / "none.parquet").mkdir()
    with pytest.raises(DataError, match="without Parquet files"):
        read_manifest(tmp_path / "none.parquet")
