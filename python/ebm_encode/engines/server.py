"""Engines whose model runs in another process: an inference server's.

The encoder's own model is the reference. So a server passes the self-test like any engine, its
replies are compared with the reference while they grow, and a bulk run verifies a sample of them.
"""

import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebm_encode._core import Identity
from ebm_encode.engines.output import OutputSlots, Pass
from ebm_encode.errors import ServerError, UnsafeServerError
from ebm_encode.options import Pooling
from ebm_encode.prompts.tokens import Tokens

SERVER_ERRORS = (ServerError, UnsafeServerError)
"""What ends a run: there is no other engine to take, and the request may have ended the server."""

_PROBES = 2
"""Sequences of known embeddings that go along with a request."""
_LOOK_SECONDS = 0.2
"""How often a wait looks whether it is to end."""


class ServerEngine(ABC):
    """Runs token sequences through an inference server.

    It sends token ids, so that the tokenizer is the encoder's own.

    Args:
        pooling: `mean` over a sequence's tokens, or its `last`.
        request_tokens: Most tokens of a request; `None`: any number.
        request_sequences: Most sequences of a request.
        longest: Longest sequence that the server takes, in tokens; the encoder's own model runs
            longer ones. `None`: any length.
        gives_states: Whether replies hold the hidden state of each token, not only embeddings.
        requests: Requests under way, from all threads; with two, the server works while a reply is
            read.

    Attributes:
        name: The kind of server.
        identity: What the identity of an encoder with this server says beyond that of its model.
        longest: As given.
        gives_states: As given.
    """

    name: str

    def __init__(
        self,
        pooling: Pooling,
        *,
        request_tokens: int | None,
        request_sequences: int,
        longest: int | None,
        gives_states: bool,
        requests: int,
    ) -> None:
        self.identity: dict[str, str] = {}
        self.longest = longest
        self.gives_states = gives_states
        self._pooling: Pooling = pooling
        self._request_tokens = request_tokens
        self._request_sequences = request_sequences
        self._turn = threading.Semaphore(requests)
        self._stopped = threading.Event()
        self._probes: list[NDArray[np.uint32]] = []
        self._agree: Callable[[int, NDArray[np.float32]], bool] = lambda _, __: True
        self._rng = random.SystemRandom()

    @abstractmethod
    def ask(self, sequences: Sequence[NDArray[np.uint32]]) -> list[NDArray[np.float32]]:
        """What the server answers for some sequences, checked.

        Returns:
            One array per sequence: hidden states, float32 (T, C), if `gives_states`, else the
            embedding, (C,).

        Raises:
            ServerError: If the server cannot be reached, went away, or answered with an error.
            UnsafeServerError: If a reply is wrong.
        """

    def require_identity(self, identity: Identity) -> None:  # noqa: B027  (most cannot be asked)
        """Refuses a server that is known to be another encoder.

        Raises:
            IdentityMismatchError: If it is.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The server, its version and settings, for provenance; JSON values only."""

    def too_long(self, tokens: Tokens) -> list[int]:
        """The sequences that the server does not take."""
        if self.longest is None:
            return []
        return np.flatnonzero(tokens.lengths > self.longest).tolist()

    def plan(self, tokens: Tokens) -> list[list[int]]:
        """Requests, in the order of the sequences: neighbours share prefixes, which checks use."""
        batches: list[list[int]] = []
        room = 0
        for i, length in enumerate(tokens.lengths.tolist()):
            full = bool(batches) and len(batches[-1]) >= self._request_sequences
            if not batches or full or (self._request_tokens is not None and length > room):
                batches.append([])
                room = self._room_beside_probes()
            batches[-1].append(i)
            room -= length
        return batches

    def _room_beside_probes(self) -> int:
        """Tokens that a request's own sequences may have: at least half, and then fewer probes."""
        most = self._request_tokens or 0
        probes = sum(sorted(map(len, self._probes))[-_PROBES:])
        return max(most - probes, -(-most // 2))

    def size(self, sequences: Sequence[NDArray[np.uint32]]) -> int:
        """Tokens of a request."""
        return sum(map(len, sequences))

    def tokens_per_forward(self, size: int) -> int:  # noqa: ARG002
        """0: how the server batches is its own affair."""
        return 0

    def last_packed_index(self, sequences: Sequence[NDArray[np.uint32]]) -> int:
        """The longest sequence."""
        return max(range(len(sequences)), key=lambda i: len(sequences[i]))

    def forward(self, sequences: Sequence[NDArray[np.uint32]], slots: OutputSlots) -> Pass:
        """Sends a request; its embeddings are in the slots after `Pass.wait`."""
        answer = self._send(sequences)
        return Pass(slots, lambda: self._fill(slots, self._await(answer)))

    def states(
        self, sequences: Sequence[NDArray[np.uint32]], slots: OutputSlots, wanted: Sequence[int]
    ) -> list[NDArray[np.float32]]:
        """As `forward`, and waits; also the hidden states of some sequences, if it gives any."""
        found = self._await(self._send(sequences))
        self._fill(slots, found)
        return [found[i] for i in wanted]

    def trial(
        self, sequences: Sequence[NDArray[np.uint32]], slots: OutputSlots
    ) -> list[NDArray[np.float32]]:
        """As `states` of all."""
        return self.states(sequences, slots, range(len(sequences)))

    def know(self, probes: Tokens, agree: Callable[[int, NDArray[np.float32]], bool]) -> None:
        """Takes sequences of known embeddings, which go along with requests from now on.

        Replies show nothing of whose they are: embeddings in another order, or those of a server
        that was started again with another model, look like any other. Hidden states show it only
        where prompts begin differently. One sequence at a time gets none.

        Args:
            probes: The sequences.
            agree: Whether an embedding is that of the probe with an index.
        """
        if self._request_sequences > 1:
            self._probes = [probes[i] for i in range(len(probes))]
            self._agree = agree

    def stop(self) -> None:
        """Ends waits for answers, from any thread; a process that is interrupted does not wait."""
        self._stopped.set()

    def _send(self, sequences: Sequence[NDArray[np.uint32]]) -> "Future[list[NDArray[np.float32]]]":
        self._stopped.clear()
        answer: Future[list[NDArray[np.float32]]] = Future()

        def work() -> None:
            with self._turn:
                try:
                    answer.set_result(self._ask_with_probes(sequences))
                except BaseException as error:  # noqa: BLE001  (it is raised where it is awaited)
                    answer.set_exception(error)

        # A process that ends does not wait for it, as it would for a pool's.
        threading.Thread(target=work, name=self.name, daemon=True).start()
        return answer

    def _await(self, answer: "Future[list[NDArray[np.float32]]]") -> list[NDArray[np.float32]]:
        while True:
            try:
                return answer.result(timeout=_LOOK_SECONDS)
            except TimeoutError:
                if answer.done():
                    raise  # its own
                if self._stopped.is_set():
                    raise ServerError("stopped while a request was under way") from None

    def _ask_with_probes(
        self, sequences: Sequence[NDArray[np.uint32]]
    ) -> list[NDArray[np.float32]]:
        """Asks, with two probes among the sequences, at places that nobody can know."""
        chosen = self._chosen_probes(self.size(sequences))
        if not chosen:
            return self.ask(sequences)
        mixed: list[tuple[int | None, NDArray[np.uint32]]] = [(None, own) for own in sequences]
        for probe in chosen:
            mixed.insert(self._rng.randrange(len(mixed) + 1), (probe, self._probes[probe]))
        found = self.ask([own for _, own in mixed])
        for (known, _), values in zip(mixed, found, strict=True):
            if known is not None and not self._agree(known, self._embedding(values)):
                raise UnsafeServerError(
                    f"{self.describe().get('server', self.name)}: gives another embedding for a"
                    " prompt than before: rows are in another order, or it was started again with"
                    " another model; no embedding of this request was used"
                )
        return [own for (known, _), own in zip(mixed, found, strict=True) if known is None]

    def _chosen_probes(self, size: int) -> list[int]:
        """Up to two probes that fit into a request whose own sequences have `size` tokens."""
        chosen: list[int] = []
        for probe in self._rng.sample(range(len(self._probes)), len(self._probes)):
            size += len(self._probes[probe])
            if self._request_tokens is None or size <= self._request_tokens:
                chosen.append(probe)
            else:
                size -= len(self._probes[probe])
            if len(chosen) == _PROBES:
                break
        return chosen

    def _fill(self, slots: OutputSlots, found: list[NDArray[np.float32]]) -> None:
        for k, values in enumerate(found):
            slots.slot(k)[:] = self._embedding(values)

    def _embedding(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The embedding of a sequence, (C,), of what `ask` gives for it."""
        if not self.gives_states:
            return values
        last = self._pooling == "last"
        pooled: NDArray[np.float32] = values[-1] if last else values.mean(axis=0, dtype=np.float32)
        return pooled
