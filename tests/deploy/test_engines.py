from __future__ import annotations

import inspect
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from registry import registered
from tiny_export import MEAN, STD, build_tiny, noise, plain_logits

import litheseg.deploy.conversion as conversion
import litheseg.deploy.torch_engine as torch_engines
import litheseg.runtime.engines as room
from litheseg.bundle.exported import Export
from litheseg.deploy.export import export_bundle
from litheseg.deploy.onnx import onnx_model
from litheseg.deploy.torch_engine import ModuleEngine, bundle_engine
from litheseg.errors import DataError, LithesegError, MissingExtraError, WidthError
from litheseg.masks.image_format import ImageFormat
from litheseg.models.bundle import Bundle
from litheseg.runtime.engines import Engine, available_runtimes, open_engine
from litheseg.runtime.in_openvino import openvino_core

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("openvino")

RUNTIMES = ("torch", "onnxruntime", "openvino")  # those of networks of any size; others have tests of their own

_registered = registered(tiny=build_tiny)


@pytest.fixture(scope="module")
def export(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Export:
    folder = tmp_path_factory.mktemp("export") / "x"
    return export_bundle(bundle, folder, formats=("onnx", "torch"), widths=[0.5], check=False)


@pytest.fixture(scope="module")
def engines(bundle: Bundle) -> dict[str, Engine]:
    """Of one network, which is converted to ONNX once only."""
    converted: list[Any] = []

    def once(program: Any, output: str) -> Any:
        converted[:] = converted or [onnx_model(program, output)]
        return converted[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "onnx_model", once)
        return {runtime: bundle_engine(bundle, 0.5, runtime) for runtime in RUNTIMES}


def test_every_runtime_is_here() -> None:
    assert available_runtimes()[: len(RUNTIMES)] == RUNTIMES


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_engines_say_what_they_are_and_agree_with_pytorch(
    engines: dict[str, Engine], bundle: Bundle, runtime: str
) -> None:
    engine = engines[runtime]
    assert isinstance(engine, Engine)
    assert (engine.runtime, engine.precision, engine.output, engine.size) == (runtime, "fp32", "logits", None)
    for size in ((24, 32), (65, 97)):
        image = noise(*size)
        logits = engine(image)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, plain_logits(bundle, 0.5, image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_any_strides(engines: dict[str, Engine], runtime: str) -> None:
    image, engine = noise(24, 32), engines[runtime]
    expected = engine(image)
    frozen = image.copy()
    frozen.flags.writeable = False
    views = [np.asfortranarray(image), image[::-1].copy()[::-1], np.dstack([image, image])[:, :, :3], frozen]
    for view in views:
        assert np.array_equal(engine(view), expected)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_results_are_the_callers_own(engines: dict[str, Engine], runtime: str) -> None:
    first = engines[runtime](noise(24, 32, 0))
    kept = first.copy()
    engines[runtime](noise(24, 32, 1))
    assert np.array_equal(first, kept)
    first += 1


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_threads_may_share_an_engine(engines: dict[str, Engine], runtime: str) -> None:
    images = [noise(24, 32, seed) for seed in range(24)]
    alone = [engines[runtime](image) for image in images]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(engines[runtime], images))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "image",
    [noise(4, 4).astype(np.float32), noise(4, 4)[:, :, :2], noise(4, 4)[:, :, 0], np.zeros((0, 4, 3), np.uint8)],
)
def test_images_of_another_kind(engines: dict[str, Engine], runtime: str, image: np.ndarray) -> None:
    with pytest.raises(DataError, match="give uint8 h x w x 3"):
        engines[runtime](image)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_fixed_size_is_the_only_one(export: Export, runtime: str) -> None:
    engine = open_engine(export, runtime=runtime)
    assert engine.size == (24, 32)
    with pytest.raises(DataError, match=r"image of 32x24, where the export takes 24x32 only.*--size dynamic"):
        engine(noise(32, 24))


