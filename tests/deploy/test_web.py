"""The page of an export: its arithmetic in Node beside ours, and the page itself in a browser, without a server."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from registry import registered
from tiny_export import CLASSES, build_tiny, noise, tiny_bundle

import litheseg.deploy.web as room
from litheseg.bundle.exported import load_export
from litheseg.deploy.export import export_bundle
from litheseg.deploy.web import RUNTIME_FILES, find_runtime
from litheseg.errors import DataError, LithesegError
from litheseg.masks.image_format import ImageFormat
from litheseg.masks.resizing import resize_image
from litheseg.masks.upsampling import upsample_labels
from litheseg.runtime.predictor import Predictor

pytest.importorskip("onnxscript")

NODE = shutil.which("node")
CHROMIUM = os.environ.get("LITHESEG_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
SOURCES = Path(room.__file__).with_name("page")


_registered = registered(tiny=build_tiny)


# ---------------------------------------------------------------- arithmetic, in Node

HARNESS = """
import { readFileSync, writeFileSync } from "node:fs";
import { resizePixels } from "./resizing.mjs";
import { upsampleLabels } from "./upsampling.mjs";
for (const { kind, shape, size, file } of JSON.parse(readFileSync("cases.json"))) {
  const bytes = new Uint8Array(readFileSync(file)).buffer;
  const result = kind === "resize"
    ? resizePixels(new Uint8ClampedArray(bytes), shape, size)
    : upsampleLabels(new Float32Array(bytes), shape, size);
  writeFileSync(`${file}.out`, result);
}
"""


def in_node(folder: Path, kind: str, cases: list[tuple[np.ndarray, tuple[int, ...], tuple[int, int]]]) -> list[bytes]:
    """What the page's code gives for arrays of a shape and a size."""
    if NODE is None:
        pytest.skip("no Node")
    for source in ("resizing", "upsampling"):
        shutil.copyfile(SOURCES / f"{source}.js", folder / f"{source}.mjs")
    wanted = []
    for index, (array, shape, size) in enumerate(cases):
        (folder / f"{index}").write_bytes(array.tobytes())
        wanted.append({"kind": kind, "shape": shape, "size": size, "file": f"{index}"})
    (folder / "cases.json").write_text(json.dumps(wanted))
    (folder / "harness.mjs").write_text(HARNESS)
    subprocess.run([NODE, "harness.mjs"], cwd=folder, check=True, timeout=60)
    return [(folder / f"{index}.out").read_bytes() for index in range(len(cases))]


def test_pictures_are_resized_as_everywhere(tmp_path: Path) -> None:
    sizes = [(97, 131), (1, 1), (40, 30), (61, 7), (5, 200), (128, 96)]
    targets = [(24, 32), (3, 4), (40, 60), (61, 8), (24, 32), (360, 480)]
    images = [noise(*size, seed) for seed, size in enumerate(sizes)]
    images[-1][:64] = 255  # the weights of a pixel may sum to more than 1 in integers
    cases = [
        (np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]), image.shape[:2], target)
        for image, target in zip(images, targets, strict=True)
    ]
    for result, image, target in zip(in_node(tmp_path, "resize", cases), images, targets, strict=True):
        assert np.array_equal(np.frombuffer(result, np.uint8).reshape(*target, 3), resize_image(image, target))


def test_logits_become_the_same_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cases = []
    for classes, samples, size in (
        (11, (45, 60), (360, 480)),
        (3, (6, 8), (24, 32)),
        (19, (13, 9), (101, 67)),
        (4, (30, 40), (17, 23)),
        (5, (12, 12), (12, 12)),
        (1, (3, 3), (9, 10)),
        (255, (4, 5), (16, 33)),
        (6, (7, 9), (7, 40)),
    ):
        logits = rng.standard_normal((classes, *samples)).astype(np.float32)
        cases.append((logits.round(1) if classes == 19 else logits, (classes, *samples), size))  # with ties
    strange = rng.standard_normal((5, 6, 7)).astype(np.float32)
    strange[1, 2, 3], strange[4, 5, 0], strange[2, 0, 6] = np.nan, np.inf, -np.inf
    cases.append((strange, strange.shape, (33, 41)))
    for result, (logits, _, size) in zip(in_node(tmp_path, "upsample", cases), cases, strict=True):
        assert np.array_equal(np.frombuffer(result, np.uint8).reshape(size), upsample_labels(logits, size))


