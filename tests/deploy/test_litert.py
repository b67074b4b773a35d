"""LiteRT: the engine on a hand-made file, where the runtime is; conversion and int8, where the converter is."""

from __future__ import annotations

import importlib.util
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from registry import registered
from tiny_export import (
    CLASSES,
    MEAN,
    STD,
    build_tiny,
    noise,
    photos,
    plain_labels,
    plain_logits,
    randomise,
    tiny_bundle,
)
from tiny_quantize import SIZE, Fragile, fragile_bundle, fragile_data, picture
from torch import nn

import litheseg.runtime.engines as engines
from litheseg.bundle.description import append_description
from litheseg.bundle.exported import Artefact, Export, description, load_export
from litheseg.bundle.header import BundleHeader
from litheseg.deploy import litert
from litheseg.deploy.export import export_bundle
from litheseg.deploy.network import deployed
from litheseg.deploy.quantize import Quantizer, calibration_samples
from litheseg.deploy.quantize.litert_network import LitertNetwork
from litheseg.errors import BundleError, LithesegError, MissingExtraError, ModelError
from litheseg.models import build_model
from litheseg.models.bundle import save_bundle
from litheseg.nn import slim
from litheseg.runtime.engines import open_engine
from litheseg.runtime.predictor import Predictor


def _here(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


runs = pytest.mark.skipif(not _here("ai_edge_litert"), reason="the runtime of LiteRT is not installed")
converts = pytest.mark.skipif(not _here("litert_torch"), reason="the converter to LiteRT is not installed")

_registered = registered(tiny=build_tiny, fragile=lambda num_classes, *, outliers, **_: Fragile(num_classes, outliers))


# ---------------------------------------------------------------- the engine


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose network gives the image itself as logits: one CAST, 1 x 3 x 4 x 6."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    tools = pytest.importorskip("ai_edge_litert.tools.flatbuffer_utils")
    graph, model = schema.SubGraphT(), schema.ModelT()
    for name, kind in (("image", schema.TensorType.UINT8), ("logits", schema.TensorType.FLOAT32)):
        tensor = schema.TensorT()
        tensor.name, tensor.type, tensor.shape, tensor.buffer = name, kind, [1, 3, 4, 6], 0
        graph.tensors = [*(graph.tensors or []), tensor]
    cast, code = schema.OperatorT(), schema.OperatorCodeT()
    cast.inputs, cast.outputs, graph.inputs, graph.outputs, graph.operators = [0], [1], [0], [1], [cast]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CAST
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT()]
    path = tmp_path_factory.mktemp("lone") / "litert-fp32-w1.tflite"
    path.write_bytes(tools.convert_object_to_bytearray(model))
    header = BundleHeader({"name": "cast", "args": {}}, CLASSES, size=(4, 6))
    artefact = Artefact("litert", 1.0, "fp32", (4, 6), "NCHW", "logits", path.name)
    append_description(path, description(header, [artefact], {}))
    return path


@runs
def test_a_lone_file_runs_and_threads_may_share_it(lone: Path) -> None:
    export = load_export(lone)
    assert export.classes == CLASSES and export.runtimes == ("litert",)
    engine = open_engine(export, threads=1)
    assert (engine.runtime, engine.precision, engine.output, engine.size) == ("litert", "fp32", "logits", (4, 6))
    images = [noise(4, 6, seed) for seed in range(24)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(engine, images))
    for image, logits in zip(images, results, strict=True):
        assert logits.dtype == np.float32
        assert np.array_equal(logits, image.transpose(2, 0, 1))
    assert np.array_equal(engine.labels(results[0], (4, 6)), images[0].argmax(2))
    results[0] += 1  # the caller's own
    assert np.array_equal(Predictor(lone)(images[0]), images[0].argmax(2))


