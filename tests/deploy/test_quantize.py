"""int8 end to end, on a network of which one layer cannot be quantized: all weights but one column round to nothing."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from registry import registered
from tiny_quantize import CHANNELS, SIZE, Fragile, fragile_bundle, fragile_data, picture

import litheseg.deploy.quantize.quantizer as room
from litheseg.bundle.exported import Export, load_export
from litheseg.cli import main
from litheseg.deploy.export import CERTIFICATE_FILE, export_bundle
from litheseg.deploy.quantize import REPORT_SUFFIX, Quantizer, Tolerance, calibration_samples
from litheseg.deploy.quantize.networks import NncfNetwork, QuantizableNetwork
from litheseg.deploy.quantize.onnx_network import OnnxNetwork
from litheseg.deploy.quantize.openvino_network import OpenVinoNetwork
from litheseg.deploy.quantize.quantizer import ToleranceError
from litheseg.deploy.samples import CalibrationImages
from litheseg.errors import DataError, Interrupted, LithesegError, MissingExtraError
from litheseg.models.bundle import Bundle
from litheseg.runtime.engines import open_engine

pytest.importorskip("nncf")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")

READERS: dict[str, type[QuantizableNetwork]] = {"onnx": OnnxNetwork, "openvino": OpenVinoNetwork}


_registered = registered(fragile=lambda num_classes, *, outliers, **_: Fragile(num_classes, outliers))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fragile_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fragile_bundle(tmp_path_factory.mktemp("fragile"), outliers=[2])


@pytest.fixture(scope="module")
def sturdy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fragile_bundle(tmp_path_factory.mktemp("sturdy"), outliers=[])


@pytest.fixture(scope="module")
def export(fragile: Bundle, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The fragile network and its int8 networks."""
    calibration, check = calibration_samples(fragile, data)
    quantizer = Quantizer(fragile, calibration, check, wanted=128, threads=1)
    target = tmp_path_factory.mktemp("export") / "export"
    return export_bundle(fragile, target, formats=("onnx", "openvino"), data=data, further=quantizer)


