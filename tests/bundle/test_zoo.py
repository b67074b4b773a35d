"""Models by name: in a checkout, in the cache, or at an address that cuts, lies and goes away."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from registry import registered
from tiny_download_server import FileServer, file_server
from tiny_export import build_tiny, noise
from tiny_zoo import ABOUT, METRICS, publisher, tiny_zoo

from litheseg import downloads
from litheseg.bundle import zoo as module
from litheseg.bundle.exported import is_export, load_export
from litheseg.bundle.model_file import read_model_file
from litheseg.bundle.names import model_path
from litheseg.bundle.zoo import list_zoo, read_index, whereabouts, zoo_path
from litheseg.cli import main
from litheseg.errors import BundleError, DownloadError, LithesegError, WidthError
from litheseg.models.bundle import load_bundle
from litheseg.runtime.predictor import Predictor

_registered = registered(tiny=build_tiny)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, _registered: None) -> Path:
    return tiny_zoo(tmp_path_factory.mktemp("made"))


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An install that is no checkout and knows no address; returns its cache."""
    monkeypatch.setattr(module, "checkout_folder", lambda: None)
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("LITHESEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LITHESEG_ZOO", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch, made: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(made, tmp_path / "checkout" / "zoo")
    monkeypatch.setattr(module, "checkout_folder", lambda: folder)
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, made: Path) -> Iterator[FileServer]:
    with file_server() as server:
        files = (file for file in made.rglob("*") if file.is_file())
        server.files = {f"/v1/{file.relative_to(made).as_posix()}": file.read_bytes() for file in files}
        monkeypatch.setenv("LITHESEG_ZOO", f"{server.root}/v1/")
        yield server


def test_a_checkout_has_its_files(checkout: Path) -> None:
    assert model_path("zoo:tiny") == checkout / "tiny.safetensors"
    assert model_path("zoo:tiny/onnx") == checkout / "tiny-onnx"
    [tiny], problem = list_zoo()
    assert (whereabouts(tiny), problem) == ("checkout", "")


def test_a_name_opens_whatever_a_path_opens(checkout: Path) -> None:
    assert load_bundle("zoo:tiny").header == read_model_file("zoo:tiny").header
    assert not is_export("zoo:tiny") and is_export("zoo:tiny/onnx")
    assert load_export("zoo:tiny/onnx").widths == (1.0, 0.5)
    image = noise(24, 32)
    for name, path in (("zoo:tiny", checkout / "tiny.safetensors"), ("zoo:tiny/onnx", checkout / "tiny-onnx")):
        assert np.array_equal(Predictor(name, width=0.5)(image), Predictor(path, width=0.5)(image))
    with pytest.raises(WidthError, match=r"0\.3"):
        Predictor("zoo:tiny", width=0.3)


