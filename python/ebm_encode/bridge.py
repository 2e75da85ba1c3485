"""What a Rust host calls; plain numbers, texts and one numpy array cross the border."""

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode.description import describe_encoder
from ebm_encode.encoder import Encoder
from ebm_encode.errors import EncodingError
from ebm_encode.policy.decoding import AbandonedError
from ebm_encode.policy.tactics import TacticPolicy

Prompt = tuple[int, int | None]
"""Length of a state's prompt in tokens, and a 64-bit digest of its token ids, if there is one."""

Outcome = tuple[int, str, bool, str]
"""Index of a state, its status, whether it was cut, and why there is no embedding."""

Tactics = tuple[list[tuple[str, float]], str | None]
"""A state's tactics with their log-probabilities, or why there are none."""

LogTo = Callable[[int, str, str], None]
"""Takes a level (as of `logging`), a logger's name and a message."""


def load(log_to: LogTo, threads: int | None, options: dict[str, Any]) -> Encoder:
    """Loads an encoder for a host.

    Args:
        log_to: Gets what this package logs.
        threads: How many threads torch may use within an operation; as it likes, if not given.
        options: Arguments of `Encoder.load`.
    """
    _prepare(log_to, threads)
    return Encoder.load(**options)


def load_policy(log_to: LogTo, threads: int | None, options: dict[str, Any]) -> TacticPolicy:
    """As `load`, for a policy; `options` are arguments of `TacticPolicy.load`."""
    _prepare(log_to, threads)
    return TacticPolicy.load(**options)


def policy_beside(encoder: Encoder, options: dict[str, Any]) -> TacticPolicy:
    """A policy that shares an encoder's weights; `options` are those of `TacticPolicy.beside`."""
    return TacticPolicy.beside(encoder, **options)


def propose(
    policy: Any,
    states: Sequence[str],
    abandoned: Callable[[], bool],
    options: dict[str, Any],
) -> list[Tactics] | None:
    """Tactics for a host's states.

    Args:
        policy: A `TacticPolicy`.
        states: The states.
        abandoned: Whether nobody waits any more.
        options: Arguments of `TacticPolicy.propose`.

    Returns:
        One entry per state; `None` if nobody waits any more.
    """
    try:
        found = policy.propose(states, abandoned=abandoned, **options)
    except AbandonedError:
        return None
    return [(proposal.tactics, proposal.reason) for proposal in found]


def describe(encoder: Encoder) -> str:
    """What the encoder is made of and runs on, as a JSON object."""
    return json.dumps(describe_encoder(encoder), ensure_ascii=True)


def encode(
    encoder: Any, states: Sequence[str], out: NDArray[np.float32]
) -> tuple[list[Prompt], list[Outcome]]:
    """Writes embeddings into the host's array.

    Args:
        encoder: An `Encoder`, or whatever has its `encode_into`.
        states: The states.
        out: float32 `[len(states), dim]`, C order, writeable, full of NaN.

    Returns:
        Each prompt's length and digest, and the outcome of every state that is not simply `ok`.

    Raises:
        EncodingError: If the encoder does not return one report per state.
    """
    reports = encoder.encode_into(states, out)
    if len(reports) != len(states):
        raise EncodingError(f"encode_into returned {len(reports)} reports for {len(states)} states")
    # Encoders other than ours may not have a digest.
    prompts = [(report.tokens, getattr(report, "token_digest", None)) for report in reports]
    special = [
        (i, report.status, report.truncated, report.reason)
        for i, report in enumerate(reports)
        if report.truncated or report.status != "ok"
    ]
    return prompts, special


def _prepare(log_to: LogTo, threads: int | None) -> None:
    package = logging.getLogger("ebm_encode")
    package.handlers, package.propagate = [_Handler(log_to)], False
    package.setLevel(logging.INFO)
    if threads is not None:
        torch.set_num_threads(threads)


class _Handler(logging.Handler):
    """Hands records to the host."""

    def __init__(self, log_to: LogTo) -> None:
        super().__init__()
        self._log_to = log_to

    def emit(self, record: logging.LogRecord) -> None:
        self._log_to(record.levelno, record.name, record.getMessage())
