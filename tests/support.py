"""Where things are, and the faults of real servers."""

import json
from dataclasses import replace
from pathlib import Path

from ebm_encode._core import CacheWriter, Identity
from ebm_encode.engines.compared import Compared

ROOT = Path(__file__).parent.parent
PROVER = ROOT / "target" / "release" / "ebm-prover"
SAMPLES = ROOT / "samples"
FILES = sorted(SAMPLES.glob("*.parquet"))


def make_identity(**changes):
    """An encoder's identity, with some fields changed."""
    fields = {
        "weights": "blake3:w",
        "config": "blake3:c",
        "tokenizer": "blake3:t",
        "template": "{state}",
        "special_tokens": "tokenizer-default-once",
        "pooling": "mean",
        "layer": -1,
        "dtype": "float32",
        "quantization": "none",
        "max_length": 2048,
        "truncation": "right",
    }
    return Identity.from_json(json.dumps(fields | changes))


def write_plain_cache(path, states, rows, **changes):
    """Writes a cache with our writer, of an encoder that does not exist."""
    writer = CacheWriter(path)
    writer.open(make_identity(**changes), rows.shape[1], checkpoint_rows=100)
    assert not any(writer.append(states, rows))
    writer.finish({"model": "a model"})
    return path


def zero_tail(rows):
    """Only the first prompt of a batch was answered."""
    rows[1:] = 0
    return rows


def first_copied(rows):
    """The answer to the first prompt was given to all."""
    rows[:] = rows[0]
    return rows


def compared_up_to(encoder, length, tokens_per_forward):
    """Has an encoder believe that its engine was compared for such sizes, and for no others."""
    selection = encoder.selection
    compared = Compared(length, tokens_per_forward)
    selection.choice = replace(selection.choice, compared=compared)


def compare_nothing(encoder):
    """Has an encoder compare no pass with the reference any more."""
    compared_up_to(encoder, 10_000, 10_000)


def compare_everything(encoder):
    """Has an encoder compare the next pass with the reference."""
    compared_up_to(encoder, 0, 0)
