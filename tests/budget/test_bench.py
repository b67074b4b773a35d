from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny_budget import CLASSES

from litheseg.budget import workbench as room
from litheseg.budget.bench import Bench
from litheseg.budget.candidates import Candidate, Network, grid
from litheseg.budget.plan import LayerTimes, Plan, Spot
from litheseg.budget.workbench import Workbench
from litheseg.bundle.exported import EXPORT_FILE, Artefact, Export, description, file_digest, load_export
from litheseg.deploy.export import export_bundle
from litheseg.deploy.onnx import save_onnx
from litheseg.deploy.torch_engine import bundle_engine
from litheseg.errors import LithesegError, WidthError
from litheseg.models import build_model
from litheseg.models.bundle import Bundle, BundleHeader, save_bundle
from litheseg.nn.efficient import Efficient
from litheseg.nn.surgery import grouped_layers
from litheseg.runtime.engines import Engine

NETWORK = Network(0.5, (32, 48), "fp32")
ONNX = Candidate(NETWORK, "onnxruntime", 1)


class Blank(Engine):
    """Takes any image."""

    runtime, precision, output, size = "fake", "fp32", "logits", None

    def run(self, image: np.ndarray) -> np.ndarray:
        return np.zeros((2, 4, 4), np.float32)


def frames() -> list[np.ndarray]:
    return [np.zeros((32, 48, 3), np.uint8)]


def test_a_bench_measures_what_it_is_given() -> None:
    opened: list[Candidate] = []

    def engine(candidate: Candidate) -> Engine:
        opened.append(candidate)
        return Blank()

    some = list(grid((1.0, 0.5), ((32, 48),), runtimes=("torch",), precisions=("fp32",), threads=(1, 2)))
    bench = Bench(engine, frames())
    assert bench.unusable(some) == {} and opened == some
    times = bench.measure(some, 4)
    assert {candidate: len(values) for candidate, values in times.items()} == dict.fromkeys(some, 4)
    assert opened == some, "opened once"


def test_a_bench_keeps_the_pace_of_a_camera() -> None:
    told: list[str] = []
    [one] = grid((1.0,), ((32, 48),), runtimes=("torch",), precisions=("fp32",), threads=(1,))
    began = time.monotonic()
    Bench(lambda _: Blank(), frames(), fps=50, progress=told.append).measure([one], 6)
    assert time.monotonic() - began >= 6 / 50, "two turns of an untimed pass and three"
    assert told == ["timing 1 candidate, 6 repeats at 50 images a second"]


def test_very_many_are_not_open_at_once() -> None:
    alive: set[int] = set()

    class Counted(Blank):
        def __init__(self) -> None:
            alive.add(id(self))

        def __del__(self) -> None:
            alive.discard(id(self))

    widths = [1 - index / 200 for index in range(100)]
    many = list(grid(widths, ((32, 48),), runtimes=("torch",), precisions=("fp32",), threads=(1,)))
    bench, most = Bench(lambda _: Counted(), frames()), 0
    for candidate in many:
        bench.unusable([candidate])
        most = max(most, len(alive))
    assert most <= 33
    assert len(bench.measure(many, 1)) == 100


def test_what_cannot_run_is_a_reason_and_asked_once_per_kind() -> None:
    asked: list[Candidate] = []

    def engine(candidate: Candidate) -> Engine:
        asked.append(candidate)
        if candidate.runtime == "openvino" or candidate.network.precision == "int8":
            raise LithesegError(f"no {candidate.runtime}")
        return Blank()

    way: dict[str, Any] = {"runtimes": ("torch", "openvino"), "threads": (1,)}
    fp32 = list(grid((1.0, 0.5), ((32, 48),), precisions=("fp32",), **way))
    reasons = Bench(engine, frames()).unusable(fp32)
    assert reasons == {c: "no openvino" for c in fp32 if c.runtime == "openvino"} and len(asked) == 3
    int8 = list(grid((1.0, 0.5), ((32, 48),), precisions=("int8",), **way))
    assert set(Bench(engine, frames()).unusable(int8)) == set(int8) and len(asked) == 7, "each may or may not bear it"


def test_a_wrong_width_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    bench = Bench(Workbench(bundle, tmp_path).engine, frames())
    with pytest.raises(WidthError):
        bench.unusable([Candidate(NETWORK._replace(width=0.1), "torch", 1)])


# --- the workbench ---------------------------------------------------------------------------------------------------


