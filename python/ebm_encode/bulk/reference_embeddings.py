"""Reference embeddings: a few numbers of a few prompts, by which a run recognises its encoder.

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
from ebm_encode._core import Identity
from ebm_encode.encoder import Encoder
from ebm_encode.errors import EncodingError, IdentityMismatchError
from ebm_encode.versions import versions

KEY = "reference_embeddings"
"""Where they stand in a cache's provenance, and in the note of a run that is under way."""

_PROMPTS = (
    "⊢ True",
    "n : ℕ\n⊢ n + 0 = n",
    "p q : Prop\nhp : p\nhq : q\n⊢ p ∧ q",
    "α : Type u_1\ninst✝ : CommRing α\nI J : Ideal α\nh : I ≤ J\nx : α\nhx : x ∈ I\n⊢ x ∈ J",
)
_NOTE = "reference.jsonl"
"""In the work folder of a run: the reference embeddings of the encoder that began it."""
_SUMS = 8
# How far two runs of the same code may differ, relative to the norm: other hardware and other
# kernels round differently. A model's changed code is off by per cents and more.
_TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 4e-2}


def reference_of(encoder: Encoder) -> list[dict[str, Any]]:
    """The reference embeddings of an encoder in short; JSON values only.

    Of each prompt `norm`, and eight `sums`, each of every eighth value of the embedding. The
    distance of two embeddings' sums is about that of the embeddings. Prompts that are too long, or
    that the memory does not hold, are skipped.
    """
    tokens = encoder.prompts.tokenize(_PROMPTS)
    reports = encoder.screen(tokens)
    found = []
    for i, prompt in enumerate(_PROMPTS):
        if reports[i].status != "ok":
            continue
        try:
            embedding = encoder.run_unbatched(tokens[i]).astype(np.float64)
        except EncodingError:
            continue
        if np.isfinite(embedding).all():
            norm = round(float(np.linalg.norm(embedding)), 6)
            found.append({"state": prompt, "norm": norm, "sums": _sums(embedding)})
    return found


def _sums(row: NDArray[np.float64]) -> list[float]:
    return [round(float(row[start::_SUMS].sum()), 6) for start in range(min(_SUMS, len(row)))]


def difference(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> float | None:
    """How far two sets of reference embeddings are apart, relative to the norms.

    The root mean square over the prompts that both have, of the distance of norms and sums; `None`
    if they have none in common.
    """
    known = {record["state"]: record for record in theirs}
    pairs = [(record, known[record["state"]]) for record in ours if record["state"] in known]
    if not pairs:
        return None
    return float(np.sqrt(np.mean([_distance(left, right) ** 2 for left, right in pairs])))


def _distance(left: dict[str, Any], right: dict[str, Any]) -> float:
    a = np.asarray([left["norm"], *left["sums"]], dtype=np.float64)
    b = np.asarray([right["norm"], *right["sums"]], dtype=np.float64)
    if a.shape != b.shape:
        return float("inf")
    return float(np.linalg.norm(a - b) / max(float(left["norm"]), 1e-12))


class ReferenceEmbeddings:
    """An encoder's reference embeddings, and the caches that they are compared with.

    Args:
        encoder: The encoder.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._dtype = encoder.model.dtype
        self._identity = encoder.identity
        self._versions = versions()
        self._own = reference_of(encoder)

    def to_json(self) -> dict[str, Any]:
        """What is kept with a cache; JSON values only."""
        return {KEY: self._own}

    def continues(self, output: str, work_folder: str, *, overwrite: bool) -> bool:
        """Whether a run may resume from what is there; if so, notes its own embeddings there.

        If not, what is saved is to be taken back first, durably; then `note` is to be called.

        Args:
            output: The output, if there is one yet.
            work_folder: Where the checkpoints of an unfinished run are.
            overwrite: Whether the output is replaced. Then other embeddings are no error:
                nothing is resumed.

        Raises:
            IdentityMismatchError: If what is there was made with other embeddings.
        """
        note = f"{work_folder}/{_NOTE}"
        try:
            if not overwrite:
                self.require_same(output)
            noted = _noted(note)
            if noted.get("identity") == self._identity.digest:
                self._require_near(noted, work_folder)
        except IdentityMismatchError:
            if not overwrite:
                raise
            return False
        self.note(work_folder)
        return True

    def note(self, work_folder: str) -> None:
        """Notes the own embeddings beside what is saved, for the run that resumes it."""
        record = self.to_json() | {"versions": self._versions, "identity": self._identity.digest}
        _core.write_file(f"{work_folder}/{_NOTE}", json.dumps(record).encode() + b"\n")

    def require_same(self, cache: str) -> None:
        """Refuses a cache whose encoder gave other numbers.

        One without reference embeddings, of an earlier version, is not refused; nor one of another
        encoder, which others refuse by what is different.

        Raises:
            IdentityMismatchError: If they differ by more than rounding.
        """
        if _core.path_kind(cache) == "missing" or _is_empty_folder(cache):
            return
        own = self._identity
        for description in _core.describe(cache):
            footer = description["footer"]
            if footer is None or Identity.from_json(json.dumps(footer["identity"])) != own:
                continue
            for provenance in _runs(footer.get("provenance")):
                self._require_near(provenance, description["path"])

    def _require_near(self, provenance: dict[str, Any], where: str) -> None:
        try:
            apart = difference(self._own, provenance[KEY])
        except (KeyError, TypeError, ValueError):
            return  # not usable
        limit = _TOLERANCE.get(self._dtype, _TOLERANCE["bfloat16"])
        if apart is None or apart <= limit:
            return
        theirs = json.dumps(provenance.get("versions", "unknown versions"))
        raise IdentityMismatchError(
            f"{where}: the same model and options gave other embeddings when it was made: fixed"
            f" prompts differ by {apart:.1%} of the norm, up to {limit:.1%} is rounding in"
            f" {self._dtype}. Made with {theirs}, now {json.dumps(self._versions)}\n"
            "hint: use the former versions, write to another --output, or replace it with"
            " --overwrite"
        )


def _noted(note: str) -> dict[str, Any]:
    """What an unfinished run noted; nothing where there is none."""
    try:
        found = json.loads(_core.read_file(note) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_empty_folder(path: str) -> bool:
    if _core.path_kind(path) != "folder":
        return False
    return not _core.list_files(path, "parquet") and not _core.list_files(path, "json")


def _runs(value: Any) -> list[dict[str, Any]]:
    """All parts of a provenance that hold reference embeddings, however runs are listed."""
    if isinstance(value, dict):
        own = [value] if KEY in value else []
        return own + [run for item in value.values() for run in _runs(item)]
    if isinstance(value, list):
        return [run for item in value for run in _runs(item)]
    return []
