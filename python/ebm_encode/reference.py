"""Reference embeddings: a few numbers of a few prompts, by which a run knows its encoder again.

An identity says which model and options made a cache, not which release of transformers or torch.
Releases do change a model's numbers. So the embeddings of fixed prompts, made unbatched, are kept
with a cache in short, and compared when something is added to it.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebm_encode import _core
from ebm_encode.encoder import Encoder
from ebm_encode.errors import EncodingError, IdentityMismatchError

KEY = "reference_embeddings"
"""Where they stand in a cache's provenance, and in the note of a run that is under way."""

_PROMPTS = (
    "⊢ True",
    "n : ℕ\n⊢ n + 0 = n",
    "p q : Prop\nhp : p\nhq : q\n⊢ p ∧ q",
    "α : Type u_1\ninst✝ : CommRing α\nI J : Ideal α\nh : I ≤ J\nx : α\nhx : x ∈ I\n⊢ x ∈ J",
)
_SUMS = 8
# How far two runs of the same code may differ, relative to the norm: other hardware and other
# kernels round differently. A model's changed code is off by per cents and more.
_TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}


def reference_of(encoder: Encoder) -> list[dict[str, Any]]:
    """The reference embeddings of an encoder in short; JSON values only.

    Of each prompt `norm`, and `sums`: of each eighth value from the first to the eighth, the sum,
    divided by the square root of how many these are. Prompts that are too long, or that the memory
    does not hold, are skipped.
    """
    tokens = encoder.prompts.tokenize(_PROMPTS)
    reports = encoder.screen(tokens)
    found = []
    for i, prompt in enumerate(_PROMPTS):
        if reports[i].status != "ok":
            continue
        try:
            row = encoder.run_alone(tokens[i]).astype(np.float64)
        except EncodingError:
            continue
        if np.isfinite(row).all():
            norm = round(float(np.linalg.norm(row)), 6)
            found.append({"state": prompt, "norm": norm, "sums": _sums(row)})
    return found


def _sums(row: NDArray[np.float64]) -> list[float]:
    parts = [row[start::_SUMS] for start in range(min(_SUMS, len(row)))]
    return [round(float(part.sum() / np.sqrt(len(part))), 6) for part in parts]


def difference(
    ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]
) -> float | None:
    """How far two sets of reference embeddings are apart, relative to the norms.

    The largest over the prompts that both have, of the distance of norms and sums; `None` if they
    have none in common.
    """
    known = {record["state"]: record for record in theirs}
    pairs = [(record, known[record["state"]]) for record in ours if record["state"] in known]
    return max((_distance(left, right) for left, right in pairs), default=None)


def _distance(left: dict[str, Any], right: dict[str, Any]) -> float:
    a = np.asarray([left["norm"], *left["sums"]], dtype=np.float64)
    b = np.asarray([right["norm"], *right["sums"]], dtype=np.float64)
    if a.shape != b.shape:
        return float("inf")
    return float(np.linalg.norm(a - b) / max(float(left["norm"]), 1e-12))


def require_same_numbers(encoder: Encoder, ours: list[dict[str, Any]], where: str) -> None:
    """Refuses to add to a cache whose encoder gave other numbers.

    A cache without reference embeddings, of an earlier version, is not refused.

    Args:
        encoder: The encoder.
        ours: Its reference embeddings.
        where: The cache: a file, a folder, or nothing yet.

    Raises:
        IdentityMismatchError: If they differ by more than rounding.
    """
    if _core.path_kind(where) == "missing":
        return
    for description in _core.describe(where):
        footer = description["footer"] or {}
        for provenance in _runs(footer.get("provenance")):
            require_near(encoder, ours, provenance, description["path"])


def require_near(
    encoder: Encoder, ours: list[dict[str, Any]], provenance: dict[str, Any], where: str
) -> None:
    """Refuses reference embeddings that differ by more than rounding.

    Args:
        encoder: The encoder.
        ours: Its reference embeddings.
        provenance: What holds the others under `KEY`, and the versions that made them.
        where: The file they are in.

    Raises:
        IdentityMismatchError: If they differ.
    """
    try:
        apart = difference(ours, provenance[KEY])
    except (KeyError, TypeError, ValueError):
        return  # as good as none
    limit = _TOLERANCE.get(encoder.model.dtype, _TOLERANCE["bfloat16"])
    if apart is None or apart <= limit:
        return
    versions = json.dumps(provenance.get("versions", "unknown"))
    raise IdentityMismatchError(
        f"{where}: the same model and options gave other embeddings when it was made: fixed prompts"
        f" differ by {apart:.1%} of the norm, {limit:.1%} is rounding in {encoder.model.dtype}."
        f" It was made with {versions}\n"
        "hint: use those versions, write to another --output, or replace it with --overwrite"
    )


def _runs(value: Any) -> list[dict[str, Any]]:
    """All parts of a provenance that hold reference embeddings, however runs are listed."""
    if isinstance(value, dict):
        own = [value] if KEY in value else []
        return own + [run for item in value.values() for run in _runs(item)]
    if isinstance(value, list):
        return [run for item in value for run in _runs(item)]
    return []
