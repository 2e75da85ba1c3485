"""The client of `ebm-encode serve`: an encoder in another process, with the same answers."""

import json
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from ebm_encode import _core
from ebm_encode._core import Identity
from ebm_encode.errors import (
    ArgumentError,
    IdentityMismatchError,
    ServerError,
    UnsafeServerError,
)
from ebm_encode.reports import RowReport, require_embeddings
from ebm_encode.servers.http import ServerClient, making_sense
from ebm_encode.texts import Texts, texts_of

_ARROW = "application/vnd.apache.arrow.stream"
_COLUMNS = ("status", "tokens", "truncated", "token_digest", "reason", "embedding")
_REQUEST_BYTES = 8 * 2**20
"""States of a request, as JSON; a server may take more."""
_ENVELOPE = 64
"""Bytes of a request besides its states."""


class RemoteEncoder:
    """An encoder on a server. Several threads may share it.

    Every answer is checked: as many rows as states, of the encoder's dimension, finite, not zero,
    no two equal unless their tokens are, and of the encoder that the connection began with. A
    server that was started again with the same encoder is the same; with another one it is refused.

    Args:
        url: The server, as `http://127.0.0.1:30001`.
        token: Its bearer token.
        timeout: Seconds that a request may take.

    Attributes:
        info: What the server says of itself.
        identity: The encoder's identity.
        dim: Length of an embedding.
        state_format: The printed form of the states that it takes, with its version.
        max_texts: Most states of a request; longer calls take several.

    Raises:
        ServerError: If it cannot be reached, is not ready, or is no such server.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 300.0) -> None:
        self._client = ServerClient(url, token=token, timeout=timeout)
        info = self._client.get_json("/info")
        if info is None or info.get("software") != "ebm-encode":
            raise ServerError(f"{url}: is no server of ebm-encode: /info does not say so")
        self.info: dict[str, Any] = info
        try:
            self.identity = Identity.from_json(json.dumps(info["identity"]))
            self.dim = int(info["dim"])
            self.state_format = str(info["state_format"])
            limits = info["limits"]
            self.max_texts = min(int(limits["max_texts"]), int(limits["queue_texts"]))
            most_bytes = int(info["limits"]["max_body_bytes"])
            digest = info["identity_digest"]
        except (KeyError, TypeError, ValueError, ArgumentError) as error:
            raise ServerError(f"{url}/info: lacks what it should say ({error!r})") from error
        if self.identity.digest != digest or self.dim < 1 or self.max_texts < 1:
            raise ServerError(
                f"{url}/info: its identity has the digest {self.identity.digest}, and it says"
                f" {digest}\nhint: is it of another version than this ebm-encode?"
            )
        self._most_bytes = most_bytes - _ENVELOPE

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes its connections."""
        self._client.close()

    def encode(self, states: Any) -> NDArray[np.float32]:
        """The embeddings of some states, float32 `[len(states), dim]`, in their order.

        Args:
            states: Texts in any ordered collection, as for `Encoder.encode`.

        Raises:
            ArgumentError: If states are not text.
            BadRowsError: If an embedding failed the row checks on the server.
            EncodingError: If a state has no embedding for another reason.
            ServerError: If the server cannot be reached, or answers with an error.
            UnsafeServerError: If an answer is wrong.
            IdentityMismatchError: If the server has another encoder by now.
        """
        texts = texts_of(states)
        out = np.empty((len(texts), self.dim), np.float32)
        reports = self.encode_into(texts, out)
        require_embeddings(texts, reports, {})
        return out

    def encode_into(self, states: Any, out: NDArray[np.float32]) -> list[RowReport]:
        """Writes the embeddings of some states into the caller's array.

        Args:
            states: Texts in any ordered collection. What is not text gets a report.
            out: float32 `[len(states), dim]`, C order, writeable. The row of a state whose status
                is not `ok` becomes NaN.

        Returns:
            One report per state.

        Raises:
            ServerError: As of `encode`, and the errors behind it.
        """
        given = Texts.of(states)
        if out.shape != (len(given), self.dim) or out.dtype != np.float32:
            raise ArgumentError(
                f"out is {out.dtype} {list(out.shape)}, expected float32 {[len(given), self.dim]}"
            )
        reports = [
            RowReport("not_text", 0, reason=given.wrong.get(i, "")) for i in range(len(given))
        ]
        out[:] = np.nan
        # As JSON: a control character takes six bytes.
        bytes_of = [len(orjson.dumps(text)) + 1 for text in given.texts]
        fine = []
        for i, size in enumerate(bytes_of):
            if i in given.wrong:
                continue
            if size > self._most_bytes:
                why = f"it takes {size} bytes, and the server takes {self._most_bytes}"
                reports[i] = RowReport("failed", 0, reason=why)
                continue
            fine.append(i)
        for part in self._parts([bytes_of[i] for i in fine]):
            places = [fine[k] for k in part]
            self._ask({"texts": [given.texts[i] for i in places]}, places, out, reports)
        return reports

    def encode_tokens(self, sequences: Sequence[NDArray[np.uint32]]) -> NDArray[np.float32]:
        """The embeddings of token ids, float32 `[len(sequences), dim]`; NaN where there is none.

        Raises:
            ServerError: As of `encode`, and the errors behind it.
        """
        out = np.full((len(sequences), self.dim), np.nan, np.float32)
        reports = [RowReport("failed", 0)] * len(sequences)
        for part in self._parts([12 * len(sequence) + 3 for sequence in sequences]):
            body = {"tokens": [sequences[i].tolist() for i in part]}
            self._ask(body, part, out, reports)
        return out

    def _parts(self, sizes: Sequence[int]) -> Iterator[list[int]]:
        """States by their places, as many as a request may have."""
        part: list[int] = []
        total = 0
        for place, size in enumerate(sizes):
            most = min(_REQUEST_BYTES, self._most_bytes)
            if part and (len(part) == self.max_texts or total + size > most):
                yield part
                part, total = [], 0
            part.append(place)
            total += size
        if part:
            yield part

    def _ask(
        self,
        body: dict[str, Any],
        places: Sequence[int],
        out: NDArray[np.float32],
        reports: list[RowReport],
    ) -> None:
        """Asks for some states and puts what comes where it belongs."""
        reply = self._client.post("/encode", body, accept=_ARROW)
        self._require_same_encoder(reply.headers.get("ebm-identity"))
        try:
            table = pa.ipc.open_stream(reply.content).read_all()
            table.validate(full=True)  # else damaged offsets are followed out of its memory
            columns = {name: table.column(name) for name in _COLUMNS}
        except (pa.ArrowException, KeyError, OSError, ValueError) as error:
            raise ServerError(f"{self._client.url}: answered what is no Arrow stream") from error
        identity = (table.schema.metadata or {}).get(b"ebm-encode.identity", b"").decode()
        self._require_same_encoder(identity)
        if len(table) != len(places):
            raise self._unsafe(f"answered {len(table)} of {len(places)} states")
        with making_sense(self._client.url):
            names = body.get("texts") or [str(ids) for ids in body["tokens"]]
            self._take(names, columns, places, out, reports)

    def _take(
        self,
        names: Sequence[str],
        columns: dict[str, Any],
        places: Sequence[int],
        out: NDArray[np.float32],
        reports: list[RowReport],
    ) -> None:
        told: dict[str, list[Any]] = {name: columns[name].to_pylist() for name in _COLUMNS[:-1]}
        rows = self._rows(columns["embedding"])
        good = [k for k, status in enumerate(told["status"]) if status == "ok"]
        taken = rows if len(good) == len(rows) else rows[good]
        if not np.isfinite(taken).all():
            raise self._unsafe("gave an embedding with values that are not finite")
        self._check([names[k] for k in good], [told["token_digest"][k] for k in good], taken)
        out[[places[k] for k in good]] = taken
        for k, i in enumerate(places):
            reports[i] = RowReport(
                told["status"][k],
                told["tokens"][k],
                truncated=told["truncated"][k],
                reason=told["reason"][k],
                token_digest=told["token_digest"][k],
            )

    def _check(
        self, names: Sequence[str], digests: Sequence[int | None], rows: NDArray[np.float32]
    ) -> None:
        """Refuses zero vectors, and equal ones of states whose tokens differ.

        States from the server's cache have no digest: each may have the tokens of any other state.
        """
        numbers = {digest: i for i, digest in enumerate(dict.fromkeys(digests))}
        for known in (True, False):
            own = [i for i, digest in enumerate(digests) if (digest is not None) is known]
            classes = np.array([numbers[digests[i]] for i in own], np.uint32)
            offsets = np.arange(len(own) + 1, dtype=np.int64)
            taken = rows if len(own) == len(rows) else rows[own]
            verdicts = _core.check_rows([names[i] for i in own], classes, offsets, taken)
            for i, bad in zip(own, verdicts, strict=True):
                if bad is not None:
                    raise self._unsafe(f"gave a bad embedding for {names[i][:60]!r}: {bad.reason}")

    def _rows(self, column: Any) -> NDArray[np.float32]:
        """The embeddings, float32 `[n, dim]`; NaN for states without one."""
        kind = column.type
        if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
            raise self._unsafe(f"gave embeddings as {kind}")
        if kind.list_size != self.dim:
            raise self._unsafe(f"gave embeddings of {kind.list_size} values, expected {self.dim}")
        whole = column.combine_chunks()
        array: Any = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
        # The values of nulls are there as well, so that rows stay in their places.
        start, rows = array.offset * self.dim, len(array)
        values = array.values.slice(start, rows * self.dim)
        if values.null_count:
            raise self._unsafe("gave embeddings with gaps")
        found = np.asarray(values.to_numpy(zero_copy_only=True)).reshape(rows, self.dim)
        if not array.null_count:
            return found
        missing = np.asarray(array.is_null())[:, None]
        return np.where(missing, np.float32(np.nan), found)

    def _require_same_encoder(self, digest: str | None) -> None:
        if digest != self.identity.digest:
            raise IdentityMismatchError(
                f"{self._client.url}: answers for the encoder {digest}, and this connection began"
                f" with {self.identity.digest}\nhint: it was started again with another model or"
                " other options; connect again"
            )

    def _unsafe(self, what: str) -> UnsafeServerError:
        return UnsafeServerError(f"{self._client.url}: {what}; nothing of it was used")
