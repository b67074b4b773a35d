"""The page in a browser, by a person's steps: with the mouse, with the keyboard only, on a phone, with a camera."""

from __future__ import annotations

import base64
import os
import shutil
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_server import GREEN, RED, FakePredictor, encoded, picture, service

from litheseg.masks.classes import Classes
from litheseg.serving.app import create_app
from litheseg.serving.running import Server
from litheseg.serving.service import Service

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = os.environ.get("LITHESEG_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: set LITHESEG_CHROMIUM to one")

FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
LEFT_TOP, RIGHT_TOP = (60, 30), (180, 30)  # in the picture of 240 x 120: red, green
WAIT = 10_000  # milliseconds


def narrow_sees_red(image: np.ndarray, width: float) -> np.ndarray:
    """Right at width 1, right at half the picture at 0.5, all class 0 at 0.25: the widths can be told apart."""
    mask = image.argmax(2).astype(np.uint8)
    mask[:, int(image.shape[1] * {1.0: 1, 0.5: 0.8, 0.25: 0}[width]) :] = 0
    return mask


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def made() -> Service:
    predictor = FakePredictor(classes=Classes(("red", "green", "blue"), ((250, 0, 250), (0, 250, 250), (250, 250, 0))))
    predictor.labels = narrow_sees_red
    return service(predictor)


@pytest.fixture
def url(made: Service) -> Iterator[str]:
    with Server(create_app(made)) as server:
        yield server.url
    made.workers.close()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    with opened(browser, url) as page:
        yield page


class opened:
    """The page in a context of its own, which must end without errors and without having asked anyone else."""

    def __init__(self, browser: Any, url: str, **context: Any) -> None:
        self.url, self.trouble = url, list[str]()
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context})

    def __enter__(self) -> Any:
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.trouble.append(str(error)))
        page.on("console", self.hear)
        page.on(
            "request", lambda request: request.url.startswith((self.url, "blob:")) or self.trouble.append(request.url)
        )
        page.set_default_timeout(WAIT)
        page.goto(self.url)
        page.wait_for_selector("#server[data-state=ready]")
        return page

    def hear(self, message: Any) -> None:
        """Errors, violations of the content security policy among them; a refused request is none."""
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.trouble.append(message.text)

    def note(self, request: Any) -> None:
        if not request.url.startswith((self.url, "blob:")):
            self.trouble.append(request.url)

    def __exit__(self, *_: object) -> None:
        self.context.close()
        assert not self.trouble


def photo(tmp_path: Path) -> Path:
    path = tmp_path / "street.png"
    path.write_bytes(encoded(picture(120, 240)))
    return path


def pick(page: Any, path: Path) -> None:
    page.set_input_files("#file", path)
    shows(page, "1.00")


def shows(page: Any, width: str, side: str = "left") -> None:
    """Wait until the answer of a width is on the picture."""
    page.locator(f"#badge-{side}", has_text=f"{width} ·").wait_for()


def pixel(page: Any, at: tuple[int, int], side: str = "left") -> tuple[int, ...]:
    code = "([id, x, y]) => [...document.getElementById(id).getContext('2d').getImageData(x, y, 1, 1).data.slice(0, 3)]"
    return tuple(page.evaluate(code, [side, *at]))


def mixed(color: tuple[int, ...], over: tuple[int, ...], alpha: float = 0.6) -> Any:
    return pytest.approx([under + alpha * (top - under) for top, under in zip(color, over, strict=True)], abs=2)


def test_a_picture_gets_its_classes(page: Any, tmp_path: Path) -> None:
    assert page.is_visible("text=Drop a picture here") and not page.is_visible("#viewer")
    assert page.text_content("#model") == "fake · 3 classes"
    pick(page, photo(tmp_path))
    assert not page.is_visible("#empty")
    assert pixel(page, LEFT_TOP) == mixed((250, 0, 250), RED)
    assert pixel(page, RIGHT_TOP) == mixed((0, 250, 250), GREEN)
    assert [text.strip() for text in page.locator(".share").all_text_contents()] == ["50 %", "25 %", "25 %"]
    assert "street.png · 240 × 120" in page.text_content("#source-text")
    assert page.text_content("#miou-left") == "75.0 % mIoU"
    assert "red 50 %" in page.text_content("#said")
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "street-1.png"
    assert np.array_equal(np.asarray(Image.open(download.value.path())), picture(120, 240).argmax(2))


