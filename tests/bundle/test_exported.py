from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_export import CLASSES
from tiny_onnx import tiny_onnx

from litheseg.bundle.exported import EXPORT_VERSION, Artefact, Export, description, load_export
from litheseg.bundle.header import BundleHeader
from litheseg.errors import BundleError, LithesegError, WidthError
from litheseg.files import file_digest

HEADER = BundleHeader(architecture={"name": "tiny", "args": {}}, classes=CLASSES, widths=(1.0, 0.5), size=(24, 32))


def _artefact(form: str, width: float = 1.0, precision: str = "fp32", **others: Any) -> Artefact:
    path = f"{form}-{precision}-w{width:g}.onnx"
    return Artefact(form, width, precision, (24, 32), "NHWC", "logits", path, **others)


def _network(path: Path, artefact: Artefact, header: BundleHeader = HEADER) -> Artefact:
    """A file that says what it is, and what `export.json` then says of it."""
    path.write_bytes(tiny_onnx(description(header, [artefact], {"litheseg": "0.1.0"})))
    return replace(artefact, path=path.name, files={path.name: file_digest(path)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export of two files that only say what they are."""
    artefacts = [_network(tmp_path / f"onnx-fp32-w{width:g}.onnx", _artefact("onnx", width)) for width in (1.0, 0.5)]
    (tmp_path / "export.json").write_text(description(HEADER, artefacts, {"litheseg": "0.1.0"}))
    return tmp_path


def _change(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / "export.json").read_text())
    changed = change(content)
    (folder / "export.json").write_text(json.dumps(content if changed is None else changed))


def test_what_was_written_is_read(folder: Path) -> None:
    for path in (folder, str(folder), folder / "export.json"):
        export = load_export(path)
        assert (export.header, export.widths, export.classes) == (HEADER, (1.0, 0.5), CLASSES)
        assert export.provenance == {"litheseg": "0.1.0"}
        assert export.file(export.artefacts[1]) == folder / "onnx-fp32-w0.5.onnx"
        assert export.artefacts[0].size == (24, 32)


def _export(*artefacts: Artefact) -> Export:
    return Export(Path("exports/x"), HEADER, artefacts)


def test_what_is_not_said_is_the_widest_the_most_exact_and_the_runtimes_own() -> None:
    export = _export(
        _artefact("onnx", 0.5),
        _artefact("onnx", 1.0, "int8"),
        _artefact("onnx", 1.0),
        _artefact("openvino", 1.0),
    )
    assert str(export.find()) == "openvino fp32 at width 1"
    assert str(export.find(runtime="openvino", width=0.5)) == "onnx fp32 at width 0.5"
    assert str(export.find(runtime="onnxruntime")) == "onnx fp32 at width 1"
    assert str(export.find(precision="int8")) == "onnx int8 at width 1"
    assert str(export.find(precision="bf16", runtime="openvino")) == "openvino fp32 at width 1"


@pytest.mark.parametrize(
    ("wanted", "kind", "message"),
    [
        ({"width": 0.3}, WidthError, "exports/x has no width 0.3, but 1, 0.5"),
        ({"runtime": "torch"}, LithesegError, "has no network for torch, but onnx fp32 at width 1, onnx int8"),
        ({"width": 1.0, "precision": "int8"}, LithesegError, "has no int8 network at width 1, but"),
        ({"runtime": "openvina"}, LithesegError, "unknown runtime 'openvina'. Did you mean 'openvino'"),
        ({"precision": "fp8"}, LithesegError, "unknown precision 'fp8'"),
    ],
)
def test_what_is_not_there_names_what_is(wanted: dict[str, Any], kind: type[LithesegError], message: str) -> None:
    export = _export(_artefact("onnx"), _artefact("onnx", 0.5, "int8"))
    with pytest.raises(kind) as error:
        export.find(**wanted)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(export_version=EXPORT_VERSION + 1),
            "version 2, this litheseg reads 1; pip install --upgrade",
        ),
        (lambda c: c.update(export_version=0), "version 0, this litheseg reads 1; export the model anew"),
        (lambda c: c.pop("export_version") and None, "version None"),
        (lambda c: c.update(litheseg="bundle"), "no export of litheseg"),
        (lambda c: [c], "no export of litheseg"),
        (lambda c: c.pop("header") and None, "damaged"),
        (lambda c: c["header"].update(mean=[1]), "damaged .*'mean'"),
        (lambda c: c.update(artefacts=[]), "names no network"),
        (lambda c: c["artefacts"][0].update(format="caffe"), "'format' is 'caffe', which is none of .*onnx"),
        (lambda c: c["artefacts"][0].update(width=1.5), "'width' is 1.5"),
        (lambda c: c["artefacts"][0].update(size=[24]), "'size'"),
        (lambda c: c["artefacts"][0].update(size=[10**9, 10**9]), "'size'"),
        (lambda c: c["artefacts"][0].update(size=[60_000, 60_000]), "'size'"),
        (lambda c: c["header"].update(size=[60_000, 60_000]), "'size'"),
        (lambda c: c["artefacts"][0].update(precision="bf16"), "'precision'"),
        (lambda c: c["artefacts"][0].update(path="../../etc/passwd"), "no path inside"),
        (lambda c: c["artefacts"][0].update(files={"/etc/passwd": "0"}), "no path inside"),
        (lambda c: c["artefacts"][0].pop("layout") and None, "must have exactly"),
    ],
)
def test_accounts_that_cannot_be_read(folder: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    _change(folder, change)
    with pytest.raises(BundleError, match=rf"(?s)export\.json.*{message}"):
        load_export(folder)


def test_changed_and_missing_files(folder: Path) -> None:
    file = folder / "onnx-fp32-w0.5.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(BundleError, match=r"onnx-fp32-w0\.5\.onnx is not the file that was exported"):
        load_export(folder)
    file.unlink()
    with pytest.raises(BundleError, match=r"onnx-fp32-w0\.5\.onnx of the export cannot be read"):
        load_export(folder)


def test_foreign_paths(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nowhere does not exist; give a folder written by `litheseg export`"):
        load_export(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"has no export\.json"):
        load_export(tmp_path)
    (tmp_path / "export.json").write_text("{")
    with pytest.raises(BundleError, match="no JSON"):
        load_export(tmp_path)
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    with pytest.raises(BundleError, match=r"photo\.png is no export: give a folder, or a file that ends in .*\.onnx"):
        load_export(tmp_path / "photo.png")


def _swap(folder: Path, key: str) -> None:
    def change(content: dict[str, Any]) -> None:
        first, second = content["artefacts"]
        first[key], second[key] = second[key], first[key]

    _change(folder, change)


@pytest.mark.parametrize("keys", [("width",), ("path", "files")])
def test_widths_that_changed_places(folder: Path, keys: tuple[str, ...]) -> None:
    for key in keys:
        _swap(folder, key)
    message = r"w(1|0\.5)\.onnx is not what export\.json says: it has width (1\.0, not 0\.5|0\.5, not 1\.0)"
    with pytest.raises(BundleError, match=message):
        load_export(folder)


@pytest.mark.parametrize(
    "change", [{"precision": "int8"}, {"size": None}, {"size": [24, 64]}, {"layout": "NCHW"}, {"output": "labels"}]
)
def test_an_account_that_the_network_contradicts(folder: Path, change: dict[str, Any]) -> None:
    _change(folder, lambda content: content["artefacts"][0].update(change))
    with pytest.raises(BundleError, match=rf"w1\.onnx is not what export\.json says: it has {next(iter(change))}"):
        load_export(folder)


def test_classes_that_the_networks_do_not_have(folder: Path) -> None:
    _change(folder, lambda content: content["header"]["classes"].update(names=["road", "sky", "car"]))
    with pytest.raises(BundleError, match=r"comes from another model than export\.json says"):
        load_export(folder)


def test_a_network_may_be_called_anything(folder: Path) -> None:
    (folder / "onnx-fp32-w1.onnx").rename(folder / "street.onnx")
    text = (folder / "export.json").read_text().replace("onnx-fp32-w1.onnx", "street.onnx")
    (folder / "export.json").write_text(text)
    assert load_export(folder).find().path == "street.onnx"
    assert load_export(folder / "street.onnx").find().path == "street.onnx"


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".xml"])
def test_network_files_of_others(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"foreign{suffix}").write_bytes(b"\x00hello")
    (tmp_path / "foreign.bin").write_bytes(b"")
    with pytest.raises(BundleError, match=rf"foreign\{suffix} (cannot be read|was not exported|is damaged)"):
        load_export(tmp_path / f"foreign{suffix}")