# ---------------------------------------------------------------- the runtime's files


def runtime_at(folder: Path, version: str = "1.30.0") -> Path:
    (folder / "dist").mkdir(parents=True)
    for name in RUNTIME_FILES:
        (folder / "dist" / name).write_text(f"{name} {version}")
    (folder / "package.json").write_text(json.dumps({"name": "onnxruntime-web", "version": version}))
    return folder


def test_the_runtime_is_found_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = runtime_at(tmp_path / "node_modules" / "onnxruntime-web")
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")
    monkeypatch.setenv("LITHESEG_CACHE", str(tmp_path / "cache"))
    assert find_runtime() == installed / "dist"
    own = runtime_at(tmp_path / "own", "1.22.0")
    assert find_runtime(own) == find_runtime(own / "dist") == own / "dist"
    (own / "dist" / RUNTIME_FILES[2]).unlink()
    with pytest.raises(LithesegError, match=r"own.dist has no ort-wasm-simd-threaded.wasm .*--onnxruntime-web DIR"):
        find_runtime(own)
    with pytest.raises(LithesegError, match=r"ONNX Runtime Web 1\.9\.1, which is too old; .*npm install"):
        find_runtime(runtime_at(tmp_path / "old", "1.9.1"))


def test_the_runtime_is_fetched_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LITHESEG_CACHE", str(tmp_path / "cache"))
    tarball = tmp_path / "there.tgz"
    with tarfile.open(tarball, "w:gz") as archive:
        archive.add(runtime_at(tmp_path / "packed"), "package")
    monkeypatch.setattr(room, "_TARBALL", tarball.as_uri())
    with pytest.raises(LithesegError, match=r"not at hand; give its folder \(--onnxruntime-web DIR\), install it here"):
        find_runtime(fetch=False)
    with pytest.raises(LithesegError, match=r"cannot be fetched .*SHA-256 is .*npm install onnxruntime-web@1"):
        find_runtime()
    monkeypatch.setattr(room, "_SHA256", hashlib.sha256(tarball.read_bytes()).hexdigest())
    found = find_runtime()
    tarball.unlink()
    assert found == find_runtime(fetch=False) == tmp_path / "cache" / "onnxruntime-web" / "1.30.0"
    assert sorted(file.name for file in found.iterdir()) == sorted([*RUNTIME_FILES, "package.json"])


def test_what_a_page_cannot_show(tmp_path: Path) -> None:
    bundle, runtime = tiny_bundle(tmp_path / "model.safetensors"), runtime_at(tmp_path / "runtime")
    with pytest.raises(LithesegError, match=r"leave out --labels"):
        export_bundle(bundle, tmp_path / "a", formats=["web"], output_kind="labels", onnxruntime_web=runtime)
    with pytest.raises(DataError, match=r"a browser gives RGB of 8 bits, but this network takes 5 channels"):
        room.WebPage.prepare(type("Header", (), {"images": ImageFormat(5, "uint8")})(), runtime)
    assert not (tmp_path / "a").exists()


