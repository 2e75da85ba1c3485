"""Where a cache's embeddings come from."""

import shlex
import sys
from datetime import UTC, datetime
from typing import Any, cast

from ebm_encode.data.trajectories import States
from ebm_encode.description import describe_encoder
from ebm_encode.encoder import Encoder


def describe_run(encoder: Encoder, states: States, started: datetime) -> dict[str, Any]:
    """The provenance of a run that is about to finish; JSON values only."""
    finished = datetime.now(UTC)
    described = describe_encoder(encoder) | {
        "command": shlex.join(sys.argv),
        "started": started.isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "seconds": round((finished - started).total_seconds(), 3),
        "sources": [{"path": str(file), "digest": digest} for file, digest in states.files.items()],
        "input": vars(states.counts),
    }
    if states.conversion:
        described["conversion"] = states.conversion.to_json()
    return cast("dict[str, Any]", _printable(described))


def _printable(value: Any) -> Any:
    """File names may hold bytes that are no text; JSON may not."""
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