@pytest.fixture(scope="module")
def plain(sturdy: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A network that can be quantized, in fp32."""
    target = tmp_path_factory.mktemp("plain") / "export"
    return export_bundle(sturdy, target, formats=("onnx", "openvino"), check=False)


def _report(export: Export, form: str) -> dict[str, Any]:
    file = export.folder / f"{form}-int8-w1{REPORT_SUFFIX}"
    content: dict[str, Any] = json.loads(file.read_text())
    return content


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_exactly_the_layer_that_int8_breaks_stays_in_floating_point(export: Export, form: str) -> None:
    report = _report(export, form)
    accepted = report["trials"][report["accepted"]]
    # PyTorch's exporter numbers convolutions from 0, and the first has no number.
    [name] = accepted["kept"]
    assert name.split("/")[0] == "node_conv2d_2"
    assert report["ranking"][0]["name"] == name
    assert report["ranking"][0]["error"] > 100 * report["ranking"][1]["error"]
    assert [(len(trial["kept"]), trial["holds"]) for trial in report["trials"]] == [(0, False), (0, False), (1, True)]
    assert report["trials"][0]["miou"] < 0.5 < 0.99 < accepted["miou"]
    assert report["trials"][0]["violations"] and not accepted["violations"]


def _weights(model: Any) -> dict[str, int]:
    """Convolutions of an ONNX model by the type of their weights."""
    made_by = {value: node for node in model.graph.node for value in node.output}
    kinds = {entry.name: entry.data_type for entry in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            source = made_by.get(node.input[1])
            found[node.name] = kinds[source.input[0] if source is not None else node.input[1]]
    return found


def test_int8_weights_are_int8_in_the_onnx_file(export: Export) -> None:
    weights = _weights(onnx.load(export.folder / "onnx-int8-w1.onnx"))
    kept = weights.pop("node_conv2d_2")
    assert kept == onnx.TensorProto.FLOAT
    assert set(weights.values()) == {onnx.TensorProto.INT8} and len(weights) == 4


def test_int8_weights_are_int8_in_the_openvino_file(export: Export) -> None:
    model = openvino.Core().read_model(export.folder / "openvino-int8-w1.xml")
    types = [node.get_element_type().get_type_name() for node in model.get_ops() if node.get_type_name() == "Constant"]
    assert types.count("i8") == 4
    assert (CHANNELS, CHANNELS, 1, 1) in [
        tuple(node.shape) for node in model.get_ops() if node.get_type_name() == "Constant" and _is_float(node)
    ]


def _is_float(node: Any) -> bool:
    return bool(node.get_element_type().get_type_name() == "f32")


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_files_shrink(export: Export, form: str) -> None:
    report = _report(export, form)
    weights = 2 * 9 * CHANNELS**2  # of the large layers, four bytes each
    assert report["fp32_bytes"] - report["trials"][-1]["size_bytes"] > 2 * weights


@pytest.mark.parametrize(
    ("file", "runtime"),
    [("onnx-int8-w1.onnx", "onnxruntime"), ("onnx-int8-w1.onnx", "openvino"), ("openvino-int8-w1.xml", "openvino")],
)
def test_an_int8_network_runs_wherever_its_format_does(export: Export, file: str, runtime: str) -> None:
    engine = open_engine(export.folder / file, runtime=runtime, precision="int8", threads=1)
    image, labels = picture(7)
    logits = engine(image)
    assert (engine.precision, logits.dtype, logits.shape) == ("int8", np.float32, (3, *SIZE))
    assert float((logits.argmax(0) == labels).mean()) > 0.99
    original = open_engine(export, runtime=runtime, precision="fp32", threads=1)(image)
    assert not np.array_equal(logits, original)  # it is not the fp32 network under another name


def test_an_export_lists_its_int8_networks(export: Export) -> None:
    assert [str(artefact) for artefact in export.artefacts if artefact.precision == "int8"] == [
        "onnx int8 at width 1",
        "openvino int8 at width 1",
    ]
    assert load_export(export.folder).find(precision="int8", runtime="onnxruntime").path == "onnx-int8-w1.onnx"
    assert export.find().precision == "fp32"
    alone = load_export(export.folder / "onnx-int8-w1.onnx")
    assert alone.artefacts[0].precision == "int8" and "nncf" in alone.provenance
    found = json.loads((export.folder / CERTIFICATE_FILE).read_text())
    assert found["certificates"]["onnx-int8-w1.onnx"]["images"] == 4
    assert found["int8"]["onnx-int8-w1.onnx"]["kept"] == ["node_conv2d_2"]
    assert "kept in floating point: node_conv2d_2 (Conv)" in (export.folder / "README.md").read_text()


def test_the_summary_says_what_happened(export: Export) -> None:
    found = json.loads((export.folder / CERTIFICATE_FILE).read_text())["int8"]["onnx-int8-w1.onnx"]
    lines = found["summary"].splitlines()
    assert "calibrated on 10 images" in lines[0] and "128 were wanted" in lines[0]
    assert "checked in onnxruntime on 4 labelled images" in lines[0]
    assert len(lines) == 5 and lines[3].endswith(": taken")
    assert lines[4] == "  kept in floating point: node_conv2d_2 (Conv)"


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_the_same_images_give_the_same_file(
    plain: Export, sturdy: Bundle, data: Path, form: str, tmp_path: Path
) -> None:
    original = plain.find(runtime="onnxruntime" if form == "onnx" else "openvino")
    network = READERS[form].read(plain.file(original), "NHWC")
    images = CalibrationImages(calibration_samples(sturdy, data)[0], SIZE)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    files = [network.quantized(images).write(tmp_path / f"{index}{network.suffix}") for index in range(2)]
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_alone_quantized_layers_leave_the_rest_as_it_was(
    plain: Export, sturdy: Bundle, data: Path, form: str, tmp_path: Path
) -> None:
    runtime = "onnxruntime" if form == "onnx" else "openvino"
    original = plain.find(runtime=runtime)
    images = CalibrationImages(calibration_samples(sturdy, data)[0], SIZE)
    probe = READERS[form].read(plain.file(original), "NHWC").quantized(images, corrected=False, probe=True)
    layers = probe.layers()
    # The last goes by the name of the network's output.
    assert [name.split("/")[0] for name, _ in layers[:4]] == [f"node_conv2d{n}" for n in ("", "_1", "_2", "_3")]
    assert len(layers) == 5 and {kind for _, kind in layers} <= {"Conv", "Convolution"}
    quantizers = _onnx_quantizers if form == "onnx" else _openvino_quantizers
    assert quantizers(probe) == 10
    for name, _ in layers:
        assert quantizers(probe.only(name)) == 2  # of its weights and of what it reads
    assert quantizers(probe) == 10  # which the others have not changed


def _onnx_quantizers(network: QuantizableNetwork) -> int:
    names = [node.op_type for node in network.model.graph.node]
    assert names.count("QuantizeLinear") == names.count("DequantizeLinear")
    onnx.checker.check_model(network.model)
    return names.count("QuantizeLinear")


def _openvino_quantizers(network: QuantizableNetwork) -> int:
    return [node.get_type_name() for node in network.model.get_ops()].count("FakeQuantize")


def test_a_network_that_cannot_be_quantized_is_refused(
    export: Export, fragile: Bundle, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "fewest_kept", lambda layers, holds, limit: None)  # as if no number of layers helped
    files = {path: path.stat().st_mtime_ns for path in export.folder.iterdir()}
    quantizer = Quantizer(fragile, *calibration_samples(fragile, data), threads=1)
    expected = r"onnx at width 1 does not hold in int8: at best .*, mIoU fell by .* points .*red fell by.*--tolerance"
    with pytest.raises(LithesegError, match=expected):
        quantizer.quantize(export, export.find(precision="fp32", runtime="onnxruntime"))
    assert files == {path: path.stat().st_mtime_ns for path in export.folder.iterdir()}


def test_what_fails_or_is_stopped_leaves_the_fp32_networks(
    sturdy: Bundle, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantizer = Quantizer(sturdy, *calibration_samples(sturdy, data, count=4), threads=1)
    real, failure = NncfNetwork.quantized, list[BaseException]()

    def second_fails(self: NncfNetwork, images: CalibrationImages, **options: Any) -> QuantizableNetwork:
        if isinstance(self, OpenVinoNetwork):
            raise failure[-1]
        return real(self, images, **options)

    monkeypatch.setattr(NncfNetwork, "quantized", second_fails)
    options: dict[str, Any] = {"formats": ("onnx", "openvino"), "check": False, "further": quantizer, "force": True}
    for error, expected in ((LithesegError("broken"), LithesegError), (KeyboardInterrupt(), Interrupted)):
        failure.append(error)
        with pytest.raises(expected, match=r"holds what is whole: onnx-fp32-w1\.onnx, .*onnx-int8-w1\.onnx"):
            export_bundle(sturdy, tmp_path / "export", **options)
        kept = load_export(tmp_path / "export")
        precisions = [(artefact.format, artefact.precision) for artefact in kept.artefacts]
        assert precisions == [("onnx", "fp32"), ("openvino", "fp32"), ("onnx", "int8")]
        image, labels = picture(3)
        for precision in ("fp32", "int8"):
            mask = open_engine(kept, runtime="onnxruntime", precision=precision, threads=1)(image).argmax(0)
            assert float((mask == labels).mean()) > 0.99


def test_one_that_does_not_hold_leaves_the_others(sturdy: Bundle, plain: Export, data: Path) -> None:
    quantizer = Quantizer(sturdy, *calibration_samples(sturdy, data, count=4), threads=1)
    made = []

    def first_fails(_: Quantizer, export: Export, artefact: Any) -> Any:
        made.append(artefact)
        raise ToleranceError(f"{artefact.path} does not hold")

    two = replace(plain, artefacts=(plain.artefacts[0], replace(plain.artefacts[0], path="other.onnx")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Quantizer, "quantize", first_fails)
        with pytest.raises(ToleranceError, match=r"w1.onnx does not hold; other.onnx does not hold"):
            list(quantizer(two))
    assert len(made) == 2


def test_any_size_channels_first_labels_and_images_without_labels(sturdy: Bundle, data: Path, tmp_path: Path) -> None:
    calibration, check = calibration_samples(sturdy, data / "images" / "train", count=4)
    assert (len(calibration), len(check)) == (4, 2) and not check.labelled
    quantizer = Quantizer(sturdy, calibration, check, tolerance=Tolerance(agreement=0.9), threads=1)
    options: dict[str, Any] = {"size": None, "layout": "NCHW", "output_kind": "labels", "check": False}
    export = export_bundle(sturdy, tmp_path / "export", further=quantizer, **options)
    engine = open_engine(export, precision="int8", threads=1)
    image, labels = picture(3)
    assert float((engine(image) == labels).mean()) > 0.99
    assert engine(np.tile(image, (2, 3, 1))).shape == (48, 96)
    assert "images without labels" in (export.folder / "README.md").read_text()


def test_what_cannot_be_quantized(plain: Export, sturdy: Bundle, data: Path, export: Export, tmp_path: Path) -> None:
    quantizer = Quantizer(sturdy, *calibration_samples(sturdy, data))
    with pytest.raises(LithesegError, match="onnx or openvino"):
        export_bundle(sturdy, tmp_path / "export", formats=("torch",), check=False, further=quantizer)
    with pytest.raises(LithesegError, match="onnx int8 at width 1 cannot become int8"):
        quantizer.quantize(export, export.find(precision="int8", runtime="onnxruntime"))


def _opened(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> set[Path]:
    """The files that Pillow opens meanwhile."""
    seen: set[Path] = set()
    real = Image.open

    def spy(file: Any, *args: Any, **kwargs: Any) -> Any:
        seen.add(Path(file))
        return real(file, *args, **kwargs)

    monkeypatch.setattr(Image, "open", spy)
    work()
    monkeypatch.undo()
    return seen


def test_calibration_reads_training_images_only(
    plain: Export, sturdy: Bundle, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration, check = calibration_samples(sturdy, data, count=5)
    images = CalibrationImages(calibration, SIZE)
    network = OnnxNetwork.read(plain.folder / "onnx-fp32-w1.onnx", "NHWC")
    seen = _opened(monkeypatch, lambda: network.quantized(images))
    assert len(seen) == 5 and {path.parent for path in seen} == {data / "images" / "train"}
    assert {path.parent for path in _opened(monkeypatch, lambda: list(check))} == {
        data / "images" / "val",
        data / "masks" / "val",
    }


def test_the_choice_of_images(sturdy: Bundle, data: Path) -> None:
    few, check = calibration_samples(sturdy, data, count=3)
    assert [sample.id for sample in few.samples] == ["000", "004", "009"] or len(few) == 3
    assert few.samples == calibration_samples(sturdy, data, count=3)[0].samples
    assert {sample.split for sample in few.samples} == {"train"} and {s.split for s in check.samples} == {"val"}
    elsewhere, same = calibration_samples(sturdy, data, folder=data / "images", count=1000)
    assert len(elsewhere) == 14 and same.samples == check.samples


def test_a_folder_of_images_is_divided(sturdy: Bundle, data: Path, tmp_path: Path) -> None:
    calibration, check = calibration_samples(sturdy, data / "images" / "train")
    assert (len(calibration), len(check)) == (8, 2)
    assert not {sample.id for sample in calibration.samples} & {sample.id for sample in check.samples}
    Image.fromarray(picture(0)[0]).save(tmp_path / "lone.png")
    calibration, check = calibration_samples(sturdy, tmp_path)
    assert len(calibration) == len(check) == 1


def test_images_that_are_not_there(sturdy: Bundle, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images to calibrate on"):
        calibration_samples(sturdy, data, folder=tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        calibration_samples(sturdy, data, folder=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no split of 'folder' to calibrate on.*--calibration"):
        calibration_samples(sturdy, data, split="train")
    with pytest.raises(DataError, match="0 images"):
        calibration_samples(sturdy, data, count=0)


def test_a_broken_image_is_named(plain: Export, sturdy: Bundle, data: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    calibration, _ = calibration_samples(sturdy, data, folder=tmp_path)
    network = OnnxNetwork.read(plain.folder / "onnx-fp32-w1.onnx", "NHWC")
    with pytest.raises(DataError, match=r"broken\.png"):
        network.quantized(CalibrationImages(calibration, SIZE))


def test_nothing_is_printed(plain: Export, sturdy: Bundle, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    network = OnnxNetwork.read(plain.folder / "onnx-fp32-w1.onnx", "NHWC")
    network.quantized(CalibrationImages(calibration_samples(sturdy, data)[0], SIZE))
    assert capfd.readouterr() == ("", "")


def test_the_command(sturdy: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    command = ["export", str(sturdy.path), "--output", str(tmp_path / "export"), "--data", str(data)]
    command += ["--precision", "int8", "--calibration-images", "4"]
    assert main([*command, "--calibration", str(tmp_path / "empty")]) == 2
    assert "empty holds no images to calibrate on" in capsys.readouterr().err
    assert not (tmp_path / "export").exists()
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "onnx-int8-w1.onnx" in printed
    assert "calibrated on 4 images (folder, split train)" in printed and ": taken" in printed


def test_without_nncf(sturdy: Bundle, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingExtraError, match="nncf"):  # at once, not after all networks are written
        Quantizer(sturdy, *calibration_samples(sturdy, data))
