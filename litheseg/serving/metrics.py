"""Prometheus metrics of a server, in a registry of its own, so that several servers can run in one process.

Labels have few values: paths are those of the routes, widths those of the model.

Usage:
    >>> metrics = Metrics()
    >>> metrics.requests.labels("/v1/segment/mask", "200").inc()
    >>> text = metrics.text(waiting=0, running=1, width=0.5)
"""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

__all__ = ["METRICS_TYPE", "Metrics"]

METRICS_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """The counters of one server.

    Attributes:
        requests: answers, by path and status.
        refused: refusals, by a code of `PROBLEMS`.
        abandoned: clients that left before the answer.
        latency: seconds from a received upload to its answer, by width.
        queued: seconds in the queue.
    """

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter("litheseg_requests", "Answers by status", ["path", "status"], registry=registry)
        self.refused = Counter("litheseg_refused", "Refusals by reason", ["reason"], registry=registry)
        self.abandoned = Counter("litheseg_abandoned", "Clients that left before the answer", registry=registry)
        seconds: dict[str, Any] = {"buckets": _SECONDS, "registry": registry}
        meaning = "From a received upload to its answer, by width"
        self.latency = Histogram("litheseg_request_seconds", meaning, ["width"], **seconds)
        self.queued = Histogram("litheseg_queue_seconds", "Time in the queue", **seconds)
        self._waiting = Gauge("litheseg_queue_depth", "Requests in the queue", registry=registry)
        self._running = Gauge("litheseg_running", "Requests at work", registry=registry)
        self._width = Gauge("litheseg_width", "Width of a request that names none", registry=registry)

    def text(self, *, waiting: int, running: int, width: float) -> bytes:
        """All of it in Prometheus' text format, with what is in the queue, at work, and the present width."""
        self._waiting.set(waiting)
        self._running.set(running)
        self._width.set(width)
        return generate_latest(self._registry)