@runs
def test_what_is_wrong_with_a_file_or_the_runtime_is_one_error(
    lone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = load_export(lone)
    with pytest.raises(LithesegError, match="LiteRT runs on the CPU here, not on 'cuda'"):
        open_engine(export, device="cuda")
    with pytest.raises(LithesegError, match="litert runs no bf16 networks"):
        open_engine(export, runtime="litert", precision="bf16")
    broken = Export(tmp_path, export.header, export.artefacts)
    (tmp_path / lone.name).write_bytes(lone.read_bytes()[:100])
    with pytest.raises(LithesegError, match=r"ai-edge-litert .* cannot run .*litert-fp32-w1\.tflite"):
        open_engine(broken)
    monkeypatch.setattr(engines, "version", lambda _: "1.0.1")
    with pytest.raises(LithesegError, match=r"too old .*pip install --upgrade 'ai-edge-litert>=1\.4"):
        open_engine(export)


def test_without_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = BundleHeader({"name": "cast", "args": {}}, CLASSES, size=(4, 6))
    export = Export(tmp_path, header, (Artefact("litert", 1.0, "fp32", (4, 6), "NCHW", "logits", "a.tflite"),))
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'litheseg[litert]'")):
        open_engine(export, runtime="litert")


# ---------------------------------------------------------------- the converter


class _Pools(nn.Module):
    """Pools of which LiteRT has none, of odd sizes and paddings."""

    def __init__(self) -> None:
        super().__init__()
        self.pools = nn.ModuleList(
            nn.AvgPool2d(kernel, stride, padding, count_include_pad=False)
            for kernel, stride, padding in ((5, 2, 2), (9, 4, 4), ((3, 5), (1, 3), (1, 2)), (17, 8, 8))
        )


@pytest.mark.parametrize("size", [(12, 15), (3, 4), (33, 8)])
def test_pools_that_leave_out_the_padding(size: tuple[int, int]) -> None:
    pools = _Pools()
    prepared = litert._without_uneven_pools(pools)
    image = torch.randn(1, 5, *size, generator=torch.Generator().manual_seed(0))
    for pool, counted in zip(pools.pools, prepared.pools, strict=True):  # type: ignore[arg-type]
        assert isinstance(pool, nn.AvgPool2d) and not isinstance(counted, nn.AvgPool2d)
        torch.testing.assert_close(counted(image), pool(image), rtol=1e-5, atol=1e-6)


def test_without_the_converter_or_with_an_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = deployed(tiny_bundle(tmp_path / "model.safetensors"), 0.5)
    with pytest.raises(LithesegError, match=re.escape("one size of images; give it (--size HxW)")):
        litert.litert_model(network, None)
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'litheseg[litert-export]'")):
        litert.litert_model(network, (24, 32))
    monkeypatch.setitem(sys.modules, "litert_torch", Any)  # type: ignore[arg-type]
    monkeypatch.setattr(litert, "version", lambda _: "0.7.2")
    with pytest.raises(LithesegError, match=r"litert-torch 0\.7\.2 is too old .*pip install --upgrade"):
        litert.litert_model(network, (24, 32))


@converts
@runs
def test_a_converted_network_gives_what_pytorch_gives(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "model.safetensors")
    data = photos(tmp_path / "photos")
    export = export_bundle(bundle, tmp_path / "export", formats=("litert",), widths=[0.5], data=data)
    [artefact] = load_export(export.path).artefacts
    assert artefact.path == "litert-fp32-w0.5.tflite"
    image = noise(24, 32)
    expected = plain_logits(bundle, 0.5, image)
    engine = open_engine(export)
    np.testing.assert_allclose(engine(image), expected, rtol=1e-4, atol=1e-5)
    assert np.array_equal(engine.labels(engine(image), (50, 70)), plain_labels(expected, (50, 70)))
    code = (export.path / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "ai_edge_litert" in code
    names = [name for name, _, _ in _operations(export.file(artefact))]
    assert "stem.0" in names and b"litheseg" not in export.file(artefact).read_bytes().rpartition(b"\nlitheseg ")[0]


def _operations(path: Path) -> list[tuple[str, str, bool]]:
    from litheseg.deploy.quantize.litert_network import _operations

    return list(_operations(path.read_bytes()))


@pytest.mark.slow
@converts
@runs
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("output", ["logits", "labels"])
def test_the_default_model_with_its_pools(layout: str, output: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = (96, 128)
    header = BundleHeader({"name": "segmenter", "args": {}}, CLASSES, size=size, mean=MEAN, std=STD)
    bundle = save_bundle(tmp_path / "model.safetensors", randomise(slim(build_model("segmenter", 3), (1.0,))), header)
    data, how = photos(tmp_path / "photos"), {"layout": layout, "output_kind": output}
    export = export_bundle(bundle, tmp_path / "export", formats=("litert",), data=data, **how)  # type: ignore[arg-type]
    kinds = {kind for _, kind, _ in _operations(export.file(export.artefacts[0]))}
    assert "AVERAGE_POOL_2D" in kinds and not any(kind.startswith("STABLEHLO") for kind in kinds)
    image = noise(*size)
    expected, found = plain_logits(bundle, 1.0, image), open_engine(export)(image)
    if output == "labels":
        assert float((found == plain_labels(expected, size)).mean()) > 0.999
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


@converts
def test_an_operator_that_litert_lacks_is_named_with_its_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Exotic(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.special.bessel_j0(x)

    network = deployed(tiny_bundle(tmp_path / "model.safetensors"), 0.5)
    network.network.set_submodule("stem.2", Exotic())
    with pytest.raises(ModelError, match=r"LiteRT cannot hold this network .*bessel_j0.* in layer stem\.2"):
        litert.litert_model(network, (24, 32))


# ---------------------------------------------------------------- int8


@converts
@runs
def test_int8_keeps_what_it_breaks_in_floating_point(tmp_path: Path) -> None:
    bundle, data = fragile_bundle(tmp_path, outliers=[2]), fragile_data(tmp_path / "data")
    calibration, check = calibration_samples(bundle, data)
    quantizer = Quantizer(bundle, calibration, check, threads=1, formats=("litert",))
    export = export_bundle(bundle, tmp_path / "export", formats=("litert",), data=data, further=quantizer)
    int8 = export.find(precision="int8")
    _, report = quantizer.quantize(export, export.find(precision="fp32"))
    assert [(len(trial.kept), trial.holds) for trial in report.trials] == [(0, False), (1, True)]
    assert report.kept[0].name == "layers.2"
    assert report.result.certificate.miou is not None and report.result.certificate.miou > 0.99
    kinds = {name: integer for name, kind, integer in _operations(export.file(int8)) if "CONV" in kind}
    assert len(kinds) == 6 and [name for name, integer in kinds.items() if not integer] == ["layers.2"]
    image, labels = picture(7)
    engine = open_engine(export, precision="int8", threads=1)
    assert engine(image).dtype == np.float32
    assert np.array_equal(engine(image).argmax(0), labels)
    assert int8.size == SIZE and export.own_bytes(int8) < export.own_bytes(export.find(precision="fp32"))


def test_int8_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_quantizer", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'litheseg[litert-export]'")):
        LitertNetwork.require()


@runs
def test_a_file_of_another_maker_is_refused(lone: Path, tmp_path: Path) -> None:
    foreign = tmp_path / lone.name
    foreign.write_bytes(lone.read_bytes().rpartition(b"\nlitheseg ")[0])
    with pytest.raises(BundleError, match="was not exported by litheseg"):
        load_export(foreign)
