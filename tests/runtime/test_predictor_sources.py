"""A predictor on exports and in other runtimes, with tiles, lists and video frames."""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from registry import registered
from tiny_colours import BLUE, GREEN, RED, colour_bundle, dominant, picture, truth

import litheseg.runtime.networks as networks
from litheseg.bundle.exported import Artefact, Export
from litheseg.deploy import torch_engine
from litheseg.deploy.export import export_bundle
from litheseg.errors import BundleError, DataError, LithesegError, WidthError
from litheseg.models.bundle import Bundle
from litheseg.runtime.engines import Engine
from litheseg.runtime.predictor import Predictor

_registered = registered(dominant=dominant)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def bundle(folder: Path, _registered: None) -> Bundle:
    return colour_bundle(folder / "model.safetensors")


class FakeEngine(Engine):
    """Labels as `dominant` does."""

    def __init__(self, artefact: Artefact) -> None:
        self.runtime, self.precision = artefact.runtimes[0], artefact.precision
        self.output, self.size = artefact.output, artefact.size

    def run(self, image: np.ndarray) -> np.ndarray:
        assert self.size in (None, image.shape[:2])
        if self.output == "labels":
            return image.argmax(2).astype(np.uint8)
        return image.transpose(2, 0, 1).astype(np.float32)


@pytest.fixture
def fake(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Export]:
    """An export that needs no files."""

    def made(size: tuple[int, int] | None, output: str = "logits") -> Export:
        artefacts = [Artefact("onnx", width, "fp32", size, "NHWC", output, f"{width}.onnx") for width in (1.0, 0.5)]
        return Export(Path("exports/fake"), bundle.header, tuple(artefacts))

    def open_engine(export: Export, *, width: Any, runtime: Any, precision: str, **_: Any) -> FakeEngine:
        return FakeEngine(export.find(width, runtime, precision))

    monkeypatch.setattr(networks, "open_engine", open_engine)
    return made