def test_the_mask_of_a_large_picture_has_its_own_size(page: Any, tmp_path: Path) -> None:
    """It is sent smaller, to be shown; what is saved is of the picture itself."""
    path = tmp_path / "large.png"
    path.write_bytes(encoded(picture(800, 1600)))
    pick(page, path)
    assert "1280 × 640" in page.text_content("#source-text")
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "large-1.png"
    assert np.array_equal(np.asarray(Image.open(download.value.path())), picture(800, 1600).argmax(2))


def test_the_result_follows_the_slider(page: Any, made: Service, tmp_path: Path) -> None:
    pick(page, photo(tmp_path))
    page.focus("#width-left")
    page.keyboard.press("Home")
    shows(page, "0.25")
    assert pixel(page, RIGHT_TOP) == mixed((250, 0, 250), GREEN)
    assert page.get_attribute("#width-left", "aria-valuetext").startswith("0.25, ")
    calls = len(made.predictor.calls)
    page.keyboard.press("End")
    shows(page, "1.00")
    assert pixel(page, RIGHT_TOP) == mixed((0, 250, 250), GREEN)
    assert len(made.predictor.calls) == calls, "what was seen before is not asked for again"
    assert page.locator("#chart rect.work").count() == 2
    assert "2 answers" in page.get_attribute("#chart", "aria-label")


def test_late_answers_are_thrown_away(page: Any, made: Service, tmp_path: Path) -> None:
    made.predictor.seconds = {0.5: 0.6}
    pick(page, photo(tmp_path))
    page.focus("#width-left")
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(200)  # its request is under way
    page.keyboard.press("ArrowLeft")
    shows(page, "0.25")
    page.wait_for_timeout(700)
    shows(page, "0.25")
    assert pixel(page, RIGHT_TOP) == mixed((250, 0, 250), GREEN)


def test_two_widths_side_by_side(page: Any, tmp_path: Path) -> None:
    pick(page, photo(tmp_path))
    page.check("#compare")
    shows(page, "0.25", "right")
    assert pixel(page, RIGHT_TOP) == mixed((0, 250, 250), GREEN)
    assert pixel(page, RIGHT_TOP, "right") == mixed((250, 0, 250), GREEN)
    assert page.text_content("#difference") == "The two differ in 50 % of the pixels."
    box = page.locator("#viewer").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 20, steps=4)
    page.mouse.up()
    assert page.get_attribute("#divider", "aria-valuenow") == "25"
    clip = page.evaluate("getComputedStyle(document.querySelector('#right')).clipPath")
    assert clip.startswith("inset(0px 0px 0px 25")
    for key, now in (
        ("ArrowRight", "27"),
        ("Shift+ArrowLeft", "17"),
        ("Home", "0"),
        ("ArrowLeft", "0"),
        ("End", "100"),
    ):
        page.keyboard.press(key)
        assert page.get_attribute("#divider", "aria-valuenow") == now
    page.uncheck("#compare")
    assert not page.is_visible("#divider") and not page.is_visible("#right")


def test_classes_can_be_hidden(page: Any, tmp_path: Path) -> None:
    pick(page, photo(tmp_path))
    green = page.get_by_role("button", name="green")
    green.click()
    page.mouse.move(5, 5)
    assert green.get_attribute("aria-pressed") == "false"
    assert pixel(page, RIGHT_TOP) == GREEN and pixel(page, LEFT_TOP) == mixed((250, 0, 250), RED)
    page.click("#none")
    assert pixel(page, LEFT_TOP) == RED
    page.click("#all")
    assert pixel(page, RIGHT_TOP) == mixed((0, 250, 250), GREEN)
    page.fill("#opacity", "100")
    assert pixel(page, RIGHT_TOP) == (0, 250, 250)
    green.hover()
    assert pixel(page, LEFT_TOP) == RED, "the class under the mouse stands alone"


