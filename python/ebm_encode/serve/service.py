"""The encoder behind a server: loaded in a thread, shared by all requests."""

import asyncio
import json
import logging
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

import numpy as np
from anyio import CapacityLimiter, to_thread

from ebm_encode._core import CachedEncoder, EmbeddingCache, MappedCache, NoEmbedding
from ebm_encode.encoder import Encoder
from ebm_encode.errors import EbmEncodeError, EncodingError
from ebm_encode.serve.bodies import Info, Limits
from ebm_encode.serve.failures import RequestError
from ebm_encode.serve.forms import Encoded, Origin
from ebm_encode.serve.metrics import Metrics
from ebm_encode.serve.options import ServeOptions
from ebm_encode.serve.work import DroppedError, Work
from ebm_encode.versions import versions

log = logging.getLogger(__name__)

State = Literal["loading", "ready", "stopping", "failed"]
Loader = Callable[[], tuple[Encoder, EmbeddingCache | MappedCache | None]]

_THREADS = 512
"""Requests that wait at the same time, at most; each wait takes a thread, and no core."""
_FAILURES = 3
"""So many requests that fail one after another for reasons of the encoder end the server."""
_PART_BATCHES = 4
"""Batches of a request that are in the queue at a time: the rest can be dropped."""
_LOOK_SECONDS = 0.2
_GONE = 499
"""The status of a request whose client went away, in counters and logs; nobody gets it."""
_STATUSES = {"too_long": "overlong"}
"""Statuses by the kinds of `NoEmbedding` that are called otherwise."""


