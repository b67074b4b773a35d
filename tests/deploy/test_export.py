from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from registry import registered
from tiny_export import CLASSES, build_tiny, noise, photos, plain_labels, plain_logits
from torch import Tensor

import litheseg.deploy.conversion as conversion
import litheseg.deploy.export as room
import litheseg.deploy.torch_export as torch_export
from litheseg.bundle.exported import Artefact, Export, description, load_export
from litheseg.deploy.export import export_bundle
from litheseg.deploy.network import deployed
from litheseg.deploy.onnx import save_onnx
from litheseg.deploy.openvino import save_openvino
from litheseg.deploy.parity import Certificate
from litheseg.deploy.torch_export import export_program, save_archive
from litheseg.errors import DataError, FolderInUseError, LithesegError, MissingExtraError, ModelError, WidthError
from litheseg.files import file_digest
from litheseg.models import MODELS, build_model
from litheseg.models.bundle import Bundle
from litheseg.runtime.engines import open_engine

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

FORMATS = ("onnx", "openvino", "torch")


_registered = registered(tiny=build_tiny)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def fixed(bundle: Bundle, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """All formats at the training size."""
    target = tmp_path_factory.mktemp("fixed") / "export"
    return export_bundle(bundle, target, formats=FORMATS, widths=[0.5], data=pictures)


@pytest.fixture(scope="module")
def free(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """All formats at any size, giving labels, channels first."""
    return export_bundle(
        bundle,
        tmp_path_factory.mktemp("free") / "export",
        formats=FORMATS,
        widths=[0.5],
        size=None,
        layout="NCHW",
        output_kind="labels",
        check=False,
    )


def test_the_folder(fixed: Export) -> None:
    names = ["onnx-fp32-w0.5.onnx", "openvino-fp32-w0.5.bin", "openvino-fp32-w0.5.xml", "torch-fp32-w0.5.pt2"]
    found = sorted(path.name for path in fixed.folder.iterdir())
    assert found == ["README.md", "certificate.json", "export.json", *names]
    assert fixed.widths == (0.5,) and {artefact.size for artefact in fixed.artefacts} == {(24, 32)}
    assert fixed.provenance["bundle"] == "model.safetensors" and "openvino" in fixed.provenance
    assert list(fixed.folder.parent.iterdir()) == [fixed.folder]


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_every_format_gives_what_pytorch_gives(fixed: Export, bundle: Bundle, runtime: str) -> None:
    image = noise(24, 32, seed=7)
    logits = open_engine(fixed, runtime=runtime)(image)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, plain_logits(bundle, 0.5, image), rtol=1e-4, atol=1e-5)


def test_all_widths_at_an_odd_size(bundle: Bundle, tmp_path: Path) -> None:
    export = export_bundle(bundle, tmp_path / "odd", formats=("torch",), size=(65, 97), check=False)
    image = noise(65, 97)
    assert export.widths == (1.0, 0.5)
    for width in export.widths:
        logits = open_engine(export, width=width)(image)
        np.testing.assert_allclose(logits, plain_logits(bundle, width, image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(24, 32), (65, 97), (1, 1), (7, 200)])
def test_any_size_channels_first_labels(free: Export, bundle: Bundle, size: tuple[int, int]) -> None:
    image = noise(*size, seed=3)
    expected = plain_labels(plain_logits(bundle, 0.5, image), size)
    for runtime in ("torch", "onnxruntime", "openvino"):
        labels = open_engine(free, runtime=runtime)(image)
        assert labels.dtype == np.uint8 and np.array_equal(labels, expected)


def test_onnx_files_as_others_see_them(fixed: Export, free: Export) -> None:
    model = onnx.load(str(fixed.file(fixed.find(0.5, "onnxruntime"))))
    onnx.checker.check_model(model, full_check=True)
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"BatchNormalization", "Dropout"}
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    session = onnxruntime.InferenceSession(str(fixed.file(fixed.find(0.5, "onnxruntime"))))
    [[image], [logits]] = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", [1, 24, 32, 3])
    assert (logits.name, logits.type, logits.shape) == ("logits", "tensor(float)", [1, 3, 6, 8])
    session = onnxruntime.InferenceSession(str(free.file(free.find(0.5, "onnxruntime"))))
    assert session.get_inputs()[0].shape == [1, 3, "height", "width"]
    assert session.get_outputs()[0].type == "tensor(uint8)"