def test_pytorch_needs_no_export(bundle: Bundle, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    made = Workbench(bundle, tmp_path).engine(Candidate(NETWORK, "torch", 1))(image)
    np.testing.assert_allclose(made, bundle_engine(bundle, 0.5, "torch")(image), atol=1e-5)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def original(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A real export, made once since that takes seconds."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("original") / "export"
    return export_bundle(bundle, folder, widths=(0.5,), size=(32, 48), check=False)


@pytest.fixture
def exported(
    original: Export, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Workbench, Path, list[str]]:
    """A workbench whose exports are copies of the original; what it says; and where they are."""

    def copied(_: Bundle, output: Path, *, further: Any = None, **__: Any) -> Export:
        shutil.copytree(original.path, output, dirs_exist_ok=True)
        export = replace(original, path=output)
        twins = tuple(artefact for artefact, _ in further(export)) if further else ()
        text = description(export.header, (*export.artefacts, *twins), export.provenance)
        (output / EXPORT_FILE).write_text(text)
        return load_export(output)

    told: list[str] = []
    monkeypatch.setattr(room, "export_bundle", copied)
    workbench = Workbench(bundle, tmp_path, quantise=lambda _: _pretend, progress=told.append)
    workbench.engine(ONNX)
    return workbench, tmp_path, told


def _pretend(export: Export) -> Iterable[tuple[Artefact, Mapping[str, Any]]]:
    """A network that says of itself that it is int8."""
    for artefact in export.artefacts:
        twin = replace(artefact, precision="int8", path=artefact.path.replace("fp32", "int8"), files={})
        model = onnx.load(str(export.file(artefact)))
        save_onnx(model, export.file(twin), description(export.header, [twin], export.provenance))
        yield replace(twin, files={twin.path: file_digest(export.file(twin))}), {}


def test_an_export_is_made_once(exported: tuple[Workbench, Path, list[str]], bundle: Bundle) -> None:
    workbench, _, told = exported
    before = list(told)
    engine = workbench.engine(replace(ONNX, threads=2))
    assert told == before == ["exporting w0.5-32x48-fp32"]
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    np.testing.assert_allclose(engine(image), bundle_engine(bundle, 0.5, "torch")(image), atol=1e-4)


def test_a_damaged_export_is_made_again(exported: tuple[Workbench, Path, list[str]]) -> None:
    workbench, folder, told = exported
    [file] = folder.rglob("*fp32*.onnx")
    file.write_bytes(b"damaged")
    workbench.engine(ONNX)
    assert told[-1] == "exporting w0.5-32x48-fp32"
    load_export(file.parent)


def test_int8_lies_beside_fp32_and_is_scored_where_it_ran(exported: tuple[Workbench, Path, list[str]]) -> None:
    workbench, _, told = exported
    int8 = replace(ONNX, network=NETWORK._replace(precision="int8"))
    assert workbench.engine(int8).precision == "int8"
    assert "quantizing w0.5-32x48-int8, which takes minutes" in told
    assert workbench.engine_of(int8.network, ("torch",), 1).runtime == "onnxruntime"
    with pytest.raises(LithesegError, match="int8"):
        workbench.engine(replace(int8, runtime="torch"))
    assert workbench.engine_of(NETWORK._replace(size=(16, 24)), ("torch", "onnxruntime"), 1).runtime == "torch"


def test_int8_without_images_says_what_it_needs(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(LithesegError, match="--data"):
        Workbench(bundle, tmp_path).engine(replace(ONNX, network=NETWORK._replace(precision="int8")))


def test_a_plan_makes_layers_dense_in_files_only(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")

    pytest.importorskip("onnxscript")
    efficient = Efficient(groups=2, where="encoder,3x3")
    arguments = {"base": 8, "aux_head": False, "boundary_head": False}
    architecture = {"name": "ddrnet", "args": arguments, "efficient": vars(efficient)}
    model = build_model("ddrnet", 5, efficient=efficient, **arguments).eval()
    bundle = save_bundle(tmp_path / "m.safetensors", model, BundleHeader(architecture, CLASSES, size=(32, 48)))
    names = list(grouped_layers(bundle.plain(1.0)))
    candidate = Candidate(Network(1.0, (32, 48), "fp32"), "onnxruntime", 1)
    slow = {name: LayerTimes(2.0, 1.0 if index < 3 else 3.0) for index, name in enumerate(names)}
    plan = Plan(entries={Spot(1.0, (32, 48), "onnxruntime", 1): slow})
    workbench = Workbench(bundle, tmp_path / "exports", plan=plan)
    assert workbench.planned(candidate, bundle).dense == tuple(names[:3])
    assert workbench.planned(replace(candidate, runtime="torch"), bundle).dense == ()
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    np.testing.assert_allclose(
        workbench.engine(candidate)(image), bundle_engine(bundle, 1.0, "torch")(image), atol=1e-3
    )
    [file] = (tmp_path / "exports").rglob("*.onnx")
    groups = [
        a.i
        for node in onnx.load(file).graph.node
        if node.op_type == "Conv"
        for a in node.attribute
        if a.name == "group"
    ]
    assert sum(group > 1 for group in groups) == len(names) - 3
