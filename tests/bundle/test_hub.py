"""Models pushed to and pulled from a hub on this machine, by the hub's own client."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard, constants
from registry import registered
from tiny_export import build_tiny, noise, tiny_bundle
from tiny_hub import TOKEN, TinyHub, commit_of, tiny_hub

from litheseg.bundle import hub as module
from litheseg.bundle.exported import load_export
from litheseg.bundle.names import model_path
from litheseg.cli import main
from litheseg.deploy.export import export_bundle
from litheseg.errors import BundleError, DownloadError, LithesegError
from litheseg.models.bundle import load_bundle
from litheseg.runtime.predictor import Predictor

_registered = registered(tiny=build_tiny)

NAME = "someone/streets"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, _registered: None) -> Path:
    folder = tmp_path_factory.mktemp("made")
    metrics = {"1": {"miou": 0.75}, "0.5": {"miou": 0.5}}
    bundle = tiny_bundle(folder / "model.safetensors", metrics=metrics, provenance={"data": "Street Noise"})
    export_bundle(bundle, folder / "export", size=None, check=False, shared=True)
    return folder


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TinyHub]:
    """With the right token, and a cache that is empty."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    module._pulled.cache_clear()
    with tiny_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def push(*words: str | Path) -> None:
    assert main(["push", *map(str, words)]) == 0


def test_what_is_pushed_is_pulled(hub: TinyHub, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    push(made / "model.safetensors", f"hf:{NAME}", "--licence", "apache-2.0")
    assert capsys.readouterr().out.strip() == f"{hub.url}/{NAME}/commit/{commit_of(NAME, 1)}"
    assert hub.repositories[NAME][1].keys() == {"model.safetensors", "README.md"} and not hub.private
    assert model_path(f"hf:{NAME}").read_bytes() == (made / "model.safetensors").read_bytes()
    image = noise(24, 32)
    ours, theirs = Predictor(made / "model.safetensors", width=0.5), Predictor(f"hf:{NAME}", width=0.5)
    assert np.array_equal(ours(image), theirs(image))
    asked = len(hub.paths)
    load_bundle(f"hf:{NAME}")
    assert len(hub.paths) == asked, "one process asks once"
    assert main(["pull", f"hf:{NAME}@{commit_of(NAME, 1)}"]) == 0
    assert capsys.readouterr().out.strip().endswith("model.safetensors")


def test_large_files_go_to_the_large_file_storage(hub: TinyHub, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # whose storage speaks no HTTP that could stand here
    hub.large = True
    content = (made / "model.safetensors").read_bytes()
    push(made / "model.safetensors", f"hf:{NAME}")
    assert list(hub.objects.values()) == [content] and "/verify" in hub.paths
    assert model_path(f"hf:{NAME}").read_bytes() == content
    push(made / "model.safetensors", f"hf:{NAME}", "--message", "again")
    assert sum(path.startswith("/objects/") for path in hub.paths) == 2, "one upload, one download"


def test_the_card_is_what_the_hub_reads(hub: TinyHub, made: Path) -> None:
    push(made / "model.safetensors", f"hf:{NAME}", "--licence", "Apache-2.0")
    card = ModelCard(hub.repositories[NAME][1]["README.md"].decode(), ignore_metadata_errors=False)
    facts = card.data
    assert (facts.license, facts.library_name, facts.pipeline_tag) == ("apache-2.0", "litheseg", "image-segmentation")
    assert facts.datasets == ["street-noise"] and facts.metrics == ["mean_iou"] and "slimmable" in facts.tags
    scores = {result.metric_name: result.metric_value for result in facts.eval_results}
    assert scores == {"mIoU, width 1": 0.75, "mIoU, width 0.5": 0.5}
    assert facts.eval_results[0].task_type == "image-segmentation"
    assert f'Predictor("hf:{NAME}", width=0.5)' in card.text


def test_an_export_too(hub: TinyHub, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(made / "model.safetensors", f"hf:{NAME}")
    push(made / "export", f"hf:{NAME}", "--message", "for the box")
    assert "licence" in hub.repositories[NAME][2]["README.md"].decode()
    assert model_path(f"hf:{NAME}").name == "model.safetensors"
    find = importlib.util.find_spec
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    module._pulled.cache_clear()
    export = load_export(f"hf:{NAME}")
    assert export.header == load_export(made / "export").header
    image = noise(24, 32)
    ours, theirs = Predictor(made / "export", width=0.5), Predictor(f"hf:{NAME}", width=0.5)
    assert np.array_equal(ours(image), theirs(image))


def test_a_private_repository(hub: TinyHub, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(made / "model.safetensors", f"hf:{NAME}", "--private")
    assert hub.private == {NAME}
    assert model_path(f"hf:{NAME}").is_file()


@pytest.mark.parametrize("action", ["pull", "push"])
def test_a_wrong_token(hub: TinyHub, made: Path, monkeypatch: pytest.MonkeyPatch, action: str, capsys) -> None:  # type: ignore[no-untyped-def]
    hub.repositories[NAME] = [{"model.safetensors": b""}]
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    words = ["pull", f"hf:{NAME}"] if action == "pull" else ["push", str(made / "model.safetensors"), f"hf:{NAME}"]
    assert main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "your token is wrong or may not do this: log in with `hf auth login`, or set HF_TOKEN" in error


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("someone/other", "no such repository, or it is not for everybody"),
        (f"{NAME}@v9", "no revision 'v9' of it"),
        (NAME, "holds no model of litheseg: neither model.safetensors nor export.json"),
        ("streets", "write hf:OWNER/NAME"),
        ("../../etc/passwd", "write hf:OWNER/NAME"),
    ],
)
def test_what_is_not_there(hub: TinyHub, name: str, message: str) -> None:
    hub.repositories[NAME] = [{"README.md": b"something else"}]
    with pytest.raises(DownloadError, match=message):
        model_path(f"hf:{name}")


def test_a_hub_that_is_away(hub: TinyHub, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(made / "model.safetensors", f"hf:{NAME}")
    path = model_path(f"hf:{NAME}")
    module._pulled.cache_clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert model_path(f"hf:{NAME}") == path, "what was pulled before"
    with pytest.raises(DownloadError, match=r"the hub cannot be reached \(.*refused\); go online, or set HF_ENDPOINT"):
        model_path("hf:someone/other")
    assert main(["push", str(made / "model.safetensors"), f"hf:{NAME}"]) == 2


def test_a_truncated_file(hub: TinyHub, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[NAME] = [{"model.safetensors": (made / "model.safetensors").read_bytes()}]
    hub.cut = 100
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    with pytest.raises(DownloadError, match=f"hf:{NAME}: .*again"):
        model_path(f"hf:{NAME}")


def test_something_else_under_the_name(hub: TinyHub) -> None:
    hub.repositories[NAME] = [{"model.safetensors": b"not a model", "export.json": b"{}"}]
    with pytest.raises(BundleError, match="is no litheseg model"):
        load_bundle(f"hf:{NAME}")


def test_what_cannot_be_pushed(made: Path) -> None:
    with pytest.raises(LithesegError, match="write hf:OWNER/NAME"):
        from litheseg.cli.push import push as command

        command(made / "model.safetensors", NAME)
