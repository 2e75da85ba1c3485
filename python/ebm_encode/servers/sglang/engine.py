"""The hidden states of a SGLang server as an engine."""

import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ebm_encode.engines.server import ServerEngine
from ebm_encode.errors import ServerError, UnsafeServerError
from ebm_encode.options import Pooling
from ebm_encode.servers.http import making_sense
from ebm_encode.servers.sglang.info import OWN_ROWS, SglangInfo, read_info, refusals
from ebm_encode.servers.sglang.replies import (
    IncompleteReplyError,
    items_of,
    request_body,
    states_of,
)
from ebm_encode.servers.sglang.structure import StructureCheck
from ebm_encode.servers.sglang.transport import Transport

T = TypeVar("T")

_REPLY_BYTES = 128 * 2**20
"""Largest reply that a request may bring, about."""
_BYTES_PER_VALUE = 20
"""A number as JSON."""
_MOST_SEQUENCES = 64
_TRIES = 3
"""How often a prompt whose first rows are missing is asked for, each time in a request for it."""

_SETTLING_SECONDS = 2.0
"""How long a server may go on counting a request that it has answered; seen: 0.05."""
_LOOK_SECONDS = 0.02


class SglangEngine(ServerEngine):
    """Runs token sequences through a SGLang server that returns hidden states.

    Every reply is checked: its ids, counts, finite values, and that rows of equal prefixes are
    equal. A prompt whose first rows are missing is asked for again.

    Args:
        transport: The way to the server.
        dim: Length of a hidden state.
        dtype: The encoder's compute dtype.
        pooling: `mean` over a sequence's tokens, or its `last`.
        exclusive: Whether nobody else uses the server, as the user says. Versions before 0.5.17
            are used only then, one prompt at a time.

    Raises:
        ServerError: If there is no such server.
        UnsafeServerError: If its hidden states cannot be used; with the reasons.
    """

    name = "sglang"

    def __init__(
        self, transport: Transport, *, dim: int, dtype: str, pooling: Pooling, exclusive: bool
    ) -> None:
        with making_sense(transport.where):
            info = read_info(transport.get, transport.where)
        reasons = refusals(info, dtype=dtype, exclusive=exclusive)
        if reasons:
            raise UnsafeServerError(f"{transport.where}: {'; '.join(reasons)}")
        tokens = max(1, _REPLY_BYTES // (dim * _BYTES_PER_VALUE))
        requests = 2 if info.keeps_rows_apart else 1
        if info.chunk is not None:  # of all requests under way
            tokens = min(tokens, max(1, info.chunk // requests))
        lengths = [length for length in (info.chunk, _prompt_limit(info)) if length is not None]
        super().__init__(
            pooling,
            request_tokens=tokens,
            request_sequences=_MOST_SEQUENCES if info.keeps_rows_apart else 1,
            longest=min(lengths) if lengths else None,
            gives_states=True,
            requests=requests,
        )
        self.info = info
        self.identity = {
            "backend": f"sglang {info.version}",
            "backend_dtype": f"{info.dtype or 'unknown'}, by the server's word",
            "backend_weights": "by the server's word",
        } | ({} if info.keeps_rows_apart else {"backend_use": "exclusive, by the user's word"})
        self._transport = transport
        self._dim = dim
        self._structure = StructureCheck(dtype, self._first_row)

    def describe(self) -> dict[str, Any]:
        """The server, its version and settings, for provenance; JSON values only."""
        return {
            "server": self._transport.where,
            "version": str(self.info.version),
            "model_path": self.info.model_path,
            "dtype": self.info.dtype,
            "settings": self.info.settings,
            "kept_out_of_the_prefix_cache_by": "extra_key"
            if self.info.has_extra_key
            else "logprob_start_len",
        }

    def ask(self, sequences: Sequence[NDArray[np.uint32]]) -> list[NDArray[np.float32]]:
        """The hidden states of some prompts, float32 (T, C) each."""
        states = self._ask(sequences)
        self._naming(lambda: self._structure.check(sequences, states))
        return states

    def _ask(self, sequences: Sequence[NDArray[np.uint32]]) -> list[NDArray[np.float32]]:
        found: dict[int, NDArray[np.float32]] = {}
        missing = self._request(sequences, list(range(len(sequences))), found)
        for _ in range(_TRIES):
            if not missing:
                break
            # How a server cuts prompts into parts depends on what else it works on.
            for i in [*missing]:
                missing.pop(i)
                missing |= self._request(sequences, [i], found)
        if missing:
            i, why = next(iter(missing.items()))
            raise ServerError(
                f"{self._transport.where}: gave only a part of a prompt of {len(sequences[i])}"
                f" tokens, {_TRIES} times ({why}); what is encoded is saved\nhint: start it with"
                " --chunked-prefill-size -1, or encode when fewer others use it"
            )
        return [found[i] for i in range(len(sequences))]

    def _request(
        self,
        sequences: Sequence[NDArray[np.uint32]],
        indices: Sequence[int],
        found: dict[int, NDArray[np.float32]],
    ) -> dict[int, str]:
        """Adds what one request brings; returns which prompts lack rows, and what was said."""
        self._require_unused()
        ids = [uuid.uuid4().hex for _ in indices]
        asked = [sequences[i] for i in indices]
        reply = self._transport.generate(
            request_body(asked, ids, extra_key=self.info.has_extra_key)
        )
        missing: dict[int, str] = {}
        items = self._naming(lambda: items_of(reply, len(indices)))
        for i, item, own in zip(indices, items, ids, strict=True):
            try:
                found[i] = self._naming(partial(states_of, item, sequences[i], own, self._dim))
            except IncompleteReplyError as error:
                missing[i] = str(error)
        self._require_unused()
        return missing

    def _first_row(self, token: int) -> NDArray[np.float32]:
        row: NDArray[np.float32] = self._ask([np.array([token], np.uint32)])[0][0]
        return row

    def _require_unused(self) -> None:
        """On a version that mixes people's rows, others may be seen at work, if they are slow."""
        if self.info.keeps_rows_apart:
            return
        end = time.monotonic() + _SETTLING_SECONDS
        while self._transport.running():
            if time.monotonic() > end:
                raise UnsafeServerError(
                    f"{self._transport.where}: somebody else uses this server, and SGLang"
                    f" {self.info.version} mixes their rows into replies; nothing of this request"
                    f" was used\nhint: SGLang {OWN_ROWS} or newer"
                )
            time.sleep(_LOOK_SECONDS)

    def _naming(self, check: Callable[[], T]) -> T:
        """Has what a check refuses name the server."""
        try:
            with making_sense(self._transport.where):
                found = check()
        except UnsafeServerError as error:
            raise UnsafeServerError(
                f"{self._transport.where} (SGLang {self.info.version}): {error}; no embedding of"
                " this request was used\nhint: `ebm-encode doctor --server` tells what is wrong"
            ) from error
        return found


def _prompt_limit(info: SglangInfo) -> int | None:
    """A prompt and one new token must fit."""
    return None if info.longest is None else info.longest - 1
