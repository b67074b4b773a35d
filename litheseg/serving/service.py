"""Images in, encoded masks out: the queue, the workers, the width and the clock of one model.

It lives on an event loop but leaves it alone: decoding, the network and encoding run in worker threads. It knows
neither HTTP nor where images come from.

Usage:
    >>> service = Service(Predictor("model.safetensors"), ServerSettings(), name="model")
    >>> service.prepare()
    >>> outcome = await service.segment(data, Ask(width=0.5), mask_png)
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from litheseg.errors import WidthError
from litheseg.runtime.predictor import Predictor
from litheseg.serving.capacity import Capacity, Measured, capacity, measure
from litheseg.serving.encodings import Encode, mask_png
from litheseg.serving.example import draw, example_size, fits, photo
from litheseg.serving.images import decode_image
from litheseg.serving.metrics import Metrics
from litheseg.serving.pace import Ask, Pace
from litheseg.serving.problems import Problem
from litheseg.serving.settings import ServerSettings
from litheseg.serving.workers import Turn, Workers

__all__ = ["Abandoned", "EncodedMask", "Service"]

_log = logging.getLogger(__name__)

_UPLOADS = 64  # that may arrive at once
_EXAMPLE = (480, 640)  # pixels, where the model does not say


Gone = Callable[[], Coroutine[Any, Any, object]]


class Abandoned(Exception):
    """The client left before its answer."""


@dataclass(frozen=True)
class EncodedMask:
    """A mask, encoded, and where its time went, in milliseconds."""

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
        fixed = None if settings.width is None else predictor.check_width(settings.width)
        self.pace = Pace(predictor.widths, target_ms=settings.target_ms, fixed=fixed)
        self.workers = Workers(settings.workers, settings.queue)
        self.metrics = Metrics(
            waiting=lambda: self.workers.waiting,
            running=lambda: self.workers.running,
            width=lambda: self.pace.width,
        )
        self._ready = threading.Event()
        self._receiving = 0
        self._measured: dict[float, Measured] = {}

    @property
    def sample_size(self) -> tuple[int, int]:
        """Height and width of the images that the widths are measured with; no more pixels than requests may have."""
        height, width = self.predictor.size or _EXAMPLE
        share = min(1.0, math.sqrt(self.settings.max_pixels / (height * width)))
        return max(1, int(height * share)), max(1, int(width * share))

    @property
    def ready(self) -> bool:
        """Whether it is warm and takes requests."""
        return self._ready.is_set() and not self.workers.stopping

    def prepare(self) -> None:
        """Load and measure every width; requests are refused until this is done. A second call does nothing."""
        if self._ready.is_set():
            return
        self.predictor.prepare()
        data = photo(self.sample_size)
        widths = self.predictor.widths
        self._measured = measure(lambda width: self._outcome(data, width, mask_png, 0.0), widths, self.workers)
        self.pace.measured({width: times.alone for width, times in self._measured.items()})
        self._ready.set()
        _log.info("%s is ready at widths %s", self.name, ", ".join(f"{w:g}" for w in self.predictor.widths))

    def capacity(self, width: float) -> Capacity | None:
        """What a width can hold within the target; None until it was measured."""
        limits = self.settings
        if (times := self._measured.get(width)) is None:
            return None
        return capacity(times, workers=limits.workers, queue=limits.queue, target_ms=limits.target_ms)

    def check(self, ask: Ask) -> Ask:
        """The ask with the model's own number for its width.

        Raises:
            Problem: "invalid-parameter".
        """
        if ask.width is None:
            return ask
        where, message = "query.budget_ms", "give width or budget_ms, not both"
        if ask.budget_ms is None:
            try:
                return Ask(self.predictor.check_width(ask.width))
            except WidthError as error:
                where, message = "query.width", str(error)
        raise Problem("invalid-parameter", message, errors=[{"where": where, "message": message}])

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

    async def segment(self, data: bytes, ask: Ask, encode: Encode, gone: Gone | None = None) -> EncodedMask:
        """Label one image.

        Args:
            data: an image file.
            ask: as `check` returned it.
            encode: what to make of the mask.
            gone: returns when nobody waits for the answer any more.

        Raises:
            Problem: refused, or an image that cannot be used.
            Abandoned: `gone` returned first; work that had not begun is dropped.
        """
        self.check_open()
        future = self.workers.submit(lambda turn: self._work(data, ask, encode, turn))
        outcome = await self._await(future, gone)
        self.metrics.answered(outcome.width, outcome.queue_ms, outcome.queue_ms + outcome.work_ms)
        return outcome

    @property
    def has_example(self) -> bool:
        """Whether drawn streets are what the model knows."""
        return fits(self.predictor.classes)

    async def example(self, seed: int) -> bytes:
        """A street scene as PNG.

        Raises:
            Problem: "not-found" for a model of other classes, "busy" or "stopping".
        """
        if not self.has_example:
            raise Problem("not-found", "this model does not label street scenes; send an image of your own")
        size = example_size(self.predictor.header)
        return await asyncio.wrap_future(self.workers.submit(lambda turn: draw(seed, size)))

    async def _await(self, future: Future[EncodedMask], gone: Gone | None) -> EncodedMask:
        answer = asyncio.wrap_future(future)
        left = None if gone is None else asyncio.ensure_future(gone())
        try:
            both: set[asyncio.Future[Any]] = {answer} if left is None else {answer, left}
            await asyncio.wait(both, timeout=self.settings.timeout, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if left is not None and left.done():
                raise Abandoned
            seconds = self.settings.timeout
            detail = f"no answer within {seconds:g} s; send a smaller image, or ask for a narrower width"
            raise Problem("too-slow", detail, retry_after=1)
        finally:
            future.cancel()
            answer.cancel()
            if left is not None:
                left.cancel()

    def _work(self, data: bytes, ask: Ask, encode: Encode, turn: Turn) -> EncodedMask:
        width = self.pace.choose(ask, waited_ms=turn.waited_ms, crowded=turn.crowded)
        outcome = self._outcome(data, width, encode, turn.waited_ms)
        self.pace.observe(ask, width, waited_ms=turn.waited_ms, work_ms=outcome.work_ms)
        return outcome

    def _outcome(self, data: bytes, width: float, encode: Encode, waited_ms: float) -> EncodedMask:
        started = time.perf_counter()
        image = decode_image(data, self.settings.max_pixels)
        decoded = time.perf_counter()
        mask = self.predictor.predict_rgb(image, width=width)
        predicted = time.perf_counter()
        body = encode(image, mask, self.predictor.classes)
        encoded = time.perf_counter()
        milliseconds = [1e3 * part for part in (decoded - started, predicted - decoded, encoded - predicted)]
        return EncodedMask(body, width, waited_ms, *milliseconds)
