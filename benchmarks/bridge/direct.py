"""Times the Python encoder called from Python: the baseline. Prints one JSON object."""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
from free import make_free

from ebm_encode import Encoder


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-path")
    parser.add_argument("--states", type=Path)
    parser.add_argument("--free", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--calls", type=int)
    arguments = parser.parse_args()
    if arguments.free:
        make_free()
    encoder = Encoder.load(arguments.model_path)
    texts = json.loads(arguments.states.read_text())
    medians = {}
    for size in arguments.sizes:
        states, times = texts[:size], []
        out = np.empty((size, encoder.dim), np.float32)
        for call in range(arguments.calls + arguments.calls // 10):
            start = time.perf_counter()
            encoder.encode_into(states, out)
            if call >= arguments.calls // 10:
                times.append((time.perf_counter() - start) * 1e6)
        medians[size] = statistics.median(times)
    print(json.dumps({"direct_us": medians}))


if __name__ == "__main__":
    main()
