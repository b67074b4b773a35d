"""What a server counts, for Prometheus: in a registry of its own, so that several servers may live in one process.

Labels have few values: paths are those of the routes, widths those of the model. It knows no framework.

Usage:
    >>> metrics = Metrics(waiting=lambda: 0, running=lambda: 0, width=lambda: 1.0)
    >>> metrics.request("/v1/segment/mask", 200)
    >>> text = metrics.text()
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

__all__ = ["METRICS_TYPE", "Metrics"]

METRICS_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """The counters of one server.

    Args:
        waiting: requests in the queue.
        running: requests at work.
        width: what a request gets now that names none.
    """

    def __init__(
        self, *, waiting: Callable[[], float], running: Callable[[], float], width: Callable[[], float]
    ) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("litheseg_requests", "Answers by status", ["path", "status"], registry=registry)
        self._refused = Counter("litheseg_refused", "Refusals by reason", ["reason"], registry=registry)
        self._abandoned = Counter("litheseg_abandoned", "Clients that left before the answer", registry=registry)
        self._latency = Histogram(
            "litheseg_request_seconds",
            "From a received upload to its answer, by width",
            ["width"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue = Histogram("litheseg_queue_seconds", "Time in the queue", buckets=_SECONDS, registry=registry)
        for name, meaning, value in (
            ("litheseg_queue_depth", "Requests in the queue", waiting),
            ("litheseg_running", "Requests at work", running),
            ("litheseg_width", "Width of a request that names none", width),
        ):
            Gauge(name, meaning, registry=registry).set_function(value)

    def request(self, path: str, status: int) -> None:
        """An answer was sent."""
        self._requests.labels(path, str(status)).inc()

    def refused(self, reason: str) -> None:
        """A request was refused, with a code of `PROBLEMS`."""
        self._refused.labels(reason).inc()

    def abandoned(self) -> None:
        """A client left."""
        self._abandoned.inc()

    def answered(self, width: float, queue_ms: float, total_ms: float) -> None:
        """An image was segmented."""
        self._latency.labels(f"{width:g}").observe(total_ms / 1e3)
        self._queue.observe(queue_ms / 1e3)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)
