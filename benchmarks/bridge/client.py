"""Times requests to the server, parsed with orjson. Prints one JSON object."""

import argparse
import json
import statistics
import threading
import time
from pathlib import Path

import httpx2 as httpx
import numpy as np
import orjson

_STATES_OF_A_CALLER = 8


def ask(client, states):
    response = client.post("/encode", content=orjson.dumps({"states": states}))
    response.raise_for_status()
    return np.array(orjson.loads(response.content)["embeddings"], np.float32)


def connect(port):
    headers = {"content-type": "application/json"}
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=600)


def wait_for(port):
    """Waits until the server has loaded its model."""
    with connect(port) as client:
        for _ in range(600):
            try:
                return ask(client, ["⊢ True"])
            except httpx.TransportError:
                time.sleep(0.2)
    raise TimeoutError("the server did not start")


def together(port, texts, callers, requests):
    """States per second of concurrent callers, each with its own connection."""

    def call(caller):
        with connect(port) as client:
            for number in range(requests):
                first = (caller * requests + number) * _STATES_OF_A_CALLER
                wanted = [texts[i % len(texts)] for i in range(first, first + _STATES_OF_A_CALLER)]
                ask(client, wanted)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(callers)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return callers * requests * _STATES_OF_A_CALLER / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--states", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--calls", type=int)
    parser.add_argument("--callers", type=int)
    parser.add_argument("--requests", type=int)
    arguments = parser.parse_args()
    texts = json.loads(arguments.states.read_text())
    wait_for(arguments.port)
    medians = {}
    with connect(arguments.port) as client:
        for size in arguments.sizes:
            times = []
            for call in range(arguments.calls + arguments.calls // 10):
                start = time.perf_counter()
                ask(client, texts[:size])
                if call >= arguments.calls // 10:
                    times.append((time.perf_counter() - start) * 1e6)
            medians[size] = statistics.median(times)
    rate = None
    if arguments.requests:
        rate = together(arguments.port, texts, arguments.callers, arguments.requests)
    print(json.dumps({"http_us": medians, "together": rate}))


if __name__ == "__main__":
    main()