def test_the_keyboard_is_enough(page: Any, made: Service, tmp_path: Path) -> None:
    def tab_to(selector: str) -> None:
        for _ in range(40):
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"Tab never reaches {selector}")

    page.on("filechooser", lambda chooser: chooser.set_files(photo(tmp_path)))
    page.keyboard.press("Tab")
    assert page.text_content(":focus") == "Skip to the controls"
    tab_to("#choose")
    page.keyboard.press("Enter")
    shows(page, "1.00")
    tab_to("#width-left")
    page.keyboard.press("ArrowLeft")
    shows(page, "0.50")
    tab_to("#compare")
    page.keyboard.press("Space")
    shows(page, "0.25", "right")
    tab_to("#width-right")
    page.keyboard.press("End")
    shows(page, "1.00", "right")
    tab_to(".legend button")
    page.keyboard.press("Space")
    assert pixel(page, LEFT_TOP) == RED
    tab_to("#divider")
    page.keyboard.press("ArrowLeft")
    assert page.get_attribute("#divider", "aria-valuenow") == "48"
    outline = page.evaluate("getComputedStyle(document.querySelector('#divider svg')).outlineStyle")
    assert outline == "solid", "the focus can be seen"


def test_the_server_may_choose(page: Any, made: Service, tmp_path: Path) -> None:
    pick(page, photo(tmp_path))
    made.chooser._controller = type("Fixed", (), {"width": 0.5, "observe": lambda *_: 0.5})()  # type: ignore[assignment]
    page.check("#auto")
    shows(page, "0.50")
    assert page.text_content("#figure-left") == "0.50"
    page.focus("#width-left")
    page.keyboard.press("End")
    shows(page, "1.00")
    assert not page.is_checked("#auto"), "who moves the slider chooses again"


def test_on_a_phone(browser: Any, url: str, tmp_path: Path) -> None:
    phone = {"width": 390, "height": 844}
    with opened(browser, url, viewport=phone, is_mobile=True, has_touch=True, color_scheme="dark") as page:
        assert page.is_visible("text=Tap to choose a picture")
        pick(page, photo(tmp_path))
        page.check("#compare")
        shows(page, "0.25", "right")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        slider = page.locator("#width-right")
        slider.scroll_into_view_if_needed()
        seen = page.locator("#viewer").bounding_box()
        assert seen["y"] >= -1 and seen["y"] + seen["height"] < slider.bounding_box()["y"], (
            "picture and slider together"
        )
        for button in page.locator("button:visible, .switch:visible").all():
            assert button.bounding_box()["height"] >= 40
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 22, 20)"


def test_everything_has_a_name(page: Any, tmp_path: Path) -> None:
    pick(page, photo(tmp_path))
    page.check("#compare")
    shows(page, "0.25", "right")
    tree = page.locator("body").aria_snapshot()
    for name in (
        "Width on the left",
        "Width on the right",
        "Divider between the two widths",
        "Strength of the colours",
    ):
        assert name in tree
    for role in ("button", "slider", "checkbox", "link", "img", "textbox"):
        assert f"- {role}:" not in tree and f"- {role}\n" not in tree, f"a {role} without a name"


def test_what_is_no_picture(page: Any, tmp_path: Path) -> None:
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"})
    page.wait_for_selector("#notice:not([hidden])")
    assert "cannot show notes.txt" in page.text_content("#notice")
    page.click("#notice-close")
    assert not page.is_visible("#notice")
    pick(page, photo(tmp_path))


def test_refusals_are_shown_in_the_servers_words(browser: Any, tmp_path: Path) -> None:
    strict = service(max_pixels=100)
    with Server(create_app(strict)) as server, opened(browser, server.url) as page:
        page.set_input_files("#file", photo(tmp_path))
        page.wait_for_selector("#notice:not([hidden])")
        assert page.text_content("#notice-text").startswith("240 x 120 pixels, and at most 100 are decoded here")
        assert not page.is_visible("#notice-action")


