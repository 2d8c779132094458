"""What a server counts and measures, in Prometheus' text format."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# From a status question to a large volume on a slow machine.
_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
_BATCHES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The figures of one server.

    Args:
      waiting: returns how many predictions wait.
    """

    def __init__(self, waiting: Callable[[], int]):
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "ahnet_serving_requests",
            "Calls answered, by method, protocol and status.",
            ("method", "protocol", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "ahnet_serving_request_seconds",
            "Time from a call's arrival to its answer.",
            ("method", "protocol"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "ahnet_serving_batch_requests",
            "Requests that were merged into one prediction.",
            buckets=_BATCHES,
            registry=self._registry,
        )
        Gauge(
            "ahnet_serving_waiting", "Predictions that wait for a turn.", registry=self._registry
        ).set_function(waiting)

    def count(self, method: str, protocol: str, status: str, begin: float) -> None:
        """Counts an answered call that began at `begin` on the clock of `time.monotonic`."""
        self._requests.labels(method, protocol, status).inc()
        self._seconds.labels(method, protocol).observe(time.monotonic() - begin)

    def count_batch(self, requests: int) -> None:
        """Counts a prediction for so many requests."""
        self._batches.observe(requests)

    def text(self) -> bytes:
        """Returns all figures in Prometheus' text format."""
        return generate_latest(self._registry)
