"""How long a search waits for the embeddings of a request."""

import time
from typing import Any

import numpy as np
from corpus import requests

from ebm_encode import Encoder

COUNTS = (1, 8, 32, 64)


def measure(encoder: Encoder, count: int, *, calls: int, seconds: float) -> dict[str, Any]:
    """Median and 99th percentile of calls with `count` states each, from text to checked rows.

    Args:
        encoder: The encoder.
        count: States of a request.
        calls: Number of calls.
        seconds: Time after which there are no more calls.
    """
    asked, what = requests(count, most=min(calls, 10))
    for some in asked:
        encoder.encode(some)  # finds memory and kernels
    tokens = [int(encoder.prompts.tokenize(some).lengths.sum()) for some in asked]
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < calls and time.perf_counter() < end:
        some = asked[len(times) % len(asked)]
        start = time.perf_counter()
        encoder.encode(some)
        times.append(time.perf_counter() - start)
    return {
        "states": count,
        "what": what,
        "calls": len(times),
        "different_requests": len(asked),
        "tokens": float(np.mean(tokens)),
        "median_seconds": float(np.median(times)),
        "p99_seconds": float(np.quantile(times, 0.99)),
        "slowest_seconds": max(times),
    }