def test_a_runtime_is_chosen_among_those_that_are_here(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_engine(export).runtime == "onnxruntime"
    monkeypatch.setattr(room, "available_runtimes", lambda: ("torch", "openvino"))
    assert open_engine(export).runtime == "openvino"
    monkeypatch.setattr(room, "available_runtimes", lambda: ("torch",))
    assert open_engine(export).runtime == "torch"
    monkeypatch.setattr(room, "available_runtimes", lambda: ())
    with pytest.raises(
        LithesegError,
        match=r"onnxruntime or openvino or torch, which this machine does not have: pip install 'onnxruntime'",
    ):
        open_engine(export)


def test_threads_are_limited_and_given_back(bundle: Bundle, export: Export) -> None:
    seen: list[int] = []
    before = torch.get_num_threads()
    module = bundle.plain(0.5)
    module.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    module.outputs = _noting(module.outputs, seen)  # type: ignore[assignment, operator]
    ModuleEngine(module, ImageFormat(mean=MEAN, std=STD), threads=before + 1)(noise(24, 32))
    assert seen == [before + 1] and torch.get_num_threads() == before
    engine: Any = open_engine(export, runtime="openvino", threads=1)
    model = inspect.getclosurevars(engine._network).nonlocals["model"]
    assert model.get_property("INFERENCE_NUM_THREADS") == 1
    assert str(model.get_property("INFERENCE_PRECISION_HINT")) == "<Type: 'float32'>"


def _noting(outputs: Any, seen: list[int]) -> Any:
    def noted(image: torch.Tensor) -> Any:
        seen.append(torch.get_num_threads())
        return outputs(image)

    return noted


def test_memory_formats_of_pytorch(bundle: Bundle) -> None:
    module = bundle.plain(1.0)
    formats: list[bool] = []
    stem = module.get_submodule("stem")
    stem.register_forward_pre_hook(lambda _, x: formats.append(x[0].is_contiguous(memory_format=torch.channels_last)))
    image = noise(24, 32)
    plain = ModuleEngine(module, ImageFormat(mean=MEAN, std=STD))(image)
    last = ModuleEngine(module, ImageFormat(mean=MEAN, std=STD), channels_last=True)(image)
    assert formats == [False, True]
    np.testing.assert_allclose(plain, last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"width": 1.0}, WidthError, "no width 1, but 0.5"),
        ({"runtime": "tensorrt"}, LithesegError, "unknown runtime 'tensorrt'"),
        ({"precision": "int8"}, LithesegError, "has no int8 network, but onnx fp32 at width 0.5"),
        (
            {"precision": "bf16", "runtime": "onnxruntime"},
            LithesegError,
            "no bf16 networks; choose fp32 or int8, or --runtime torch",
        ),
        ({"device": "cuda", "runtime": "onnxruntime"}, LithesegError, "has no 'cuda'; install onnxruntime-gpu"),
        ({"device": "cuda", "runtime": "openvino"}, LithesegError, "OpenVINO runs on the CPU here"),
        ({"device": "cuda", "runtime": "torch"}, LithesegError, "an archive runs on the CPU"),
    ],
)
def test_what_cannot_be_had(
    export: Export, options: dict[str, Any], kind: type[LithesegError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(kind, match=message):
        open_engine(export, **options)


def test_bf16_where_the_machine_has_it_and_where_not(export: Export, bundle: Bundle, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch_engines, "has_bfloat16", lambda device: True)
    image = noise(24, 32)
    expected = plain_logits(bundle, 0.5, image)
    engine = bundle_engine(bundle, 0.5, "torch", precision="bf16")
    error = np.abs(engine(image) - expected).max()
    assert engine.precision == "bf16" and 1e-4 < error < 0.1 * np.abs(expected).max()
    monkeypatch.setattr(torch_engines, "has_bfloat16", lambda device: False)
    for act in (
        lambda: open_engine(export, runtime="torch", precision="bf16"),
        lambda: bundle_engine(bundle, 0.5, "torch", precision="bf16"),
    ):
        with pytest.raises(LithesegError, match="'cpu' has no bf16 here"):
            act()
    monkeypatch.setattr(torch_engines, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(room, "available_runtimes", lambda: ("torch", "onnxruntime"))
    assert open_engine(export, precision="bf16").runtime == "torch"  # ONNX Runtime comes first, but cannot
    if "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(LithesegError, match="this CPU has no bf16"):
            open_engine(export, runtime="openvino", precision="bf16")


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_networks_share_what_their_passes_take(bundle: Bundle, tmp_path: Path) -> None:
    """In a process of its own, which has no free memory to begin with."""
    export_bundle(bundle, tmp_path / "x", size=None, widths=[1.0], check=False)
    code = f"""
import numpy as np
from litheseg.runtime.engines import open_engine
image = np.zeros((1024, 1024, 3), np.uint8)
engines = [open_engine({str(tmp_path / "x")!r}, width=1.0, runtime="onnxruntime", threads=1) for _ in range(4)]
for engine in engines:
    engine(image)
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, *_, last = (int(line) / 1024 for line in done.stdout.split())
    assert last - first < 8, "megabytes; each keeps 70 for itself otherwise"


def test_signals_are_heard_after_engines_have_gone(export: Export) -> None:
    """With a core for each engine, the process would end at the first signal: a Ctrl-C, a child that ended."""
    first, second = (open_engine(export, runtime="openvino") for _ in range(2))
    del first
    del second
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1]


def test_bundles_that_cannot_be_run_so(bundle: Bundle) -> None:
    with pytest.raises(WidthError, match=r"no width 0\.3"):
        bundle_engine(bundle, 0.3, "torch")
    with pytest.raises(LithesegError, match="unknown runtime 'onnx'"):
        bundle_engine(bundle, 0.5, "onnx")
    with pytest.raises(LithesegError, match="a bundle holds no int8 network"):
        bundle_engine(bundle, 0.5, "openvino", precision="int8")


@pytest.mark.parametrize(
    ("runtime", "remedy"), [("onnxruntime", "onnxruntime"), ("openvino", r"'litheseg\[openvino\]'")]
)
def test_runtimes_that_are_not_installed(
    export: Export, runtime: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, runtime, None)
    with pytest.raises(MissingExtraError, match=rf"'{runtime}': pip install {remedy}"):
        open_engine(export, runtime=runtime)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_damaged_network_is_one_error(export: Export, tmp_path: Path, runtime: str) -> None:
    artefact = export.find(runtime="onnxruntime")
    (tmp_path / artefact.path).write_bytes(export.file(artefact).read_bytes()[:-2000])
    broken = Export(tmp_path, export.header, (artefact,))
    with pytest.raises(LithesegError, match=rf"{runtime} .* cannot run .*onnx-fp32-w0\.5\.onnx"):
        open_engine(broken, runtime=runtime)


def test_a_runtime_that_is_too_old_is_to_be_upgraded(export: Export, tmp_path: Path) -> None:
    artefact = export.find(runtime="onnxruntime")
    model = onnx.load(str(export.file(artefact)))
    model.ir_version = 99  # of a day to come
    onnx.save(model, str(tmp_path / artefact.path))
    newer = Export(tmp_path, export.header, (artefact,))
    with pytest.raises(LithesegError, match=r"cannot run .*\.onnx.*pip install --upgrade onnxruntime"):
        open_engine(newer, runtime="onnxruntime")


def test_an_error_names_the_package_that_is_installed(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artefact = export.find(runtime="onnxruntime")
    (tmp_path / artefact.path).write_bytes(b"damaged")
    facts = tmp_path / "onnxruntime_gpu-9.8.7.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 9.8.7\n")
    (facts / "top_level.txt").write_text("onnxruntime\n")

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise PackageNotFoundError(name)
        return metadata.version(name)

    monkeypatch.setattr(room, "version", version)
    monkeypatch.syspath_prepend(tmp_path)
    broken = Export(tmp_path, export.header, (artefact,))
    with pytest.raises(LithesegError, match=r"^onnxruntime-gpu 9\.8\.7 cannot run "):
        open_engine(broken, runtime="onnxruntime")