def test_a_file_copied_elsewhere_still_knows_what_it_is(fixed: Export, tmp_path: Path) -> None:
    for form, suffixes in (("onnx", [".onnx"]), ("openvino", [".xml", ".bin"]), ("torch", [".pt2"])):
        artefact = next(found for found in fixed.artefacts if found.format == form)
        for suffix in suffixes:
            source = fixed.file(artefact).with_suffix(suffix)
            (tmp_path / f"copied{suffix}").write_bytes(source.read_bytes())
        alone = load_export(tmp_path / f"copied{suffixes[0]}")
        assert (alone.classes, alone.header, alone.widths) == (CLASSES, fixed.header, (0.5,))
        assert (alone.artefacts[0].path, alone.artefacts[0].format) == (f"copied{suffixes[0]}", form)
        assert alone.provenance == fixed.provenance
        image = noise(24, 32)
        assert np.array_equal(
            open_engine(alone)(image), open_engine(fixed, width=0.5, runtime=alone.artefacts[0].runtimes[0])(image)
        )
    (tmp_path / "copied.bin").unlink()
    with pytest.raises(LithesegError, match=r"copied\.xml lacks its weights, copied\.bin"):
        load_export(tmp_path / "copied.xml")


def test_nothing_in_the_files_tells_where_they_were_made(fixed: Export, free: Export) -> None:
    for export in (fixed, free):
        for path in export.folder.iterdir():
            assert str(Path(room.__file__).parents[2]).encode() not in path.read_bytes(), path


def test_the_certificate_lies_beside_the_files_and_in_the_card(fixed: Export) -> None:
    content = json.loads((fixed.folder / "certificate.json").read_text())
    assert content["threshold"] == 0.999
    assert set(content["certificates"]) == {artefact.path for artefact in fixed.artefacts}
    for found in content["certificates"].values():
        assert (found["images"], found["pixels"]) == (3, 3 * 30 * 44)
        assert found["agreement"] > 0.999 and found["miou"] is None
        assert 0 <= found["largest_difference"] < 1e-4
    card = (fixed.folder / "README.md").read_text()
    assert "torch-fp32-w0.5.pt2" in card and "3 images" in card and "128, 64, 128" in card


