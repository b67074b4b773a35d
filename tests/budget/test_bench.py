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

from litheseg.budget import measure as room
from litheseg.budget.candidates import Candidate, Choices, Variant
from litheseg.budget.dense_layers import DensePlan, LayerTimes
from litheseg.budget.measure import Accuracy, Bench, Exports
from litheseg.budget.store import Store
from litheseg.bundle.exported import EXPORT_FILE, Artefact, Export, description, load_export
from litheseg.deploy.export import export_bundle
from litheseg.deploy.onnx import save_onnx
from litheseg.deploy.torch_engine import bundle_engine
from litheseg.errors import LithesegError, WidthError
from litheseg.evaluation.bundle import open_bundle_data
from litheseg.files import file_digest
from litheseg.models import build_model
from litheseg.models.bundle import Bundle, BundleHeader, save_bundle
from litheseg.nn.efficient import Efficient
from litheseg.nn.surgery import grouped_layers
from litheseg.runtime.engines import Engine
from litheseg.runtime.pipeline import Pipeline

NETWORK = Variant(0.5, (32, 48), "fp32")
ONNX = Candidate(NETWORK, "onnxruntime", 1)


class Blank(Engine):
    """Takes any image."""

    runtime, precision, output, size = "fake", "fp32", "logits", None

    def run(self, image: np.ndarray) -> np.ndarray:
        return np.zeros((2, 4, 4), np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def frames() -> list[np.ndarray]:
    return [np.zeros((32, 48, 3), np.uint8)]


def candidates(
    widths: Iterable[float], runtimes: tuple[str, ...] = ("torch",), precision: str = "fp32", threads: Any = (1,)
) -> list[Candidate]:
    return list(Choices(tuple(widths), ((32, 48),), runtimes, (precision,), threads).candidates((), (0, 0)))


def test_a_bench_measures_what_it_is_given(store: Store) -> None:
    opened: list[Candidate] = []

    def engine(candidate: Candidate) -> Engine:
        opened.append(candidate)
        return Blank()

    some = candidates((1.0, 0.5), threads=(1, 2))
    bench = Bench(engine, frames(), store)
    assert bench.unusable(some) == {} and opened == some
    times = bench.measure(some, 4)
    assert {candidate: len(values) for candidate, values in times.items()} == dict.fromkeys(some, 4)
    assert opened == some, "opened once"


def test_a_bench_keeps_the_frame_rate_of_a_camera(store: Store) -> None:
    [one] = candidates((1.0,))
    began = time.monotonic()
    Bench(lambda _: Blank(), frames(), store, fps=50).measure([one], 6)
    assert time.monotonic() - began >= 6 / 50, "two turns of an untimed pass and three"


def test_very_many_are_not_open_at_once(store: Store) -> None:
    alive: set[int] = set()

    class Counted(Blank):
        def __init__(self) -> None:
            alive.add(id(self))

        def __del__(self) -> None:
            alive.discard(id(self))

    widths = [1 - index / 200 for index in range(100)]
    many = candidates(widths)
    bench, most = Bench(lambda _: Counted(), frames(), store), 0
    for candidate in many:
        bench.unusable([candidate])
        most = max(most, len(alive))
    assert most <= 33
    assert len(bench.measure(many, 1)) == 100


def test_what_cannot_run_is_a_reason_and_asked_once_per_kind(store: Store) -> None:
    asked: list[Candidate] = []

    def engine(candidate: Candidate) -> Engine:
        asked.append(candidate)
        if candidate.runtime == "openvino" or candidate.network.precision == "int8":
            raise LithesegError(f"no {candidate.runtime}")
        return Blank()

    fp32 = candidates((1.0, 0.5), runtimes=("torch", "openvino"))
    reasons = Bench(engine, frames(), store).unusable(fp32)
    assert reasons == {c: "no openvino" for c in fp32 if c.runtime == "openvino"} and len(asked) == 3
    int8 = candidates((1.0, 0.5), runtimes=("torch", "openvino"), precision="int8")
    assert set(Bench(engine, frames(), store).unusable(int8)) == set(int8) and len(asked) == 7, (
        "each may or may not bear it"
    )


def test_a_wrong_width_is_an_error(bundle: Bundle, store: Store, tmp_path: Path) -> None:
    bench = Bench(Exports(bundle, tmp_path).engine, frames(), store)
    with pytest.raises(WidthError):
        bench.unusable([Candidate(NETWORK._replace(width=0.1), "torch", 1)])


# --- exports ---------------------------------------------------------------------------------------------------------


def test_pytorch_needs_no_export(bundle: Bundle, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    made = Exports(bundle, tmp_path).engine(Candidate(NETWORK, "torch", 1))(image)
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
    original: Export, bundle: Bundle, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Exports, Path, list[str]]:
    """Exports that are copies of the original; where they are; and the name of each, as it is made."""
    made: list[str] = []

    def copied(_: Bundle, output: Path, *, further: Any = None, **__: Any) -> Export:
        made.append(output.name)
        shutil.copytree(original.path, output, dirs_exist_ok=True)
        export = replace(original, path=output)
        int8 = tuple(artefact for artefact, _ in further(export)) if further else ()
        text = description(export.header, (*export.artefacts, *int8), export.provenance)
        (output / EXPORT_FILE).write_text(text)
        return load_export(output)

    monkeypatch.setattr(room, "export_bundle", copied)
    monkeypatch.setattr(room, "Quantizer", lambda *_, **__: _pretend)
    exports = Exports(bundle, tmp_path, data=open_bundle_data(bundle, labelled))
    exports.engine(ONNX)
    return exports, tmp_path, made


def _pretend(export: Export) -> Iterable[tuple[Artefact, Mapping[str, Any]]]:
    """A network that says of itself that it is int8."""
    for artefact in export.artefacts:
        int8 = replace(artefact, precision="int8", path=artefact.path.replace("fp32", "int8"), files={})
        model = onnx.load(str(export.file(artefact)))
        save_onnx(model, export.file(int8), description(export.header, [int8], export.provenance))
        yield replace(int8, files={int8.path: file_digest(export.file(int8))}), {}


def test_an_export_is_made_once(exported: tuple[Exports, Path, list[str]], bundle: Bundle) -> None:
    exports, _, made = exported
    engine = exports.engine(replace(ONNX, threads=2))
    assert made == ["w0.5-32x48-fp32-onnxruntime"]
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    np.testing.assert_allclose(engine(image), bundle_engine(bundle, 0.5, "torch")(image), atol=1e-4)


def test_a_damaged_export_is_made_again(exported: tuple[Exports, Path, list[str]]) -> None:
    exports, folder, made = exported
    [file] = folder.rglob("*fp32*.onnx")
    file.write_bytes(b"damaged")
    exports.engine(ONNX)
    assert made == ["w0.5-32x48-fp32-onnxruntime"] * 2
    load_export(file.parent)


def test_int8_lies_beside_fp32_and_is_scored_where_it_runs(
    exported: tuple[Exports, Path, list[str]], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports, _, made = exported
    int8 = replace(ONNX, network=NETWORK._replace(precision="int8"))
    assert exports.engine(int8).precision == "int8"
    assert made[-1] == "w0.5-32x48-int8-onnxruntime"
    scored: list[str] = []

    def score(pipeline: Pipeline, *_: object) -> dict[str, object]:
        scored.append(pipeline.engine.runtime)
        return {"miou": 0.5, "iou": [0.5] * len(exports.bundle.header.classes)}

    monkeypatch.setattr(room, "score", score)
    assert Accuracy(exports, store).miou(int8) == 0.5 and scored == ["onnxruntime"]
    with pytest.raises(LithesegError, match="int8"):
        exports.engine(replace(int8, runtime="torch"))


def test_int8_without_images_says_what_it_needs(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(LithesegError, match="--data"):
        Exports(bundle, tmp_path).engine(replace(ONNX, network=NETWORK._replace(precision="int8")))


def test_a_plan_makes_layers_dense_in_files_only(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")

    pytest.importorskip("onnxscript")
    efficient = Efficient(groups=2, where="encoder,3x3")
    arguments = {"base": 8, "aux_head": False, "boundary_head": False}
    architecture = {"name": "ddrnet", "args": arguments, "efficient": vars(efficient)}
    model = build_model("ddrnet", 5, efficient=efficient, **arguments).eval()
    bundle = save_bundle(tmp_path / "m.safetensors", model, BundleHeader(architecture, CLASSES, size=(32, 48)))
    names = list(grouped_layers(bundle.plain(1.0)))
    candidate = Candidate(Variant(1.0, (32, 48), "fp32"), "onnxruntime", 1)
    slow = {name: LayerTimes(2.0, 1.0 if index < 3 else 3.0) for index, name in enumerate(names)}
    plan = DensePlan(entries={candidate: slow})
    exports = Exports(bundle, tmp_path / "exports", plan=plan)
    assert exports.planned(candidate, bundle).dense == tuple(names[:3])
    assert exports.planned(replace(candidate, runtime="torch"), bundle).dense == ()
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    np.testing.assert_allclose(exports.engine(candidate)(image), bundle_engine(bundle, 1.0, "torch")(image), atol=1e-3)
    [file] = (tmp_path / "exports").rglob("*.onnx")
    groups = [
        a.i
        for node in onnx.load(file).graph.node
        if node.op_type == "Conv"
        for a in node.attribute
        if a.name == "group"
    ]
    assert sum(group > 1 for group in groups) == len(names) - 3
