"""What a server counts, for Prometheus."""

from collections import Counter as Count
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
_STATES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Metrics:
    """Counters of one server, in a separate registry.

    Args:
        waiting: Tells how many states wait or are being encoded.

    Attributes:
        registry: What `/metrics` shows.
        requests: Requests by endpoint and status.
        seconds: Their durations.
        states: States of requests by outcome (`ok`, `bad`, ...).
        tokens: Tokens of the prompts of those that were encoded.
        request_states: States of a request.
        rejected: Requests that were not taken, by reason.
    """

    def __init__(self, waiting: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry, "namespace": "ebm_encode"}
        self.requests = Counter(
            "requests", "Requests by endpoint and status", ["endpoint", "status"], **own
        )
        self.seconds = Histogram(
            "request_seconds", "Durations of requests", ["endpoint"], buckets=_SECONDS, **own
        )
        self.states = Counter("states", "States of requests by outcome", ["status"], **own)
        self.tokens = Counter("tokens", "Tokens of prompts that were encoded", **own)
        self.request_states = Histogram(
            "request_states", "States of a request", buckets=_STATES, **own
        )
        self.rejected = Counter("rejected", "Requests that were not taken", ["reason"], **own)
        Gauge("waiting_states", "States that wait or are being encoded", **own).set_function(
            waiting
        )
        self._own = own

    def count_outcomes(self, statuses: Iterable[str], tokens: int) -> None:
        """Counts the states of one answer."""
        counted = Count(statuses)
        for status, number in counted.items():
            self.states.labels(status).inc(number)
        self.tokens.inc(tokens)
        self.request_states.observe(counted.total())

    def follow(self, statistics: Callable[[], dict[str, float]]) -> None:
        """Shows what an encoder counts: hits in the cache and in memory, batches."""
        names = {
            "cache_hits": "States found in the cache",
            "memory_hits": "States found in memory",
            "encoded": "States that went through the model",
            "calls": "Batches that went through the model",
            "shared_batches": "Batches with states of several requests",
        }
        for name, text in names.items():
            gauge = Gauge(f"encoder_{name}", text, **self._own)
            gauge.set_function(partial(_one, statistics, name))


def _one(statistics: Callable[[], dict[str, float]], name: str) -> float:
    return float(statistics().get(name, 0))
