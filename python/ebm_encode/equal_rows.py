"""Which states may have equal rows: those whose prompts are the same to the model."""

import json
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ebm_encode.errors import EncodingError

if TYPE_CHECKING:
    from ebm_encode.encoder import Encoder

_EQUAL = 1e-5
"""Rows of two sequences alone are equal if they are nearer than this, relative to their norm."""


def may_be_equal(encoder: "Encoder", left: NDArray[np.uint32], right: NDArray[np.uint32]) -> bool:
    """Whether equal rows of two token sequences are right.

    They are for the same tokens. Two more kinds are equal to a model that does not count positions:
    one token repeated, as attention over equal values gives that value however many there are; and
    at layer 0, where a token's state is its embedding, sequences of the same tokens in other order
    or number for the mean, and with the same last token. Where lengths differ, the model is asked,
    one sequence at a time: models with learned positions tell such sequences apart.

    Args:
        encoder: Whose rows they are.
        left: Token ids, uint32 `[n]`.
        right: Token ids, uint32 `[m]`.
    """
    if np.array_equal(left, right):
        return True
    made_by = json.loads(encoder.identity.to_json())
    if not _alike(made_by["layer"], made_by["pooling"], left, right):
        return False
    if made_by["layer"] == 0 and len(left) == len(right):
        return True
    try:
        rows = [encoder.run_alone(sequence) for sequence in (left, right)]
    except EncodingError:
        return False
    return bool(np.linalg.norm(rows[0] - rows[1]) <= _EQUAL * np.linalg.norm(rows[0]))


def _alike(layer: int, pooling: str, left: NDArray[np.uint32], right: NDArray[np.uint32]) -> bool:
    """Whether a model that does not count positions may take two sequences for the same."""
    if not len(left) or not len(right):
        return False
    ids, counts = np.unique(left, return_counts=True)
    other_ids, other_counts = np.unique(right, return_counts=True)
    same_ids = np.array_equal(ids, other_ids)
    if same_ids and len(ids) == 1:
        return True
    if layer != 0:
        return False
    if pooling == "last":
        return bool(left[-1] == right[-1])
    return same_ids and np.array_equal(counts * len(right), other_counts * len(left))
