"""Downloads from a local server that cuts, lies and refuses on request."""

from __future__ import annotations

import hashlib

import pytest
from tiny_download_server import BODY, file_server

from litheseg import downloads
from litheseg.downloads import download, read_address
from litheseg.errors import DownloadError
from litheseg.files import file_digest

SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    with file_server() as server:
        yield server


def get(server, target, **options):
    return download(server.url, target, timeout=5, **options)


def test_download(server, tmp_path):
    target = get(server, tmp_path / "deep" / "a.bin", sha256=SHA256.upper())
    assert target.read_bytes() == BODY
    assert [path.name for path in target.parent.iterdir()] == ["a.bin"]


def test_computed_checksum_is_printed(server, tmp_path, capsys):
    download(server.url, tmp_path / "a.bin")
    assert f"not verified; SHA-256 {SHA256}" in capsys.readouterr().err


def test_cut_connection_is_resumed(server, tmp_path):
    server.cuts = [100_000, 300_000]
    assert get(server, tmp_path / "a.bin", sha256=SHA256).read_bytes() == BODY
    assert server.asked == [None, "bytes=100000-", "bytes=400000-"]


def test_resumed_by_a_later_call(server, tmp_path):
    server.cuts = [100_000]
    with pytest.raises(DownloadError, match=r"cut, with 100000 bytes in .*a\.bin\.part; run it again"):
        get(server, tmp_path / "a.bin", retries=0)
    assert not (tmp_path / "a.bin").exists()
    assert get(server, tmp_path / "a.bin", sha256=SHA256).read_bytes() == BODY
    assert server.asked == [None, "bytes=100000-"]


def test_server_without_ranges_starts_again(server, tmp_path):
    server.cuts, server.ranges = [100_000], False
    assert get(server, tmp_path / "a.bin", sha256=SHA256).read_bytes() == BODY


def test_file_that_changed_meanwhile_starts_again(server, tmp_path):
    server.cuts = [100_000]
    with pytest.raises(DownloadError):
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
    with pytest.raises(DownloadError, match=f"SHA-256 is {SHA256}, not {'0' * 64}"):
        get(server, tmp_path / "a.bin", sha256="0" * 64)
    assert not list(tmp_path.iterdir())


def test_existing_file(server, tmp_path):
    (tmp_path / "a.bin").write_bytes(BODY)
    get(server, tmp_path / "a.bin", sha256=SHA256)
    with pytest.raises(DownloadError, match="exists, but its SHA-256"):
        get(server, tmp_path / "a.bin", sha256="0" * 64)
    assert not server.asked


def test_busy_server_is_asked_again(server, tmp_path):
    server.codes = [503, 429]
    assert get(server, tmp_path / "a.bin").read_bytes() == BODY


def test_missing_file_is_not_asked_again(server, tmp_path):
    server.codes = [404] * 4
    with pytest.raises(DownloadError, match="404"):
        get(server, tmp_path / "a.bin")
    assert len(server.asked) == 1


def test_no_server(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    with pytest.raises(DownloadError, match="run it again"):
        download("http://127.0.0.1:9/a.bin", tmp_path / "a.bin", timeout=2)


def test_file_address(tmp_path):
    (tmp_path / "source.bin").write_bytes(BODY)
    target = download((tmp_path / "source.bin").as_uri(), tmp_path / "a.bin", sha256=SHA256)
    assert file_digest(target) == SHA256


def test_bad_scheme(tmp_path):
    with pytest.raises(DownloadError, match="http, https or file"):
        download("ftp://example.org/a.zip", tmp_path / "a.zip")


def test_a_small_file_is_read(server, tmp_path):
    server.body = b"{}"
    assert read_address(server.url, limit=2) == b"{}"
    (tmp_path / "a.json").write_bytes(b"[]")
    assert read_address((tmp_path / "a.json").as_uri(), limit=9) == b"[]"


def test_a_small_file_that_is_none(server):
    with pytest.raises(DownloadError, match="has more than 9 bytes"):
        read_address(server.url, limit=9)
    server.body, server.cuts = b"12345", [3]
    with pytest.raises(DownloadError, match="was cut short"):
        read_address(server.url, limit=9)
    server.codes = [404]
    with pytest.raises(DownloadError, match="the server says 404"):
        read_address(server.url, limit=9)
    with pytest.raises(DownloadError, match="http, https or file"):
        read_address("ftp://example.org/a", limit=9)