def test_without_pytorch_a_model_is_its_export(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert zoo_path("tiny") == checkout / "tiny-onnx"


def test_it_is_fetched_once(server: FileServer, made: Path, nowhere: Path) -> None:
    [tiny], _ = list_zoo()
    assert whereabouts(tiny) == "to download"
    path = model_path("zoo:tiny")
    assert path.is_relative_to(nowhere) and path.read_bytes() == (made / "tiny.safetensors").read_bytes()
    folder = model_path("zoo:tiny/onnx")
    assert load_export(folder).header.classes.names == ("sky", "road", "car")
    asked = len(server.paths)
    assert (model_path("zoo:tiny"), model_path("zoo:tiny/onnx")) == (path, folder)
    assert len(server.paths) == asked and whereabouts(tiny) == "cache"
    assert not [file for file in nowhere.rglob("*") if file.name.endswith((".part", ".lock", ".etag"))]


def test_a_folder_is_an_address_too(made: Path, monkeypatch: pytest.MonkeyPatch, nowhere: Path) -> None:
    monkeypatch.setenv("LITHESEG_ZOO", str(made))
    assert model_path("zoo:tiny").is_relative_to(nowhere)


def test_a_cut_download_goes_on(server: FileServer, made: Path) -> None:
    list_zoo()
    server.cuts = [1000] * 4
    with pytest.raises(DownloadError, match=r"cut, with 4000 bytes in .*tiny\.safetensors\.part; run it again"):
        model_path("zoo:tiny")
    server.asked.clear()
    assert model_path("zoo:tiny").read_bytes() == (made / "tiny.safetensors").read_bytes()
    assert server.asked == ["bytes=4000-"]


def test_two_at_once_fetch_it_once(server: FileServer) -> None:
    list_zoo()
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(zoo_path("tiny/onnx"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 3 and len(set(found)) == 1
    assert len(server.paths) == len(set(server.paths))


def test_another_content_at_the_address_is_refused(server: FileServer, nowhere: Path) -> None:
    list_zoo()
    server.files["/v1/tiny.safetensors"] = b"something else"
    with pytest.raises(DownloadError, match=r"tiny\.safetensors: SHA-256 is [0-9a-f]{64}, not [0-9a-f]{64}"):
        model_path("zoo:tiny")
    assert not list(nowhere.rglob("tiny*"))


def test_a_newer_version_has_a_place_of_its_own(server: FileServer) -> None:
    first, content = model_path("zoo:tiny"), json.loads(server.files["/v1/index.json"] or b"")
    other = b"a newer file"
    file = {"path": "tiny.safetensors", "sha256": hashlib.sha256(other).hexdigest(), "bytes": len(other)}
    content["models"]["tiny"]["file"] = file
    server.files |= {"/v1/index.json": json.dumps(content).encode(), "/v1/tiny.safetensors": other}
    assert model_path("zoo:tiny") == first, "until the address is asked again"
    list_zoo()
    assert model_path("zoo:tiny").read_bytes() == other and first.is_file()


def test_a_changed_file_is_named(checkout: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    file = checkout / "tiny.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=rf"{file} is not the file of the zoo: .*`git checkout {file}` restores it"):
        load_bundle("zoo:tiny")
    monkeypatch.setattr(module, "checkout_folder", lambda: None)
    file = next(path for path in model_path("zoo:tiny/onnx").iterdir() if path.suffix == ".onnx")
    file.write_bytes(b"changed")
    with pytest.raises(BundleError, match=rf"{file} is not the file of the zoo: .*remove it, and it is fetched again"):
        load_export("zoo:tiny/onnx")
    file.unlink()
    load_export("zoo:tiny/onnx")


def test_what_a_checkout_lacks_is_fetched(checkout: Path, server: FileServer, nowhere: Path) -> None:
    (checkout / "tiny.safetensors").unlink()
    assert model_path("zoo:tiny").is_relative_to(nowhere)


def test_unknown_names(checkout: Path) -> None:
    with pytest.raises(BundleError, match=r"no model 'tinny'\. Did you mean 'tiny'\? It has tiny\."):
        model_path("zoo:tinny")
    with pytest.raises(BundleError, match=r"zoo:tiny has no export 'onx'\. Did you mean 'onnx'"):
        model_path("zoo:tiny/onx")


def test_nothing_anywhere(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "tiny.safetensors").unlink()
    with pytest.raises(DownloadError, match="no address is known: set LITHESEG_ZOO"):
        model_path("zoo:tiny")
    monkeypatch.setattr(module, "checkout_folder", lambda: None)
    with pytest.raises(BundleError, match=r"no model 'tiny'\. It is empty here \(LITHESEG_ZOO names another\)"):
        model_path("zoo:tiny")


def test_an_address_that_is_away(monkeypatch: pytest.MonkeyPatch, server: FileServer) -> None:
    path = model_path("zoo:tiny")
    server.shutdown()
    server.server_close()
    assert model_path("zoo:tiny") == path
    with pytest.raises(BundleError, match=r"no model 'other'\. It has tiny\. Its address could not be asked: http"):
        model_path("zoo:other")
    [tiny], problem = list_zoo()
    assert whereabouts(tiny) == "cache" and "index.json" in problem


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content.update(zoo=2), "version 2, this litheseg reads 1"),
        (lambda content: content.pop("models"), "lacks 'models'"),
        (lambda content: content["models"]["tiny"].pop("licence"), "licence"),
        (lambda content: content["models"]["tiny"]["file"].update(path="../tiny"), "no path inside the zoo"),
        (lambda content: content["models"]["tiny"]["file"].update(path="/etc/passwd"), "no path inside the zoo"),
        (lambda content: content["models"]["tiny"]["file"].update(sha256="abc"), "no SHA-256"),
        (lambda content: content["models"]["tiny"]["file"].update(bytes=-1), "no number of bytes"),
        (lambda content: content["models"]["tiny"]["scores"]["1"].update(iou=[1]), "must hold 'miou'"),
        (lambda content: content["models"].update({"../x": content["models"]["tiny"]}), "is no name"),
        (lambda content: content["models"]["tiny"]["exports"].update(onnx=[]), "in one folder"),
        (lambda content: content["models"]["tiny"].update(widths=3), "not iterable"),
    ],
)
def test_an_index_that_is_none(made: Path, change, reason: str) -> None:  # type: ignore[no-untyped-def]
    content = json.loads((made / "index.json").read_text())
    change(content)
    with pytest.raises(BundleError, match=f"index.json is no index of a zoo .*{reason}"):
        read_index(json.dumps(content), "index.json")


def test_an_index_of_later_may_say_more(made: Path) -> None:
    content = json.loads((made / "index.json").read_text())
    content["models"]["tiny"]["colour"] = "green"
    assert read_index(json.dumps(content), "index.json")["tiny"].what == "streets, tiny"


# --- publishing


def test_what_is_published(made: Path) -> None:
    entry = json.loads((made / "index.json").read_text())["models"]["tiny"]
    file = made / "tiny.safetensors"
    assert entry["file"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert entry["file"]["bytes"] == file.stat().st_size < (made.parent / "trained.safetensors").stat().st_size
    assert entry["scores"] == METRICS and entry["widths"] == [1.0, 0.5] and entry["size"] == [24, 32]
    assert (entry["data"], entry["command"]) == ("noise, CC0", ABOUT["made_by"])
    card = (made / "tiny.md").read_text()
    for text in ("Apache-2.0", "CC0", entry["file"]["sha256"], ABOUT["made_by"], "zoo:tiny", "75.0"):
        assert text in card
    for path in (file, made / "tiny.md", *(made / "tiny-onnx").iterdir()):
        assert b"someone" not in path.read_bytes(), "folders of the machine that trained it"


def test_what_cannot_be_published(made: Path, tmp_path: Path) -> None:
    publish, trained = publisher(), made.parent / "trained.safetensors"
    with pytest.raises(LithesegError, match="has a model 'tiny'"):
        publish.model(trained, "tiny", **ABOUT, zoo=made)
    with pytest.raises(LithesegError, match="has an export 'onnx'"):
        publish.export(made.parent / "export", "tiny", "onnx", zoo=made)
    zoo = shutil.copytree(made, tmp_path / "zoo")
    before = (zoo / "index.json").read_text()
    publish.MOST_BYTES = 1000
    with pytest.raises(LithesegError, match=r"the zoo takes 0\.001 MB"):
        publish.model(trained, "other", **ABOUT, zoo=zoo)
    assert before == (zoo / "index.json").read_text() and not list(zoo.glob("*other*"))
    publish.MOST_BYTES = 10_000_000
    publish.model(trained, "tiny", **{**ABOUT, "what": "again"}, zoo=zoo, force=True)
    assert read_index((zoo / "index.json").read_text(), "it")["tiny"].exports == {} and not (zoo / "tiny-onnx").exists()


def test_an_export_of_another_network_is_not_published(made: Path, tmp_path: Path) -> None:
    zoo = shutil.copytree(made, tmp_path / "zoo")
    content = json.loads((zoo / "index.json").read_text())
    content["models"]["tiny"]["file"]["sha256"] = "0" * 64
    (zoo / "index.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match="was made of another file"):
        publisher().export(made.parent / "export", "tiny", "more", zoo=zoo)


# --- commands


def test_models_lists_the_zoo(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert (
        "zoo:tiny" in shown
        and "1: 75.0, 60.0  0.5: 50.0, 30.0" in shown
        and "checkout" in shown
        and "segmenter" in shown
    )
    assert main(["models", "--json"]) == 0
    [tiny] = json.loads(capsys.readouterr().out)["zoo"]
    assert (tiny["name"], tiny["where"], tiny["scores"]) == ("tiny", "checkout", METRICS)
    assert main(["models", "zoo:tiny"]) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("zoo:tiny/onnx", "CC0", "road", "60.0", "30.0", tiny["file"]["sha256"]))
    assert main(["models", "zoo:tinny"]) == 2
    assert "Did you mean 'tiny'" in capsys.readouterr().err


def test_pull_prints_the_path(server: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("zoo:tiny", "tiny"):
        assert main(["pull", name]) == 0
        assert capsys.readouterr().out.strip() == str(model_path("zoo:tiny"))


def test_commands_take_names(checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("zoo:tiny", "zoo:tiny/onnx"):
        assert main(["profile", name, "--repeats", "1", "--threads", "1", "--size", "24x32", "--json"]) == 0
        assert {row["width"] for row in json.loads(capsys.readouterr().out)["widths"]} == {1.0, 0.5}
    assert main(["export", "zoo:tiny", "--output", str(tmp_path / "out"), "--no-check"]) == 0
    assert load_export(tmp_path / "out").header == load_bundle("zoo:tiny").header
