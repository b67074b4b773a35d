"""A server without a network: its predictor labels pixels by their largest channel, as slowly as a test asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import httpx
import numpy as np
from PIL import Image

from litheseg.bundle.header import BundleHeader
from litheseg.errors import WidthError
from litheseg.masks.classes import Classes
from litheseg.serving.app import create_app
from litheseg.serving.running import Server
from litheseg.serving.service import Service
from litheseg.serving.settings import ServerSettings

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
WIDTHS = (1.0, 0.5, 0.25)
CLASSES = Classes(("red", "green", "blue"), (RED, GREEN, BLUE))


class FakePredictor:
    """What the server uses of a `Predictor`."""

    def __init__(self, seconds: Mapping[float, float] | None = None, classes: Classes = CLASSES) -> None:
        self.seconds = dict(seconds or {})
        self.header = BundleHeader(
            architecture={"name": "fake", "args": {}},
            classes=classes,
            widths=WIDTHS,
            size=(24, 40),
            metrics={"1": {"miou": 0.75}},
        )
        self.runtime, self.classes, self.widths, self.size = "fake", classes, WIDTHS, (24, 40)
        self.calls: list[float] = []
        self.before: Callable[[], Any] = lambda: None  # called ahead of every prediction
        self.labels: Callable[[np.ndarray, float], np.ndarray] = lambda image, width: image.argmax(2).astype(np.uint8)

    def check_width(self, width: float) -> float:
        if width not in WIDTHS:
            raise WidthError(f"no width {width:g}; available: 1, 0.5, 0.25")
        return width

    def prepare(self, *widths: float) -> None:
        pass

    def predict_rgb(self, image: np.ndarray, *, width: float | None = None) -> np.ndarray:
        assert width is not None
        self.before()
        time.sleep(self.seconds.get(width, 0.0))
        self.calls.append(width)
        return self.labels(image, width)


def picture(height: int = 24, width: int = 40) -> np.ndarray:
    """Left half red, right half green over blue."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2] = RED
    image[: height // 2, width // 2 :] = GREEN
    image[height // 2 :, width // 2 :] = BLUE
    return image


def truth(height: int = 24, width: int = 40) -> np.ndarray:
    return picture(height, width).argmax(2).astype(np.uint8)


def encoded(image: np.ndarray | Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def service(predictor: Any = None, **settings: Any) -> Service:
    """Ready to serve; two workers unless told otherwise."""
    made = Service(predictor or FakePredictor(), ServerSettings(**{"workers": 2, **settings}), name="fake")
    made.prepare()
    return made


@contextmanager
def client_of(made: Service, **options: Any) -> Iterator[httpx.Client]:
    """A client of a real server on a free port."""
    address = {"verify": False, "timeout": 20}  # reading certificates takes a tenth of a second
    with Server(create_app(made)) as server, httpx.Client(base_url=server.url, **address, **options) as client:
        yield client
    made.workers.close()


def send(client: httpx.Client, path: str = "mask", data: bytes | None = None, **options: Any) -> httpx.Response:
    """Post an image to one of the segmenting paths."""
    content = encoded(picture()) if data is None else data
    return client.post(f"/v1/segment/{path}", files={"image": ("a.png", content)}, **options)