def test_a_real_export(bundle: Bundle, folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    export = export_bundle(bundle, folder / "real", size=None, widths=(0.5,), check=False)
    file = next((folder / "real").glob("*.onnx"))
    for source in (export, folder / "real", folder / "real" / "export.json", str(file)):
        predictor = Predictor(source, size=None)
        assert (predictor.runtime, predictor.widths, predictor.width) == ("onnxruntime", (0.5,), 0.5)
        for shape in ((24, 40), (1, 1)):
            assert np.array_equal(predictor(picture(*shape)), truth(*shape))
    assert np.array_equal(Predictor(export, tile=192)(picture(300, 500)), truth(300, 500))
    with pytest.raises(BundleError, match=r"has no export\.json"):
        Predictor(folder)


def test_a_bundle_in_another_runtime(bundle: Bundle) -> None:
    pytest.importorskip("openvino")
    predictor = Predictor(bundle, 0.5, runtime="openvino", threads=1)
    assert (predictor.runtime, predictor.widths, predictor.size) == ("openvino", (1.0, 0.5), (8, 16))
    assert np.array_equal(predictor(picture()), truth())


@pytest.mark.parametrize("size", [None, (8, 16)])
@pytest.mark.parametrize("shape", [(24, 48), (1, 1), (37, 11)])
def test_an_export_gives_masks_of_the_images_size(
    fake: Callable[..., Export], size: tuple[int, int] | None, shape: tuple[int, int]
) -> None:
    predictor = Predictor(fake(size), width=0.5)
    assert (predictor.runtime, predictor.width, predictor.size) == ("onnxruntime", 0.5, (8, 16))
    assert predictor.classes.names == ("red", "green", "blue")
    mask = predictor(picture(*shape))
    assert mask.dtype == np.uint8 and mask.shape == shape
    assert (mask == truth(*shape)).mean() > 0.9


@pytest.mark.parametrize("size", [None, (8, 16)])
def test_an_export_that_gives_labels(fake: Callable[..., Export], size: tuple[int, int] | None) -> None:
    mask = Predictor(fake(size, "labels"))(picture(24, 48))
    assert np.array_equal(mask, truth(24, 48))


def test_an_export_for_one_size_is_given_that_size(fake: Callable[..., Export]) -> None:
    one, other = fake((8, 16)), fake((4, 4))
    assert Predictor(one).size == (8, 16) and Predictor(other).size == (4, 4)
    assert Predictor(one, size=(8, 16)).size == (8, 16)
    assert Predictor(fake(None), size=None).size is None
    for size, found in ((None, "images of their own size"), ((9, 9), "images of 9x9")):
        with pytest.raises(LithesegError, match=f"takes 8x16 only, not {found}; export it for that size"):
            Predictor(one, size=size)
    with pytest.raises(LithesegError, match="takes 8x16 only, not tiles of 200x200"):
        Predictor(one, tile=200, overlap=64)


def test_tiles_of_bundles_and_exports(bundle: Bundle, fake: Callable[..., Export]) -> None:
    image, expected = picture(300, 500), truth(300, 500)
    for predictor in (
        Predictor(bundle, tile=256),
        Predictor(bundle, tile=(192, 256), overlap=100),
        Predictor(fake(None), tile=192),
        Predictor(fake((192, 256)), tile=(192, 256)),
        Predictor(fake((192, 256), "labels"), tile=(192, 256)),
    ):
        assert predictor.size is None
        assert np.array_equal(predictor(image), expected)


def test_a_large_image_at_its_own_size_is_cut_without_being_asked(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = torch_engine.ModuleEngine.run

    def counting(self: Any, image: np.ndarray, *rest: Any) -> Any:
        seen.append(image.shape[0] * image.shape[1])
        return real(self, image, *rest)

    monkeypatch.setattr(torch_engine.ModuleEngine, "run", counting)
    predictor = Predictor(bundle, size=None)
    image = picture(450, 20_000)
    assert np.array_equal(predictor(image), truth(450, 20_000))
    assert len(seen) > 10 and max(seen) <= 1024 * 1024
    seen.clear()
    assert Predictor(bundle)(image).shape == (450, 20_000)
    assert seen == [8 * 16], "an image that is resized is not cut"


def test_sizes_and_tiles_that_do_not_go_together(bundle: Bundle) -> None:
    with pytest.raises(LithesegError, match="tiles cut images at their own size"):
        Predictor(bundle, tile=512, size=(8, 16))
    for tile in (64, (512, 100), (0, 5), "big"):
        with pytest.raises(LithesegError):
            Predictor(bundle, tile=tile)  # type: ignore[arg-type]


def test_turning_the_width_opens_nothing_that_is_open(
    fake: Callable[..., Export], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[float] = []
    real = networks.open_engine

    def counted(*args: Any, **kwargs: Any) -> Any:
        opened.append(kwargs["width"])
        return real(*args, **kwargs)

    monkeypatch.setattr(networks, "open_engine", counted)
    predictor = Predictor(fake(None), width=0.5)
    assert opened == [0.5]
    for width in (1.0, 0.5, 1.0):
        predictor.set_width(width)
    assert opened == [0.5], "no more is done than to remember the width"
    predictor.prepare()
    for width in (1.0, 0.5, 1.0):
        predictor.set_width(width)
        predictor(picture())
        assert predictor.width == width
    assert opened == [0.5, 1.0]


def test_threads_share_an_export_at_widths_of_their_own(fake: Callable[..., Export]) -> None:
    predictor, start = Predictor(fake(None)), threading.Barrier(4)

    def work(index: int) -> bool:
        start.wait()
        masks = [predictor(picture(), width=(1.0, 0.5)[(index + turn) % 2]) for turn in range(5)]
        return all(np.array_equal(mask, truth()) for mask in masks)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert predictor.width == 1.0


def test_what_only_a_bundle_can_do_says_so(fake: Callable[..., Export]) -> None:
    predictor = Predictor(fake(None))
    with pytest.raises(LithesegError, match="is an export; this needs the bundle"):
        _ = predictor.bundle
    for act in (predictor.module, lambda: predictor.outputs_rgb(picture())):
        with pytest.raises(LithesegError, match="needs a bundle that runs in PyTorch"):
            act()


def test_what_an_export_does_not_have(fake: Callable[..., Export]) -> None:
    with pytest.raises(WidthError, match=r"no width 0\.3, but 1, 0\.5"):
        Predictor(fake(None)).set_width(0.3)
    with pytest.raises(LithesegError, match="int8"):
        Predictor(fake(None), precision="int8")
    with pytest.raises(LithesegError, match="unknown runtime 'tensorrt'"):
        Predictor(fake(None), runtime="tensorrt")


def test_what_a_bundle_cannot_run(bundle: Bundle) -> None:
    for options, message in (
        ({"runtime": "tensorrt"}, "unknown runtime 'tensorrt'"),
        ({"precision": "int8"}, "holds no int8 network"),
        ({"precision": "fp64"}, "unknown precision 'fp64'"),
        ({"runtime": "openvino", "device": "meta"}, "on the CPU, not on 'meta'"),
    ):
        with pytest.raises(LithesegError, match=message):
            Predictor(bundle, **options)  # type: ignore[arg-type]


def test_a_missing_runtime_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(LithesegError, match=r"pip install 'litheseg\[openvino\]'"):
        Predictor(bundle, runtime="openvino")


def test_lists_and_batches(bundle: Bundle, tmp_path: Path) -> None:
    predictor = Predictor(bundle)
    Image.fromarray(picture()).save(tmp_path / "a.png")
    images = [picture(), picture(10, 12), tmp_path / "a.png"]
    expected = [truth(), truth(10, 12), truth()]
    for masks in (predictor(images), predictor(tuple(images)), predictor.batch(iter(images), width=0.5)):
        assert isinstance(masks, list) and all(map(np.array_equal, masks, expected))
    stack = np.stack([picture(), picture()[::-1]])
    for batch in (stack, torch.from_numpy(stack).permute(0, 3, 1, 2)):
        first, second = predictor.batch(batch)
        assert np.array_equal(first, truth()) and np.array_equal(second, truth()[::-1])
    assert predictor([]) == []
    with pytest.raises(DataError, match="or several to `batch`"):
        predictor(torch.from_numpy(stack).permute(0, 3, 1, 2))


def test_a_video_frame_is_turned_upright(bundle: Bundle) -> None:
    av = pytest.importorskip("av")
    frame = av.VideoFrame.from_ndarray(picture(), format="rgb24")
    assert np.array_equal(Predictor(bundle)(frame), truth())

    class Turned:
        rotation = -90  # stored lying, shown after a quarter turn clockwise

        def to_ndarray(self, *, format: str) -> np.ndarray:
            return np.rot90(frame.to_ndarray(format=format), 1)

    assert np.array_equal(Predictor(bundle)(Turned()), truth())


def test_a_cmyk_photo_keeps_its_colours(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "print.jpg"
    Image.fromarray(picture(64, 64)).convert("CMYK").save(file, quality=95)
    assert Image.open(file).mode == "CMYK"
    for image in (file, Image.open(file)):
        assert (Predictor(bundle, size=None)(image) == truth(64, 64)).mean() > 0.95


def test_an_animated_image_is_refused_and_a_still_gif_is_read(bundle: Bundle, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 10), color) for color in (RED, GREEN, BLUE)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    frames[1].save(tmp_path / "still.gif")
    with pytest.raises(DataError, match=r"moving\.gif is animated; save the frame that is meant"):
        Predictor(bundle)(tmp_path / "moving.gif")
    assert (Predictor(bundle)(tmp_path / "still.gif") == 1).all()


def test_an_image_that_claims_too_many_pixels_is_not_unpacked(bundle: Bundle, tmp_path: Path) -> None:
    Image.new("L", (1, 1)).save(tmp_path / "bomb.png")
    data = bytearray((tmp_path / "bomb.png").read_bytes())
    data[16:24] = struct.pack(">II", 13_000, 13_000)  # what the header says
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(DataError, match=r"bomb\.png: 13000 x 13000 pixels"):
        Predictor(bundle)(tmp_path / "bomb.png")
