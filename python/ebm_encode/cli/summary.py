"""What `ebm-encode encode` reports: its input and its outcome, as text or JSON, zeros skipped."""

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING

from ebm_encode.data.side_files import INVALID, OVERLONG, QUARANTINE, side_file

if TYPE_CHECKING:
    from ebm_encode.bulk.outcome import Outcome
    from ebm_encode.bulk.verification import Verification
    from ebm_encode.data.trajectories import InputCounts, States
    from ebm_encode.engines.selftest import EngineChoice
    from ebm_encode.state_formats import Conversion

log = logging.getLogger(__name__)

_LISTED = 3
_PREVIEW = 60


def log_input(states: "States") -> None:
    """Logs what was read, and what was skipped."""
    for warning in states.warnings:
        log.warning("%s", warning)
    for note in states.notes:
        log.info("%s", note)
    counts = states.counts
    rest = {"duplicate": counts.repeated} | _without_state(counts) | {"invalid": counts.invalid}
    others = ", ".join(_counted(count, what) for what, count in rest.items() if count)
    log.info(
        "%s from %s (%s%s)",
        _counted(counts.unique, "state"),
        _counted(len(states.files), "file"),
        _counted(counts.rows, "row"),
        f": {others}" if others else "",
    )
    rows = [record for record in states.invalid if "row" in record]
    for record in rows[:_LISTED]:
        log.warning("%s: %s: %s; skipped", record["file"], record["row"], record["reason"])
    if len(rows) > _LISTED:
        log.warning("%s more invalid rows are skipped", f"{len(rows) - _LISTED:,}")
    if states.conversion:
        _log_conversion(states.conversion)


def _log_conversion(conversion: "Conversion") -> None:
    log.info("%s", conversion)
    refused = conversion.refused
    for record in refused[:_LISTED]:
        log.warning("state %r: %s; skipped", record["state"][:_PREVIEW], record["reason"])
    if len(refused) > _LISTED:
        log.warning("%s more states are skipped", f"{len(refused) - _LISTED:,}")


def summary(
    outcome: "Outcome", choice: "EngineChoice", states: "States", output: str, seconds: float
) -> dict[str, object]:
    """The summary of a run; JSON values only."""
    verification = outcome.verification.to_json() if outcome.verification else None
    return {
        "output": output,
        "seconds": round(seconds, 3),
        "input": asdict(states.counts),
        **({"conversion": states.conversion.to_json()} if states.conversion else {}),
        "skipped_inputs": [*states.warnings, *states.notes],
        "engine": choice.to_json(),
        **asdict(outcome),
        "verification": verification,
    }


def print_summary(
    outcome: "Outcome", choice: "EngineChoice", states: "States", output: str, seconds: float
) -> None:
    """Prints the summary of a run, one line a fact."""
    tokens = f", {outcome.tokens:,} tokens in {seconds:,.1f} s" if outcome.encoded else ""
    lines = {
        "cache": f"{outcome.rows:,} embeddings in {output}"
        + ("" if outcome.written else " (unchanged)"),
        "encoded": _counted(outcome.encoded, "state") + tokens,
        "engine": f"{choice.engine.name}: {choice.reason}",
    }
    lines |= _counts(outcome, output)
    if outcome.verification:
        lines |= _verified(outcome.verification)
    if states.conversion:
        lines["state format"] = str(states.conversion)
        if states.conversion.refused:
            where = side_file(output, INVALID)
            lines["not converted"] = (
                f"{len(states.conversion.refused):,} skipped, listed in {where}"
            )
    if states.counts.invalid:
        where = side_file(output, INVALID)
        lines["invalid rows"] = f"{states.counts.invalid:,} skipped, listed in {where}"
    rest = _without_state(states.counts)
    if any(rest.values()):
        listed = ", ".join(_counted(count, what) for what, count in rest.items() if count)
        lines["skipped rows"] = f"{sum(rest.values()):,} without a state ({listed})"
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}")  # noqa: T201


def _counts(outcome: "Outcome", output: str) -> dict[str, str]:
    """What became of the other states, where there are any."""
    overlong, quarantine = side_file(output, OVERLONG), side_file(output, QUARANTINE)
    counted = {
        "already cached": (outcome.already_there, ""),
        "reused": (outcome.from_caches, " from --cache"),
        "truncated": (outcome.truncated, f", listed in {overlong}"),
        "skipped": (outcome.skipped, f" longer than --max-length, listed in {overlong}"),
        "same when cut": (outcome.same_by_cutting, " with the embedding of another state"),
        "re-encoded": (outcome.retried_alone, " at batch size 1"),
        "quarantined": (len(outcome.quarantined), f" without a valid embedding: {quarantine}"),
    }
    return {
        name: _counted(count, "state") + rest for name, (count, rest) in counted.items() if count
    }


def _verified(checked: "Verification") -> dict[str, str]:
    found = {
        "verified": (
            f"{checked.rows:,} embeddings re-encoded at batch size 1: relative error at most"
            f" {checked.max_relative_error:.1e}, cosine at least {checked.min_cosine:.6f};"
            f" at most {100 * checked.wrong_at_most:.1f} % of all are wrong (95 % confidence)"
        )
    }
    if checked.not_compared:
        found["unverified"] = f"{checked.not_compared:,} (out of memory at batch size 1)"
    return found


def _without_state(counts: "InputCounts") -> dict[str, int]:
    return {"finished proof": counts.proof_complete, "empty": counts.empty, "null": counts.null}


def _counted(count: int, what: str) -> str:
    plural = what in {"state", "file", "row", "duplicate", "finished proof"} and count != 1
    return f"{count:,} {what}{'s' if plural else ''}"