def test_a_server_that_went_away(browser: Any, tmp_path: Path) -> None:
    made = service()
    with Server(create_app(made)) as server:
        view = opened(browser, server.url)
        page = view.__enter__()
        pick(page, photo(tmp_path))
    page.focus("#width-left")
    page.keyboard.press("Home")
    page.wait_for_selector("text=The server cannot be reached")
    assert page.is_visible("#notice-action") and page.text_content("#server-text") == "Not reachable"
    view.__exit__()


def test_a_key_is_asked_for(browser: Any, tmp_path: Path) -> None:
    locked = service(api_key="0123456789abcdef")
    with Server(create_app(locked)) as server:
        view = opened(browser, server.url)
        page = view.context.new_page()
        page.goto(server.url)
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key", "0123456789abcdef")
        page.keyboard.press("Enter")
        page.wait_for_selector("#server[data-state=ready]")
        pick(page, photo(tmp_path))
        view.context.close()


def test_the_camera_runs_until_it_is_stopped(page: Any, made: Service) -> None:
    page.click("#camera")
    page.locator("#chart rect.work").nth(3).wait_for(state="attached")
    assert "a second" in page.text_content("#time-now")
    page.click("#camera")
    page.wait_for_timeout(300)
    calls = len(made.predictor.calls)
    page.wait_for_timeout(300)
    assert len(made.predictor.calls) == calls and page.text_content("#camera") == "Camera"


def test_large_pictures_are_sent_smaller(page: Any, made: Service, tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []
    made.predictor.labels = lambda image, width: seen.append(image.shape) or image.argmax(2).astype(np.uint8)
    path = tmp_path / "large.png"
    path.write_bytes(encoded(np.zeros((1000, 2000, 3), np.uint8)))
    pick(page, path)
    assert seen[-1] == (640, 1280, 3)


def test_a_dropped_picture(page: Any) -> None:
    data = base64.b64encode(encoded(picture(120, 240))).decode()
    page.evaluate(
        """data => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
            window.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, cancelable: true, bubbles: true }));
        }""",
        data,
    )
    shows(page, "1.00")
    assert "dropped.png" in page.text_content("#source-text")


DECODE = """async (data) => {
    const { decodeMask } = await import("/page/png.js");
    const mask = await decodeMask(Uint8Array.from(atob(data), (c) => c.charCodeAt(0)).buffer);
    return [mask.width, mask.height, [...mask.indices]];
}"""


def test_masks_are_decoded_without_loss(page: Any) -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 256, (9, 14))
    mask[5:] = np.cumsum(mask[5:] % 3, 1)
    for data in (by_pillow(mask), *(by_hand(mask, filter) for filter in range(5))):
        assert np.array_equal(np.asarray(Image.open(BytesIO(data))), mask), "the file is right"
        assert page.evaluate(DECODE, base64.b64encode(data).decode()) == [14, 9, mask.ravel().tolist()]


def by_pillow(mask: np.ndarray) -> bytes:
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette([7] * 768)  # one colour for all: only the indices tell the classes apart
    return encoded(image, bits=8)


def by_hand(mask: np.ndarray, filter: int) -> bytes:
    """By the specification, with one of PNG's five row filters (Pillow writes palette images without)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    height, width = mask.shape
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 3, 0, 0, 0])
    rows = b"".join(bytes([filter, *filtered(mask, y, filter)]) for y in range(height))
    parts = [(b"IHDR", header), (b"PLTE", bytes(768)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in parts)


def filtered(mask: np.ndarray, y: int, filter: int) -> list[int]:
    """A row less what PNG's filter predicts of it."""
    above = mask[y - 1] if y else np.zeros_like(mask[0])
    left, corner = np.append(0, mask[y, :-1]), np.append(0, above[:-1])
    distances = np.abs(np.stack([above - corner, left - corner, left + above - 2 * corner]))
    paeth = np.choose(distances.argmin(0), [left, above, corner])
    predicted = [np.zeros_like(left), left, above, (left + above) // 2, paeth][filter]
    return ((mask[y] - predicted) % 256).tolist()
