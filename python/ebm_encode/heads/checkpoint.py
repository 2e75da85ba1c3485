"""Checkpoints of a training that can be killed at any moment."""

import os
from pathlib import Path
from typing import Any

import torch


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def load(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The checkpoint of a training with this fingerprint; `None` if there is none.

    One of other data, options or versions is no checkpoint of this training, and one that cannot be
    read is none either: the training starts from its beginning, with the same result.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception:  # noqa: BLE001  (a damaged file raises anything)
        return None
    return state if isinstance(state, dict) and state.get("fingerprint") == fingerprint else None
