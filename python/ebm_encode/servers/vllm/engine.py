"""The embeddings of a vLLM pooling server as an engine."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebm_encode.engines.server import ServerEngine
from ebm_encode.errors import ArgumentError, ServerError, UnsafeServerError
from ebm_encode.options import Pooling
from ebm_encode.servers.http import Reply, ServerClient, making_sense
from ebm_encode.servers.vllm.info import VllmInfo, read_info

_MOST_TOKENS = 65_536
_MOST_SEQUENCES = 256


class VllmEngine(ServerEngine):
    """Runs token sequences through a vLLM server with mean pooling and no activation.

    Replies hold embeddings and the sum of their tokens, no hidden states. So how the server pools
    shows in the self-test only: its embeddings are compared with those of the encoder's own model.

    Args:
        client: The server.
        dim: Length of an embedding.
        dtype: The encoder's compute dtype.
        pooling: `mean`, the one that requests can be checked for.

    Raises:
        ServerError: If there is no such server.
        UnsafeServerError: If it says that it computes or pools in another way.
    """

    name = "vllm"

    def __init__(self, client: ServerClient, *, dim: int, dtype: str, pooling: Pooling) -> None:
        if pooling != "mean":
            raise ArgumentError(f"`pooling` {pooling}: a vLLM server is used with mean pooling")
        with making_sense(client.url):
            info = read_info(lambda path: client.get_json(path, missing_ok=True), client.url)
        if info.dtype not in (None, dtype):
            raise UnsafeServerError(
                f"{client.url}: computes in {info.dtype}, this encoder in {dtype}\nhint: use"
                f" --dtype {info.dtype}, or start the server with --dtype {dtype}"
            )
        if info.pooling is not None and info.pooling.upper() != "MEAN":
            raise UnsafeServerError(f"{client.url}: pools by {info.pooling}\nhint: {START}")
        super().__init__(
            pooling,
            request_tokens=_MOST_TOKENS,
            request_sequences=_MOST_SEQUENCES,
            longest=info.longest,
            gives_states=False,
            requests=2,
        )
        self.info = info
        self.identity = {
            "backend": f"vllm {info.version}",
            "backend_dtype": f"{info.dtype or 'unknown'}, by the server's word",
            "backend_weights": "by the server's word",
        }
        self._client = client
        self._dim = dim

    def describe(self) -> dict[str, Any]:
        """The server, its version and settings, for provenance; JSON values only."""
        return {"server": self._client.url, **vars(self.info)}

    def ask(self, sequences: Sequence[NDArray[np.uint32]]) -> list[NDArray[np.float32]]:
        """The embeddings of some prompts, float32 `[dim]` each."""
        try:
            return embeddings_of(self._client, self.info, sequences, self._dim)
        except (ServerError, UnsafeServerError) as error:
            if self._client.url in str(error):
                raise
            raise type(error)(
                f"{self._client.url} (vLLM {self.info.version}): {error}; no embedding of this"
                " request was used\nhint: `ebm-encode doctor --server` tells what is wrong"
            ) from error


START = (
    "start it with --runner pooling --pooler-config"
    ' \'{"pooling_type": "MEAN", "use_activation": false}\''
)
"""How a vLLM server is started so that it pools as this package does."""


def embeddings_of(
    client: ServerClient,
    info: VllmInfo,
    sequences: Sequence[NDArray[np.uint32]],
    dim: int | None = None,
) -> list[NDArray[np.float32]]:
    """Asks for some prompts' embeddings, float32 `[dim]` each, and checks the reply.

    Args:
        client: The server.
        info: What it says of itself.
        sequences: Token ids.
        dim: Length of an embedding; `None`: any.

    Raises:
        ServerError: If the server cannot be reached, or answers with an error.
        UnsafeServerError: If the reply is wrong.
    """
    body = {
        "model": info.model,
        "input": [sequence.tolist() for sequence in sequences],
        "encoding_format": "bytes",
        "embed_dtype": "float32",
        "endianness": "little",
        "use_activation": False,
    }
    reply = client.post("/v1/embeddings", body)
    with making_sense(client.url):
        return _embeddings(reply, [len(sequence) for sequence in sequences], dim)


def _embeddings(reply: Reply, lengths: Sequence[int], dim: int | None) -> list[NDArray[np.float32]]:
    """The rows of a reply, each where its metadata says, in the order of the prompts."""
    try:
        metadata = json.loads(reply.headers["metadata"])
        entries, used = metadata["data"], metadata["usage"]["prompt_tokens"]
        places = {entry["index"]: entry for entry in entries}
    except (KeyError, ValueError, TypeError) as error:
        raise ServerError(
            "a reply has no metadata of its rows, as encoding_format bytes gives in 2026"
        ) from error
    if sorted(places) != list(range(len(lengths))) or len(entries) != len(lengths):
        raise UnsafeServerError(f"answered {len(entries)} of {len(lengths)} prompts")
    if used != sum(lengths):
        raise UnsafeServerError(
            f"counts {used} tokens in {len(lengths)} prompts of {sum(lengths)}: it cut them, or"
            " added tokens"
        )
    rows, starts = [], set()
    for i in range(len(lengths)):
        entry = places[i]
        shape = entry["shape"]
        known = shape if dim is None else [dim]
        if shape != known or entry["embed_dtype"] != "float32" or entry["endianness"] != "little":
            raise UnsafeServerError(
                f"gave {entry['endianness']}-endian {entry['embed_dtype']} {shape}, expected"
                f" little-endian float32 {known}"
            )
        size = int(shape[0]) * np.dtype(np.float32).itemsize
        start, end = entry["start"], entry["end"]
        if end - start != size or start % size or not 0 <= start < end <= len(reply.content):
            raise UnsafeServerError(f"gave bytes {start} to {end} for an embedding of {size} bytes")
        starts.add(start)
        own = reply.content[start:end]
        rows.append(np.frombuffer(own, dtype="<f4").astype(np.float32))
    if len(starts) != len(rows):
        raise UnsafeServerError("gave the same bytes for several prompts")
    return rows