# ---------------------------------------------------------------- the page, in a browser


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A static host, below a path of its own as many have it."""
    handler = functools.partial(_Quiet, directory=str(folder.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{folder.name}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium: set LITHESEG_CHROMIUM to one")
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        runtime = find_runtime(os.environ.get("LITHESEG_ONNXRUNTIME_WEB"), fetch=False)
    except LithesegError:
        pytest.skip("no ONNX Runtime Web: npm install onnxruntime-web, or set LITHESEG_ONNXRUNTIME_WEB to its folder")
    target = tmp_path_factory.mktemp("web") / "street"
    metrics = {"1": {"miou": 0.5, "iou": [0.7, 0.2, 0.6]}}
    bundle = tiny_bundle(target.with_name("model.safetensors"), metrics=metrics)
    export_bundle(bundle, target, formats=["web"], shared=True, check=False, onnxruntime_web=runtime)
    return target


@contextmanager
def opened(browser: Any, url: str, before: str = "", isolated: bool = True) -> Iterator[Any]:
    """The page; it must end without errors, and without having asked another host."""
    trouble: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.on("request", lambda request: request.url.startswith((url, "blob:")) or trouble.append(request.url))
    page = context.new_page()
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda message: message.type == "error" and trouble.append(message.text))
    page.set_default_timeout(20_000)
    if before:
        page.add_init_script(before)
    page.goto(url)
    if isolated:
        page.wait_for_function("() => crossOriginIsolated")  # it loads twice, to have threads
    yield page
    context.close()
    assert not trouble


def saved(page: Any) -> np.ndarray:
    with page.expect_download() as download:
        page.click("#save")
    return np.asarray(Image.open(download.value.path()))


def shows(page: Any, width: str, side: str = "left") -> None:
    page.locator(f"#badge-{side}", has_text=f"{width} ·").wait_for()


def test_a_picture_gets_the_labels_of_onnx_runtime(browser: Any, folder: Path, tmp_path: Path) -> None:
    photo, large = tmp_path / "photo.png", tmp_path / "large.jpg"
    Image.fromarray(noise(5, 6)).resize((83, 47)).save(photo)
    Image.fromarray(noise(9, 12, 1)).resize((1700, 900)).save(large, quality=90)
    predictor = Predictor(load_export(folder), runtime="onnxruntime")
    with served(folder) as url, opened(browser, url) as page:
        page.set_input_files("#file", photo)
        shows(page, "1.00")
        assert page.text_content("#model") == "tiny · 3 classes"
        assert page.text_content("#miou-left") == "50.0 % mIoU, road 20.0 %"
        assert page.locator(".legend .name").all_text_contents() == list(CLASSES.names)
        assert "kB sent" not in page.text_content("#source-text") and not page.is_visible("#auto")
        expected = predictor.predict_rgb(np.asarray(Image.open(photo)), width=1.0)
        assert len(np.unique(expected)) > 1 and np.array_equal(saved(page), expected)
        page.focus("#width-left")
        page.keyboard.press("Home")
        shows(page, "0.50")
        narrow = predictor.predict_rgb(np.asarray(Image.open(photo)), width=0.5)
        assert (narrow != expected).any() and np.array_equal(saved(page), narrow)
        page.check("#compare")
        shows(page, "0.50", "right")
        page.set_input_files("#file", large)
        page.locator("#source-text", has_text="1280 × 678").wait_for()
        page.wait_for_selector("#viewer:not(.waiting) #badge-left:has-text('0.50')")
        found = saved(page)
        assert found.shape == (900, 1700), "the mask has the size of the picture, not of what is shown"
        assert (found == predictor.predict_rgb(np.asarray(Image.open(large)), width=0.5)).mean() > 0.999


def test_the_camera_is_segmented(browser: Any, folder: Path) -> None:
    with served(folder) as url, opened(browser, url) as page:
        page.wait_for_selector("#server[data-state=ready]")
        page.click("#camera")
        page.locator("#chart rect.work").nth(3).wait_for(state="attached")
        page.click("#camera")
        assert "a second" in page.text_content("#time-now")


def test_a_browser_without_vectors_says_so(browser: Any, folder: Path) -> None:
    with served(folder) as url, opened(browser, url, "WebAssembly.validate = () => false", isolated=False) as page:
        page.wait_for_selector("#notice:not([hidden])")
        assert "no WebAssembly with vector instructions (SIMD)" in page.text_content("#notice-text")
        assert "Chrome or Edge 91" in page.text_content("#notice-text")


STRAY = """() => new Promise((resolve) => {
    document.addEventListener("securitypolicyviolation", ({ effectiveDirective }) => resolve(effectiveDirective));
    new Image().src = "http://127.0.0.2:9/picture.png";
})"""


def test_a_folder_that_was_not_copied_whole(browser: Any, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "ort")
    with served(copy) as url:
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("#notice:not([hidden])")
        assert "the folder's ort/ must lie beside this page" in page.text_content("#notice-text")
        assert page.evaluate(STRAY) == "img-src", "the page may ask no other host"
        page.close()
