"""Reports: what became of each state of a call."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ebm_encode.errors import BadRowsError, EncodingError, TextFailedError
from ebm_encode.prompts.tokens import Tokens
from ebm_encode.texts import preview

log = logging.getLogger(__name__)

Status = Literal[
    "ok",
    "bad",
    "overlong",
    "empty",
    "out_of_memory",
    "unknown_token",
    "not_text",
    "other_format",
    "failed",
]


@dataclass(frozen=True)
class RowReport:
    """What became of one state.

    Attributes:
        status: `ok`: the embedding is valid. `bad`: it failed the row checks twice, once
            unbatched, or the model fails on the state. `overlong`: the prompt is longer than
            `max_length`. `empty`: the prompt has no token. `unknown_token`: the prompt has one that
            the model has no embedding for.
            `out_of_memory`: the state does not fit the memory even at batch size 1.
            `not_text`: it is no `str`, or has half of a surrogate pair.
            `other_format`: it is not in the printed form that the encoder takes. `failed`: a server
        says no more than the reason.
        tokens: Length of its prompt before any cut.
        truncated: Whether the prompt was cut.
        reason: Why, where the status is not `ok`.
        same_as: Index of another state of the call with the same tokens, where it has them only
            because a prompt was cut.
        token_digest: 64-bit digest of the class of token sequences that the prompt, after any cut,
            belongs to (`Encoder.classes`); states with equal digests may have equal embeddings.
    """

    status: Status
    tokens: int
    truncated: bool = False
    reason: str = ""
    same_as: int | None = None
    token_digest: int | None = None


def require_embeddings(
    texts: Sequence[str], reports: Sequence[RowReport], hints: Mapping[str, str]
) -> None:
    """Refuses a call of which a state has no embedding.

    Args:
        texts: The states.
        reports: One for each.
        hints: What to do about a status.

    Raises:
        BadRowsError: If an embedding failed the row checks; lists the states.
        EncodingError: If a state has none for another reason.
    """
    wrong = [i for i, report in enumerate(reports) if report.status != "ok"]
    if not wrong:
        return
    listed = "; ".join(f"state {i} ({preview(texts[i])}): {reports[i].reason}" for i in wrong[:3])
    message = f"{len(wrong)} of {len(texts)} states have no valid embedding; {listed}"
    kinds = {reports[i].status for i in wrong}
    message += "".join(f"\nhint: {hint}" for kind, hint in hints.items() if kind in kinds)
    raise BadRowsError(message) if "bad" in kinds else EncodingError(message)


def note_same(states: Sequence[str], tokens: Tokens, reports: list[RowReport]) -> None:
    """Reports states whose prompts became those of other states when they were cut."""
    if not any(report.truncated for report in reports):
        return
    first: dict[bytes, int] = {}
    for i, report in enumerate(reports):
        if report.status != "ok":
            continue
        other = first.setdefault(tokens[i].tobytes(), i)
        cut = report.truncated or reports[other].truncated
        if cut and states[i] != states[other]:
            reports[i] = replace(report, same_as=other)
    count = sum(report.same_as is not None for report in reports)
    if count:
        log.warning(
            "%d states have the embedding of another state, for their prompts are cut", count
        )


def without_embedding(tokens: Tokens, index: int, error: EncodingError) -> RowReport:
    """The report of a sequence that cannot be encoded."""
    status: Status = "bad" if isinstance(error, TextFailedError) else "out_of_memory"
    return RowReport(status, int(tokens.full_lengths[index]), reason=str(error))