class Service:
    """One encoder, its queue, and what is counted.

    Args:
        options: Limits.
        load: Makes the encoder, and the cache in front of it.
        append_to: A cache to which new embeddings are appended.

    Attributes:
        options: As given.
        metrics: The counters.
        state: Whether requests are taken.
        failure: Why not, if it failed.
        stop: Called when it failed; set by whoever runs the server.
    """

    def __init__(
        self, options: ServeOptions, load: Loader, *, append_to: str | None = None
    ) -> None:
        self.options = options
        self.metrics = Metrics(lambda: self._waiting)
        self.state: State = "loading"
        self.failure: Exception | None = None
        self.stop: Callable[[], None] = lambda: None
        self._load = load
        self._append_to = append_to
        self._instance = uuid.uuid4().hex
        self._encoder: Encoder | None = None
        self._origin: Origin | None = None
        self._cached: CachedEncoder | None = None
        self._threads = CapacityLimiter(_THREADS)
        self._count_lock = threading.Lock()
        self._tokens_lock = threading.Lock()
        self._waiting = 0
        self._failures, self._failed_at = 0, 0.0

    @property
    def encoder(self) -> Encoder:
        """The encoder.

        Raises:
            RequestError: If requests are not taken now.
        """
        if self._encoder is None or self.state != "ready":
            message = {
                "loading": "the model is being loaded",
                "stopping": "the server is stopping",
            }.get(self.state, f"the encoder failed: {self.failure}")
            raise RequestError(503, self.state, message, {"retry-after": "5"})
        return self._encoder

    @property
    def origin(self) -> Origin | None:
        """What answers say of the encoder; `None` until it is loaded."""
        return self._origin

    def start(self) -> None:
        """Loads the encoder in a thread."""
        threading.Thread(target=self._begin, name="load", daemon=True).start()

    def finish(self) -> int | None:
        """Saves what is appended; returns the number of rows of that cache, if there is one.

        What is still being encoded has as long as requests have at the end.
        """
        end = time.monotonic() + self.options.shutdown_seconds
        while self._waiting and time.monotonic() < end:
            time.sleep(0.05)
        if self._cached is None or self._encoder is None:
            return None
        if self._waiting:
            log.warning("%d states are left behind that are still being encoded", self._waiting)
            self._cached.checkpoint()
            return None
        made = {"command": "serve", "model": self._encoder.model.name, "versions": versions()}
        return self._cached.finish(made)

    async def encode(
        self,
        texts: Sequence[str] | None,
        tokens: Sequence[list[int]] | None,
        gone: Callable[[], Awaitable[None]],
    ) -> Encoded:
        """The embeddings of some states, once the batch that they are in is done.

        Args:
            texts: The states.
            tokens: Their token ids, if not their texts.
            gone: Returns when the client has gone away.

        Raises:
            RequestError: If there are too many, too much waits, it takes too long, the client goes
                away, or the encoder fails.
        """
        encoder, count = self.encoder, len(texts if texts is not None else tokens or [])
        self._admit(count)
        began = time.monotonic()
        work = Work(count, self._leave)

        def encode() -> Encoded:
            with work:
                if texts is not None:
                    return self._encode_texts(texts, work)
                return self._encode_tokens(encoder, tokens or [], work)

        try:
            # A thread whose request is over ends after its part; what it encodes counts until then.
            async with asyncio.timeout(self.options.timeout), work.ended_by(gone):
                found = await to_thread.run_sync(
                    encode, abandon_on_cancel=True, limiter=self._threads
                )
        except DroppedError as error:
            raise RequestError(_GONE, "client_gone", "the client went away") from error
        except TimeoutError as error:
            raise RequestError(
                504, "timeout", f"not encoded within {self.options.timeout:g} s"
            ) from error
        except EbmEncodeError as error:
            self._note_failure(error, began)
            raise
        self._failures = 0
        self.metrics.count_outcomes(found.statuses, sum(found.tokens))
        return found

    def info(self) -> Info:
        """What the server is."""
        encoder, options = self.encoder, self.options
        return Info(
            version=versions()["ebm_encode"],
            instance=self._instance,
            identity=json.loads(encoder.identity.to_json()),
            identity_digest=encoder.identity.digest,
            dim=encoder.dim,
            model=encoder.model.name,
            engine=encoder.choice.engine.name,
            state_format=encoder.state_format,
            limits=Limits(
                max_texts=options.max_texts,
                max_body_bytes=options.max_body_bytes,
                max_tokens=encoder.prompts.max_length,
                queue_texts=options.queue_texts,
                timeout_seconds=options.timeout,
            ),
            versions=versions(),
        )

    def _begin(self) -> None:
        try:
            encoder, cache = self._load()
            encoder.require_finite()
            self._cached = CachedEncoder(
                encoder,
                cache,
                max_wait=self.options.wait,
                max_states=self.options.batch_states,
                memory_bytes=self.options.memory_bytes,
                append_to=self._append_to,
            )
        except Exception as error:  # noqa: BLE001  (it is told, and ends the server)
            self._fail(error)
            return
        self.metrics.follow(self._cached.statistics)
        self._encoder = encoder
        self._origin = Origin(encoder.identity.digest, self._instance)
        self.state = "ready"
        log.info("ready: engine %s (%s)", encoder.choice.engine.name, encoder.choice.reason)

    def _fail(self, error: Exception) -> None:
        self.failure, self.state = error, "failed"
        self.stop()

    def _note_failure(self, error: Exception, began: float) -> None:
        """A model that does not run any more fails on every request.

        Those that began before the last failure may have been in the same batch, and count once.
        """
        if began < self._failed_at:
            return
        self._failures, self._failed_at = self._failures + 1, time.monotonic()
        if self._failures >= _FAILURES:
            self._fail(error)

    def _admit(self, count: int) -> None:
        options = self.options
        most = min(options.max_texts, options.queue_texts)
        if count > most:
            raise RequestError(
                413,
                "too_many_texts",
                f"{count} states in a request, and {most} are allowed\nhint: send several requests",
            )
        with self._count_lock:
            waiting = self._waiting
            if waiting + count <= options.queue_texts:
                self._waiting += count
                return
        self.metrics.rejected.labels("queue").inc()
        raise RequestError(
            429,
            "queue_full",
            f"{waiting} states wait, and {options.queue_texts} may",
            {"retry-after": "1"},
        )

    def _leave(self, count: int) -> None:
        with self._count_lock:
            self._waiting -= count

    def _encode_texts(self, texts: Sequence[str], work: Work) -> Encoded:
        assert self._cached is not None
        assert self._encoder is not None
        end = time.monotonic() + self.options.timeout
        most = _PART_BATCHES * self.options.batch_states
        reported = []
        for start in range(0, len(texts), most):
            part = [*texts[start : start + most]]
            work.take(len(part))
            left = max(0.0, end - time.monotonic())
            reported += self._cached.encode_reported(part, timeout=left)
        out = np.empty((len(texts), self._encoder.dim), np.float32)
        statuses, reasons = [], []
        for row, (found, *_) in zip(out, reported, strict=True):
            if isinstance(found, NoEmbedding):
                if found.kind == "error":
                    raise EncodingError(found.reason)
                statuses.append(_STATUSES.get(found.kind, found.kind))
                reasons.append(found.reason)
                row[:] = np.nan
                continue
            row[:] = found
            statuses.append("ok")
            reasons.append("")
        return Encoded(
            embeddings=out,
            statuses=statuses,
            tokens=[tokens or 0 for _, tokens, *_ in reported],
            truncated=[bool(truncated) for _, _, truncated, _ in reported],
            digests=[digest for *_, digest in reported],
            reasons=reasons,
        )

    def _encode_tokens(self, encoder: Encoder, tokens: Sequence[list[int]], work: Work) -> Encoded:
        out = np.empty((len(tokens), encoder.dim), np.float32)
        while not self._tokens_lock.acquire(timeout=_LOOK_SECONDS):
            work.take(0)  # ends with the request
        try:
            work.take(len(tokens))
            reports = encoder.encode_tokens_into(
                [np.asarray(ids, np.uint32) for ids in tokens], out
            )
        finally:
            self._tokens_lock.release()
        return Encoded(
            embeddings=out,
            statuses=[report.status for report in reports],
            tokens=[report.tokens for report in reports],
            truncated=[report.truncated for report in reports],
            digests=[report.token_digest for report in reports],
            reasons=[report.reason for report in reports],
        )
