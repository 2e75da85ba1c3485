"""An encoder that writes a constant embedding, to measure the overhead of a request."""

import numpy as np

from ebm_encode.encoder import Encoder
from ebm_encode.reports import RowReport

DIM = 4096
_ROW = np.linspace(-1, 1, DIM, dtype=np.float32)


def _encode_into(self, states, out):
    del self
    out[:] = _ROW
    return [RowReport("ok", 1)] * len(states)


def make_free():
    """Has every `Encoder` of this process give all states the same `DIM` values."""
    Encoder.dim = DIM
    Encoder.encode_into = _encode_into


if __name__ == "__main__":  # run inside the Rust host
    make_free()
