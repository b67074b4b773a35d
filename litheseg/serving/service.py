"""Images in, encoded masks out: one model at work for many clients.

It joins the worker threads, the choice of widths and the metrics. It runs on an event loop without blocking it:
decoding, the network and encoding run in worker threads.

Usage:
    >>> service = Service(Predictor("model.safetensors"), ServerSettings(), name="model")
    >>> service.prepare()
    >>> answer = await service.segment(data, WidthRequest(width=0.5), mask_png)
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from litheseg.masks.classes import CAMVID_CLASSES
from litheseg.runtime.predictor import Predictor
from litheseg.serving.encodings import Encode, mask_png
from litheseg.serving.images import decode_image, draw_street, sample_photo
from litheseg.serving.metrics import Metrics
from litheseg.serving.problems import Problem
from litheseg.serving.settings import ServerSettings
from litheseg.serving.widths import WidthChooser, WidthRequest
from litheseg.serving.workers import LoadTimes, SustainedLoad, Workers, measure_load, sustained_load

__all__ = ["Abandoned", "EncodedMask", "Service"]

_log = logging.getLogger(__name__)

_UPLOADS = 64  # that may arrive at once
_SAMPLE_SIZE = (480, 640)  # pixels, where the model does not say
_EXAMPLE_SIDE = 960  # pixels of the longer side of an example


class Abandoned(Exception):
    """The client left before its answer."""


@dataclass(frozen=True)
class EncodedMask:
    """An answer, and the milliseconds of its stages."""

    body: bytes
    width: float
    queue_ms: float
    decode_ms: float
    predict_ms: float
    encode_ms: float

    @property
    def work_ms(self) -> float:
        """All but waiting."""
        return self.decode_ms + self.predict_ms + self.encode_ms


class Service:
    """One model at work for many clients.

    Args:
        predictor: the model.
        settings: limits.
        name: of the model, for people.

    Raises:
        WidthError: `settings.width` is none of the model's.
    """

    def __init__(self, predictor: Predictor, settings: ServerSettings, name: str) -> None:
        self.predictor, self.settings, self.name = predictor, settings, name
        predictor.header.images.require_rgb8("a browser")
        fixed = None if settings.width is None else predictor.check_width(settings.width)
        self.chooser = WidthChooser(predictor.widths, target_ms=settings.target_ms, fixed=fixed)
        self.workers = Workers(settings.workers, settings.queue)
        self.metrics = Metrics()
        self._ready = threading.Event()
        self._receiving = 0
        self._load_times: dict[float, LoadTimes] = {}

    @property
    def sample_size(self) -> tuple[int, int]:
        """Height and width of the images that the widths are measured with; no more pixels than requests may have."""
        height, width = self.predictor.size or _SAMPLE_SIZE
        share = min(1.0, math.sqrt(self.settings.max_pixels / (height * width)))
        return max(1, int(height * share)), max(1, int(width * share))

    @property
    def ready(self) -> bool:
        """Whether it is warm and takes requests."""
        return self._ready.is_set() and not self.workers.stopping

    @property
    def has_example(self) -> bool:
        """Whether the model is one of street scenes, for which examples are drawn."""
        return self.predictor.classes.names == CAMVID_CLASSES.names

    def prepare(self) -> None:
        """Load and measure every width; requests are refused until this is done. A second call does nothing."""
        if self._ready.is_set():
            return
        self.predictor.prepare()
        data, widths = sample_photo(self.sample_size), self.predictor.widths
        self._load_times = measure_load(lambda width: self._encoded(data, width, mask_png, 0.0), widths, self.workers)
        self.chooser.start_from({width: times.alone for width, times in self._load_times.items()})
        self._ready.set()
        _log.info("%s is ready at widths %s", self.name, ", ".join(f"{width:g}" for width in widths))

    def sustained(self, width: float) -> SustainedLoad | None:
        """What a width can serve within the target; None until it was measured."""
        times, limits = self._load_times.get(width), self.settings
        if times is None:
            return None
        return sustained_load(times, workers=limits.workers, queue=limits.queue, target_ms=limits.target_ms)

    def check_open(self) -> None:
        """Refuse while the model is loaded, and during shutdown.

        Raises:
            Problem: "starting" or "stopping".
        """
        self.workers.check_open()
        if not self._ready.is_set():
            raise Problem("starting", "the model is being loaded; try again in a moment", retry_after=2)

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """While an upload arrives; on the event loop only.

        Raises:
            Problem: "starting", "stopping", or "busy" if too many arrive at once: they fill the memory.
        """
        self.check_open()
        if self._receiving >= _UPLOADS:
            raise Problem("busy", f"{_UPLOADS} uploads arrive already; try again in a moment", retry_after=1)
        self._receiving += 1
        try:
            yield
        finally:
            self._receiving -= 1

    async def segment(
        self,
        data: bytes,
        request: WidthRequest,
        encode: Encode,
        disconnected: Callable[[], Coroutine[Any, Any, None]],
    ) -> EncodedMask:
        """Label one image.

        Args:
            data: an image file.
            request: its width is one of the model's.
            encode: makes the answer's body of the mask.
            disconnected: returns when the client has left.

        Raises:
            Problem: refused, or an image that cannot be used.
            Abandoned: `disconnected` returned first; work that had not begun is dropped.
        """

        def work(waited_ms: float, crowded: bool) -> EncodedMask:
            width = self.chooser.choose(request, waited_ms=waited_ms, crowded=crowded)
            answer = self._encoded(data, width, encode, waited_ms)
            self.chooser.observe(request, width, waited_ms=waited_ms, work_ms=answer.work_ms)
            return answer

        self.check_open()
        seconds = self.settings.timeout
        answer = asyncio.wrap_future(self.workers.submit(work))  # cancelled with it
        left = asyncio.ensure_future(disconnected())
        try:
            both: set[asyncio.Future[Any]] = {answer, left}
            await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                if left.done():
                    raise Abandoned
                detail = f"no answer within {seconds:g} s; send a smaller image, or ask for a narrower width"
                raise Problem("too-slow", detail, retry_after=1)
        finally:
            answer.cancel()
            left.cancel()
        mask = answer.result()
        self.metrics.latency.labels(f"{mask.width:g}").observe((mask.queue_ms + mask.work_ms) / 1e3)
        self.metrics.queued.observe(mask.queue_ms / 1e3)
        return mask

    async def example(self, seed: int) -> bytes:
        """A street scene as PNG: of the training images' shape, larger where the model makes images small for itself.

        Raises:
            Problem: "not-found" for a model of other classes, "busy" or "stopping".
        """
        if not self.has_example:
            raise Problem("not-found", "this model does not label street scenes; send an image of your own")
        header = self.predictor.header
        times = max(1, _EXAMPLE_SIDE // max(header.size)) if header.resizes else 1
        size = (header.size[0] * times, header.size[1] * times)
        return await asyncio.wrap_future(self.workers.submit(lambda *_: draw_street(seed, size)))

    def _encoded(self, data: bytes, width: float, encode: Encode, waited_ms: float) -> EncodedMask:
        started = time.perf_counter()
        image = decode_image(data, self.settings.max_pixels)
        decoded = time.perf_counter()
        mask = self.predictor.predict_rgb(image, width=width)
        predicted = time.perf_counter()
        body = encode(image, mask, self.predictor.classes)
        times = np.diff([started, decoded, predicted, time.perf_counter()])
        return EncodedMask(body, width, waited_ms, *(1e3 * times).tolist())