@pytest.mark.parametrize("which", FORMATS)
def test_the_code_in_the_card_runs(
    which: str, bundle: Bundle, fixed: Export, pictures: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from litheseg.deploy.readme import export_readme

    only = Export(fixed.folder, fixed.header, tuple(a for a in fixed.artefacts if a.format == which))
    code = export_readme(only, {}).partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(fixed.folder)
    names: dict[str, Any] = {}
    exec(code.replace("photo.jpg", str(pictures / "photo0.png")), names)
    assert np.array_equal(names["labels"][0], plain_logits(bundle, 0.5, names["image"][0]).argmax(0))


# --- what stops an export


def test_a_network_that_disagrees_leaves_nothing(
    bundle: Bundle, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = room.deployed

    def broken(*arguments: Any, **options: Any) -> Any:
        network = real(*arguments, **options)
        network.network.classifier.bias += torch.tensor([0.5, 0.0, 0.0])
        return network

    monkeypatch.setattr(room, "deployed", broken)
    options: dict[str, Any] = {"widths": [0.5], "formats": ("torch",), "data": pictures}
    with pytest.raises(
        LithesegError, match=r"(?s)torch-fp32-w0\.5\.pt2 labels .* of 3,960 pixels unlike PyTorch.*photo"
    ):
        export_bundle(bundle, tmp_path / "export", **options)
    assert list(tmp_path.iterdir()) == []
    allowed = export_bundle(bundle, tmp_path / "export", threshold=0, **options)
    found = json.loads((allowed.folder / "certificate.json").read_text())["certificates"]["torch-fp32-w0.5.pt2"]
    assert found["agreement"] < 0.99 and found["largest_difference"] == pytest.approx(0.5, abs=1e-4)


def test_a_size_that_was_baked_in_is_found_out(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = room.deployed

    def baked(*arguments: Any, **options: Any) -> Any:
        network = real(*arguments, **options)
        forward = network.network.outputs

        def outputs(image: Tensor) -> dict[str, Tensor]:
            return forward(image) if image.shape[-1] < 1000 else {"logits": 2 * forward(image)["logits"]}

        network.network.outputs = outputs
        return network

    monkeypatch.setattr(room, "deployed", baked)
    with pytest.raises(ModelError, match=r"64x64, it differs from PyTorch; .*--size HxW"):
        export_bundle(bundle, tmp_path / "export", formats=("torch",), widths=[0.5], size=None, check=False)
    assert list(tmp_path.iterdir()) == []


def test_two_exports_do_not_write_one_folder(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one writes, a second is refused, and what the first wrote stays."""
    options: dict[str, Any] = {"widths": [0.5], "formats": ("torch",), "check": False}
    refused = []

    def another(*arguments: Any) -> Any:
        with pytest.raises(FolderInUseError, match="export is in use by process"):
            export_bundle(bundle, tmp_path / "export", force=True, **options)
        refused.append(True)
        return export_program(*arguments)

    monkeypatch.setattr(conversion, "export_program", another)
    export = export_bundle(bundle, tmp_path / "export", **options)
    assert refused and load_export(export.path).widths == (0.5,) and list(tmp_path.iterdir()) == [export.path]


def test_what_is_there_is_replaced_only_if_it_is_an_export_and_that_is_wanted(bundle: Bundle, tmp_path: Path) -> None:
    options: dict[str, Any] = {"widths": [0.5], "formats": ("torch",), "check": False}
    target = tmp_path / "export"
    target.mkdir()
    export_bundle(bundle, target, **options)
    with pytest.raises(LithesegError, match=r"holds an export; replace it with --force"):
        export_bundle(bundle, target, **options)
    (target / "old.txt").write_text("of the former export")
    export_bundle(bundle, target, force=True, **options)
    assert not (target / "old.txt").exists() and list(tmp_path.iterdir()) == [target]
    (target / "export.json").unlink()
    with pytest.raises(LithesegError, match=r"exists and is no export"):
        export_bundle(bundle, target, force=True, **options)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"formats": ["tflite"]}, LithesegError, "unknown format 'tflite'"),
        ({"formats": []}, LithesegError, "no format is given"),
        ({"layout": "CHW"}, LithesegError, "unknown layout 'CHW'"),
        ({"output_kind": "mask"}, LithesegError, "unknown output 'mask'"),
        ({"threshold": 99.9}, LithesegError, "threshold 99.9 is no share"),
        ({"widths": [0.3]}, WidthError, "no width 0.3"),
        ({}, DataError, "does not say which data it was trained on"),
        ({"data": "nowhere"}, DataError, "nowhere does not exist"),
    ],
)
def test_bad_arguments(
    bundle: Bundle, tmp_path: Path, options: dict[str, Any], kind: type[LithesegError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        export_bundle(bundle, tmp_path / "export", **options)
    assert list(tmp_path.iterdir()) == []


def test_an_operator_that_onnx_lacks(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = room.deployed

    def exotic(*arguments: Any, **options: Any) -> Any:
        network = real(*arguments, **options)
        forward = network.network.outputs
        network.network.outputs = lambda image: {"logits": torch.special.airy_ai(forward(image)["logits"])}
        return network

    monkeypatch.setattr(room, "deployed", exotic)
    with pytest.raises(ModelError, match=r"ONNX cannot hold this network .*airy_ai"):
        export_bundle(bundle, tmp_path / "export", widths=[0.5], check=False)
    assert list(tmp_path.iterdir()) == []


def test_packages_that_are_not_installed(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"onnxscript.*pip install 'litheseg\[export\]'"):
        export_bundle(bundle, tmp_path / "export", widths=[0.5], check=False)
    assert list(tmp_path.iterdir()) == []


def test_writers_say_that_the_disk_is_full(fixed: Export, bundle: Bundle, tmp_path: Path) -> None:
    for suffix in (".onnx", ".xml", ".pt2"):
        (tmp_path / f"x{suffix}").symlink_to("/dev/full")
    source = fixed.file(fixed.find(runtime="onnxruntime"))
    with pytest.raises(OSError):
        save_onnx(onnx.load(str(source)), tmp_path / "x.onnx")
    with pytest.raises(OSError):
        save_openvino(source, tmp_path / "x.xml", "")
    with pytest.raises(OSError):
        save_archive(export_program(deployed(bundle, 0.5), (24, 32)), tmp_path / "x.pt2", "")


def test_an_export_that_cannot_be_written_leaves_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_program: object, path: Path, _text: str) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch_export, "save_archive", fails)
    with pytest.raises(LithesegError, match=r"cannot write .*export: No space left on device; free space"):
        export_bundle(bundle, tmp_path / "export", formats=("torch",), widths=[0.5], check=False)
    assert list(tmp_path.iterdir()) == []


_FULL = """
import resource, sys
from litheseg.models.bundle import load_bundle
from litheseg.deploy.export import export_bundle
from litheseg.errors import LithesegError
from litheseg.models import MODELS
from tiny_export import build_tiny
MODELS["tiny"] = build_tiny
bundle = load_bundle(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
for name in ("onnx", "openvino", "torch"):
    try:
        export_bundle(bundle, sys.argv[2], formats=(name,), widths=(0.5,), check=False)
    except LithesegError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_full_disk_is_one_error_and_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    target, tests = tmp_path / "export", Path(__file__).parents[1]
    command = [sys.executable, "-c", _FULL, str(bundle.path), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tests, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(f"cannot write {target}")]
    assert len(lines) == 3, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_further_networks_join_the_export(bundle: Bundle, tmp_path: Path) -> None:
    found = Certificate("onnxruntime", 1, "by hand", 4, 1, "photo", 0.75, None, 1.0, ("a", "b", "c"))

    def twin(export: Export) -> Iterator[tuple[Artefact, Certificate, dict[str, Any]]]:
        for artefact in export.artefacts:
            path = artefact.path.replace("fp32", "int8")
            made = replace(artefact, precision="int8", path=path, files={})
            text = description(export.header, [made], export.provenance)
            save_onnx(onnx.load(str(export.file(artefact))), export.folder / path, text)
            yield replace(made, files={path: file_digest(export.folder / path)}), found, {"summary": "one layer"}

    export = export_bundle(bundle, tmp_path / "x", formats=("onnx",), widths=[0.5], check=False, further=twin)
    assert [artefact.precision for artefact in export.artefacts] == ["fp32", "int8"]
    content = json.loads((export.folder / "certificate.json").read_text())
    assert content["certificates"]["onnx-int8-w0.5.onnx"]["differing"] == 1
    assert content["int8"] == {"onnx-int8-w0.5.onnx": {"summary": "one layer"}}
    assert "1 of 4" in (readme := (export.folder / "README.md").read_text()) and "one layer" in readme


@pytest.mark.slow
@pytest.mark.parametrize("size", [(65, 97), None])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_architecture(name: str, size: tuple[int, int] | None, tmp_path: Path) -> None:
    from tiny_export import MEAN, STD, randomise

    from litheseg.bundle.header import BundleHeader
    from litheseg.models.bundle import save_bundle
    from litheseg.nn import slim

    arguments = {"ddrnet": {"base": 8, "rep_blocks": True}, "deeplabv3plus": {"encoder": "mobilenetv2_100"}}.get(
        name, {}
    )
    torch.manual_seed(0)
    model = randomise(slim(build_model(name, 3, **arguments), (1.0,)))
    header = BundleHeader({"name": name, "args": arguments}, CLASSES, size=(64, 96), mean=MEAN, std=STD)
    made = save_bundle(tmp_path / "m.safetensors", model, header)  # type: ignore[arg-type]
    data = photos(tmp_path / "photos", 2, size or (90, 131))
    export = export_bundle(made, tmp_path / "export", formats=FORMATS, size=size, data=data)
    model_proto = onnx.load(str(export.file(export.find(runtime="onnxruntime"))))
    assert "BatchNormalization" not in {node.op_type for node in model_proto.graph.node}
