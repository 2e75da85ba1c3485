"""Answers to `/encode` as JSON, raw numbers or an Arrow stream."""

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

ARROW = "application/vnd.apache.arrow.stream"
RAW = "application/octet-stream"
JSON = "application/json"

_END = 64
"""Bytes for the mark at the end of a stream, and to spare."""
_LISTED = 16
"""Errors that a header lists; all are in the other two forms."""


@dataclass(frozen=True)
class Encoded:
    """What became of the states of a request, in their order.

    Attributes:
        embeddings: float32 `[n, dim]`; NaN where there is none.
        statuses: `ok`, or why there is none.
        tokens: Lengths of the prompts before any cut; 0 where not known.
        truncated: Whether each was cut.
        digests: Token digests; `None` where not known.
        reasons: Why, where the status is not `ok`.
    """

    embeddings: NDArray[np.float32]
    statuses: list[str]
    tokens: list[int]
    truncated: list[bool]
    digests: list[int | None]
    reasons: list[str]

    @property
    def failed(self) -> list[int]:
        """The states without an embedding."""
        return [i for i, status in enumerate(self.statuses) if status != "ok"]


@dataclass(frozen=True)
class Origin:
    """What every answer says of the encoder.

    Attributes:
        identity: Digest of its identity.
        instance: Another one after each start of the server.
    """

    identity: str
    instance: str


def as_arrow(found: Encoded, origin: Origin) -> memoryview:
    """An Arrow IPC stream of one record batch.

    Columns: `status`, `tokens` uint32, `truncated`, `token_digest` uint64, `reason`, `embedding`
    float32 `[dim]`, null where the status is not `ok`.
    """
    rows, dim = found.embeddings.shape
    missing = np.fromiter((status != "ok" for status in found.statuses), np.bool_, rows)
    values = pa.Array.from_buffers(
        pa.float32(), rows * dim, [None, pa.py_buffer(found.embeddings.data)]
    )
    embeddings = pa.FixedSizeListArray.from_arrays(
        values, dim, mask=pa.array(missing) if missing.any() else None
    )
    columns: dict[str, Any] = {
        "status": pa.array(found.statuses, pa.string()),
        "tokens": pa.array(found.tokens, pa.uint32()),
        "truncated": pa.array(found.truncated, pa.bool_()),
        "token_digest": pa.array(found.digests, pa.uint64()),
        "reason": pa.array(found.reasons, pa.string()),
        "embedding": embeddings,
    }
    metadata: dict[bytes | str, bytes | str] = {
        "ebm-encode.identity": origin.identity,
        "ebm-encode.instance": origin.instance,
        "ebm-encode.dim": str(dim),
    }
    nullable = ("token_digest", "embedding")
    schema = pa.schema(
        [pa.field(name, own.type, nullable=name in nullable) for name, own in columns.items()],
        metadata=metadata,
    )
    batch = pa.record_batch([*columns.values()], schema=schema)
    # Of the right size at once: half a megabyte that grows is copied several times.
    size = schema.serialize().size + pa.ipc.get_record_batch_size(batch) + _END
    buffer = pa.allocate_buffer(size)
    sink = pa.FixedSizeBufferWriter(buffer)
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(batch)
    return memoryview(buffer)[: sink.tell()]


def as_raw(found: Encoded) -> tuple[memoryview, dict[str, str]]:
    """The numbers, little-endian float32 `[n, dim]`, and headers that tell what they are."""
    rows, dim = found.embeddings.shape
    failed = found.failed
    errors = [
        {"index": i, "status": found.statuses[i], "reason": found.reasons[i][:200]}
        for i in failed[:_LISTED]
    ]
    headers = {
        "ebm-rows": str(rows),
        "ebm-dim": str(dim),
        "ebm-failed": str(len(failed)),
        "ebm-errors": json.dumps(errors),  # ASCII, as headers are
    }
    return found.embeddings.astype("<f4", copy=False).data.cast("B"), headers


def as_json(found: Encoded, origin: Origin) -> bytes:
    """A JSON object; numbers in the shortest form that is the same float32."""
    out = io.BytesIO()
    start = {
        "identity": origin.identity,
        "instance": origin.instance,
        "dim": found.embeddings.shape[1],
    }
    out.write(json.dumps(start)[:-1].encode() + b', "items": [')
    for i, status in enumerate(found.statuses):
        digest = found.digests[i]
        item = {
            "status": status,
            "tokens": found.tokens[i],
            "truncated": found.truncated[i],
            "token_digest": None if digest is None else f"{digest:016x}",
            "reason": found.reasons[i],
        }
        out.write(b", " if i else b"")
        out.write(json.dumps(item)[:-1].encode() + b', "embedding": ')
        out.write(numbers(found.embeddings[i]) if status == "ok" else b"null")
        out.write(b"}")
    out.write(b"]}")
    return out.getvalue()


def numbers(embedding: NDArray[np.float32]) -> bytes:
    """An embedding as a JSON array."""
    return orjson.dumps(embedding, option=orjson.OPT_SERIALIZE_NUMPY)
