"""Replies of SGLang to requests for hidden states, checked value by value.

What such replies got wrong, in which versions, stands in `docs/servers.md`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebm_encode.errors import UnsafeServerError


class IncompleteReplyError(Exception):
    """A prompt's first rows are missing: its prefix was cached, or it was computed in parts."""


def request_body(
    sequences: Sequence[NDArray[np.uint32]], ids: Sequence[str], *, extra_key: bool
) -> dict[str, Any]:
    """A request for the hidden states of all tokens of some prompts.

    Args:
        sequences: Token ids of each prompt.
        ids: An id for each prompt.
        extra_key: Whether prompts are kept out of the prefix cache by a key of their own; if not,
            by asking for the log-probabilities of all their tokens, which old versions know too.
    """
    body: dict[str, Any] = {
        "input_ids": [sequence.tolist() for sequence in sequences],
        "rid": list(ids),
        # With none, versions of 2026 return no states.
        "sampling_params": {"temperature": 0, "max_new_tokens": 1},
        "return_hidden_states": True,
        "stream": False,
    }
    if extra_key:
        return body | {"extra_key": list(ids)}
    return body | {"return_logprob": True, "logprob_start_len": 0}


def items_of(reply: Any, count: int) -> list[Any]:
    """The items of a reply, one per prompt.

    Raises:
        UnsafeServerError: If there are not as many as prompts.
    """
    items = reply if isinstance(reply, list) else [reply]
    if len(items) != count:
        raise UnsafeServerError(f"answered {len(items)} of {count} prompts")
    return items


def states_of(
    item: Any, sequence: NDArray[np.uint32], request_id: str, dim: int
) -> NDArray[np.float32]:
    """The hidden states of one prompt, float32 `(T, C)`.

    Raises:
        IncompleteReplyError: If the prompt's first rows are missing, and the reply says so.
        UnsafeServerError: If the reply is wrong.
    """
    meta = item.get("meta_info") if isinstance(item, dict) else None
    if not isinstance(meta, dict):
        raise UnsafeServerError("a reply has no meta_info")
    if meta.get("id") != request_id:
        raise UnsafeServerError(f"a reply is for request {meta.get('id')!r}, not {request_id!r}")
    length = len(sequence)
    if meta.get("prompt_tokens") != length:
        raise UnsafeServerError(
            f"counts {meta.get('prompt_tokens')} tokens in a prompt of {length}"
        )
    _require_same_ids(meta, sequence)
    cached = meta.get("cached_tokens")
    if not isinstance(cached, int):
        raise UnsafeServerError("does not say how much of a prompt was cached")
    states = _rows(meta.get("hidden_states"), dim)
    if len(states) > length:
        raise UnsafeServerError(f"gave {len(states)} rows for a prompt of {length} tokens")
    if cached or meta.get("num_retractions") or 0 < len(states) < length:
        raise IncompleteReplyError(f"{len(states)} of {length} rows, {cached} tokens cached")
    if len(states) == 0:
        raise UnsafeServerError(f"gave no rows for a prompt of {length} tokens")
    zero = ~states.any(axis=1)
    if zero.any():
        raise UnsafeServerError(f"gave {int(zero.sum())} zero vectors for {length} tokens")
    if not np.isfinite(states).all():
        states[:] = np.nan  # whatever is pooled from them is refused, and encoded by the reference
    return states


def _rows(hidden: Any, dim: int) -> NDArray[np.float32]:
    """The rows of the prompt: the first entry; later ones are of generated tokens."""
    if not isinstance(hidden, list):
        raise UnsafeServerError("a reply has no hidden_states")
    prefill = hidden[0] if hidden else []
    try:
        values = np.asarray(prefill)
        if values.dtype.kind == "O":  # null for NaN
            numbers = all(isinstance(v, float | int) or v is None for v in values.flat)
        else:
            numbers = values.dtype.kind in "fiu"
        rows = values.astype(np.float32) if numbers else None
    except (TypeError, ValueError) as error:
        raise UnsafeServerError(f"gave hidden states that are no matrix ({error})") from error
    if rows is None:
        raise UnsafeServerError("gave hidden states that are no numbers")
    if rows.size == 0:
        return np.zeros((0, dim), np.float32)
    if rows.ndim != 2 or rows.shape[1] != dim:  # noqa: PLR2004  (a matrix)
        raise UnsafeServerError(f"gave hidden states {list(rows.shape)}, expected [tokens, {dim}]")
    return rows


def _require_same_ids(meta: dict[str, Any], sequence: NDArray[np.uint32]) -> None:
    """Where log-probabilities were asked for, they say which tokens the server has run."""
    given = meta.get("input_token_logprobs")
    if not given:
        return
    ids = [entry[1] for entry in given]
    if ids != sequence.tolist():
        raise UnsafeServerError("ran other tokens than those it was sent")
