"""The main job: unique states through an encoder into a cache, resumable at any point."""

import json
import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ebm_encode import _core
from ebm_encode._core import BadRow, CacheWriter
from ebm_encode.bulk.ahead import ahead
from ebm_encode.bulk.progress import EncodingProgress
from ebm_encode.bulk.reference_embeddings import Reference
from ebm_encode.bulk.verification import Verification, alone_at_last, verify
from ebm_encode.data.side_files import (
    OVERLONG,
    QUARANTINE,
    Journal,
    read_list,
    side_file,
    write_list,
)
from ebm_encode.encoder import Batch, Encoder, RowReport
from ebm_encode.engines.reference import compare
from ebm_encode.errors import EncodingError, TextFailedError, VerificationError
from ebm_encode.identity.former import former_identity, with_the_same_tokens
from ebm_encode.prompts.tokens import CHUNK_STATES, Tokens

log = logging.getLogger(__name__)

_SETTINGS = "settings.jsonl"
"""In the work folder of a run: what was measured to be fastest."""


@dataclass
class Outcome:
    """What a run did. `rows` counts what the cache holds in the end.

    `same_by_cutting` counts states whose prompts became another state's when they were cut.
    """

    rows: int = 0
    encoded: int = 0
    already_there: int = 0
    from_caches: int = 0
    tokens: int = 0
    truncated: int = 0
    skipped: int = 0
    same_by_cutting: int = 0
    retried_alone: int = 0
    written: bool = False
    quarantined: list[dict[str, Any]] = field(default_factory=list)
    verification: Verification | None = None


@dataclass(frozen=True)
class _Chunk:
    """States that are tokenized and planned together.

    Attributes:
        states: The states.
        saved: Which of them an earlier run has saved; if all, the rest is empty.
        reports: What can be said of each before it is run.
        usable: Which of them can be run.
        tokens: The sequences of those.
    """

    states: list[str]
    saved: list[bool]
    reports: list[RowReport] = field(default_factory=list)
    usable: list[int] = field(default_factory=list)
    tokens: Tokens | None = None

    def wants(self, indices: list[int]) -> bool:
        """Whether any of these usable states is not saved."""
        return not all(self.saved[self.usable[i]] for i in indices)


class BulkRun:
    """Encodes states into a writer, and finishes it.

    Args:
        encoder: The encoder; its identity is the writer's.
        writer: An open writer.
        output: The cache that will be.
        overwrite: Whether the output is replaced, whatever made it.

    Raises:
        IdentityMismatchError: If the same model and options gave other embeddings when the output
            was made, or what is saved of it.
    """

    def __init__(
        self, encoder: Encoder, writer: CacheWriter, output: str, *, overwrite: bool = False
    ) -> None:
        self.outcome = Outcome()
        self._encoder = encoder
        self._writer = writer
        self._output = output
        self._overlong = Journal(writer.work_folder())
        self._settings = f"{writer.work_folder()}/{_SETTINGS}"
        self._reference = Reference(encoder)
        # Rows saved by other code are not resumed; `adopt` takes them back.
        self._starts_over = not self._reference.continues(
            output, writer.work_folder(), overwrite=overwrite
        )
        for damage in writer.discarded():
            log.warning("a damaged checkpoint was removed, its rows are encoded anew: %s", damage)
        for state, bad in writer.left_out():
            log.warning("bad embedding in the output, not used: %r: %s", state[:60], bad.reason)

    def adopt(self, caches: Sequence[str], states: list[str]) -> list[str]:
        """Takes rows from earlier caches; returns the states still to be encoded.

        Raises:
            IdentityMismatchError: If a cache is of another encoder, or of one that gave other
                embeddings.
        """
        if self._starts_over:
            self._take_back_what_is_saved()
        todo = _without(states, self._writer.former_many(states))
        self.outcome.already_there = len(states) - len(todo)
        for cache in caches:
            self._adopt(cache, todo)
        if caches:
            adopted = self._writer.contains_many(todo)
            self._note_adopted([s for s, taken in zip(todo, adopted, strict=True) if taken], caches)
            todo = _without(todo, adopted)
            self.outcome.from_caches = sum(adopted)
        return todo

    def _take_back_what_is_saved(self) -> None:
        """Takes back, durably, the rows that an interrupted run with other code has saved."""
        numbers = self._writer.new_rows().tolist()
        for start in range(0, len(numbers), CHUNK_STATES):
            for state in self._writer.read(numbers[start : start + CHUNK_STATES])[0]:
                self._writer.retract(state)
        self._writer.checkpoint()
        self._reference.note(self._writer.work_folder())

    def _adopt(self, cache: str, todo: list[str]) -> None:
        self._reference.require_same(cache)
        former = former_identity(cache, self._encoder.identity)
        if former is None:
            self._writer.adopt(cache, todo)
            return
        for chunk in _chunks(todo, CHUNK_STATES):
            same = with_the_same_tokens(self._encoder.prompts, chunk, former)
            self._writer.adopt(cache, same, made_by=former)

    def encode(self, states: list[str], progress: EncodingProgress) -> None:
        """Encodes states, skipping those that an interrupted run has saved.

        The order and the batches depend on the states alone, not on what is already saved, so that
        an interrupted and resumed run computes the very same rows as an uninterrupted one. Whatever
        ends this early, what was encoded is saved first.

        The model works on a thread of its own, so that it waits neither for the tokenizer, which is
        a chunk ahead, nor for rows to be checked and written, which is done here.
        """
        # By text, so that states that begin alike are in one chunk and share what they can.
        order = sorted(states)
        try:
            self._settle(order)
            chunks = ahead(self._tokenized(order), "tokenize")
            with closing(ahead(self._batches(chunks), "forward")) as batches:
                for chunk, batch in batches:
                    if batch is None:
                        self._begin(chunk, progress)
                    else:
                        self._take(chunk, batch, progress)
        except VerificationError:
            raise  # what is stored is wrong, and marked so
        except BaseException:
            self._writer.checkpoint()
            raise
        self._writer.checkpoint()

    def finish(self, provenance: dict[str, Any], *, sample: int | None = None) -> Outcome:
        """Retries norm outliers, verifies a sample, writes the side files and the cache."""
        for state, bad in self._writer.norm_outliers():
            self._writer.retract(state)
            self._retry_alone(state, bad)
        try:
            self.outcome.verification = verify(self._writer, self._encoder, sample=sample)
        except VerificationError as error:
            raise self._without_settings(error) from error
        provenance["verification"] = (
            self.outcome.verification.to_json() if self.outcome.verification else None
        )
        provenance |= self._reference.to_json()
        overlong = [*self._former_overlong(), *self._overlong.records.values()]
        self.outcome.truncated = sum(record["action"] == "truncated" for record in overlong)
        self.outcome.skipped = sum(record["action"] == "skipped" for record in overlong)
        self.outcome.same_by_cutting = sum("same_as" in record for record in overlong)
        provenance["counts"] = self.counts()
        # In a store only the end shows that the output is this run's; here the lock does, and lists
        # that stand before the cache does outlive a crash.
        remote = _core.is_remote(self._output)
        if not remote:
            self._write_lists(overlong)
        self.outcome.rows, left_out, self.outcome.written = self._writer.finish(provenance)
        for state, bad in left_out:
            self._quarantine(state, bad.kind, bad.reason)
        if remote or left_out:
            self._write_lists(overlong)
        return self.outcome

    def _write_lists(self, overlong: list[dict[str, Any]]) -> None:
        write_list(side_file(self._output, OVERLONG), overlong)
        write_list(side_file(self._output, QUARANTINE), self.outcome.quarantined)

    def counts(self) -> dict[str, int]:
        """The numbers of this run for the cache's provenance."""
        outcome = self.outcome
        return {
            "encoded": outcome.encoded,
            "already_there": outcome.already_there,
            "from_caches": outcome.from_caches,
            "tokens": outcome.tokens,
            "truncated": outcome.truncated,
            "skipped": outcome.skipped,
            "same_by_cutting": outcome.same_by_cutting,
            "retried_alone": outcome.retried_alone,
            "quarantined": len(outcome.quarantined),
        }

    def _settle(self, order: list[str]) -> None:
        """Measures what the device is fastest with; a resumed run has the run before's settings.

        Rows differ by rounding with what else is in their batch, so a run that measured anew would
        not end with the same ones.
        """
        if not self._encoder.wants_calibration:
            return
        former = _settings_of(_core.read_file(self._settings))
        if former is not None and self._encoder.resume(former):
            return
        first = order[:CHUNK_STATES]
        _, _, tokens = self._screened(first)
        times = sum(map(len, order)) / max(sum(map(len, first)), 1)
        if self._encoder.calibrate(tokens, times=times):
            settings = json.dumps(self._encoder.settings())
            _core.write_file(self._settings, settings.encode() + b"\n")

    def _without_settings(self, error: VerificationError) -> VerificationError:
        """Rows were wrong with these settings, so that no run may go on with them."""
        _core.remove_file(self._settings)
        hint = (
            "; its layers were compiled: add --compile off" if self._encoder.runner.compiled else ""
        )
        return VerificationError(f"{error}{hint}")

    def _tokenized(self, states: list[str]) -> Iterator[_Chunk]:
        for texts in _chunks(states, CHUNK_STATES):
            saved = self._writer.contains_many(texts)
            if all(saved):
                yield _Chunk(texts, saved)
                continue
            yield _Chunk(texts, saved, *self._screened(texts))

    def _screened(self, texts: list[str]) -> tuple[list[RowReport], list[int], Tokens]:
        """What can be said of each text, which can be run, and the sequences of those."""
        tokens = self._encoder.prompts.tokenize(texts)
        reports = self._encoder.screen(tokens)
        usable = [i for i, report in enumerate(reports) if report.status == "ok"]
        return reports, usable, tokens.select(usable)

    def _batches(
        self, chunks: Generator[_Chunk, None, None]
    ) -> Generator[tuple[_Chunk, Batch | None], None, None]:
        """Each chunk without a batch first, and then with each of its batches."""
        with closing(chunks):
            for chunk in chunks:
                yield chunk, None
                if chunk.tokens is not None:
                    for batch in self._encoder.run(chunk.tokens, wanted=chunk.wants):
                        yield chunk, batch

    def _begin(self, chunk: _Chunk, progress: EncodingProgress) -> None:
        """Counts and lists what will not be encoded."""
        self.outcome.already_there += sum(chunk.saved)
        progress.advance(sum(chunk.saved), _size(chunk.states, chunk.saved), 0)
        if chunk.tokens is None:
            return
        self._note_overlong(chunk.states, chunk.reports, chunk.saved)
        unusable = [
            report.status != "ok" and not done
            for report, done in zip(chunk.reports, chunk.saved, strict=True)
        ]
        progress.advance(sum(unusable), _size(chunk.states, unusable), 0)

    def _take(self, chunk: _Chunk, batch: Batch, progress: EncodingProgress) -> None:
        """Saves a batch's rows."""
        tokens = chunk.tokens
        assert tokens is not None
        new = [k for k, i in enumerate(batch.indices) if not chunk.saved[chunk.usable[i]]]
        self._check_saved(chunk, batch)
        indices = [batch.indices[k] for k in new]
        texts = [chunk.states[chunk.usable[i]] for i in indices]
        self._save(texts, batch.rows[new], tokens.select(indices))
        for i, error in batch.failed.items():
            if chunk.saved[chunk.usable[i]]:
                continue
            text = chunk.states[chunk.usable[i]]
            self._quarantine(text, _kind(error), str(error), int(tokens.full_lengths[i]))
            progress.advance(1, len(text.encode()), 0)
        done = sum(len(tokens[i]) for i in indices)
        progress.advance(len(texts), sum(len(text.encode()) for text in texts), done)
        self.outcome.tokens += done

    def _check_saved(self, chunk: _Chunk, batch: Batch) -> None:
        """Saved states run again with others of their batch; one without a row has no right one.

        Raises:
            VerificationError: If the model alone makes none, either.
        """
        assert chunk.tokens is not None
        infinite = np.flatnonzero(~np.isfinite(batch.rows).all(axis=1))
        doubtful = [batch.indices[k] for k in infinite]
        doubtful += [i for i, error in batch.failed.items() if isinstance(error, TextFailedError)]
        for i in doubtful:
            if not chunk.saved[chunk.usable[i]]:
                continue
            try:
                row = alone_at_last(self._encoder, chunk.tokens[i])
            except TextFailedError as error:
                why = str(error)
            except EncodingError:  # no memory for it alone; it did fit when it was saved
                continue
            else:
                if np.isfinite(row).all():
                    continue
                why = "alone it has none that is finite"
            self._reject(chunk.states[chunk.usable[i]], why)

    def _note_adopted(self, states: list[str], caches: Sequence[str]) -> None:
        """Lists those rows of other caches whose prompts were cut, and what that made equal."""
        same = {
            state: {"same_as": record["same_as"]}
            for cache in caches
            for state, record in read_list(side_file(str(cache), OVERLONG)).items()
            if "same_as" in record
        }
        for chunk in _chunks(states, CHUNK_STATES):
            reports = self._encoder.screen(self._encoder.prompts.tokenize(chunk))
            self._overlong.add(
                [
                    {"state": state, "tokens": report.tokens, "action": "truncated"}
                    | same.get(state, {})
                    for state, report in zip(chunk, reports, strict=True)
                    if report.truncated
                ]
            )

    def _former_overlong(self) -> list[dict[str, Any]]:
        """What the list beside the former output says of rows that are kept."""
        former = read_list(side_file(self._output, OVERLONG))
        kept = self._writer.former_many(list(former))
        return [
            record
            for (state, record), keep in zip(former.items(), kept, strict=True)
            if keep and state not in self._overlong.records
        ]

    def _note_overlong(
        self, states: list[str], reports: list[RowReport], saved: list[bool]
    ) -> None:
        records = []
        for state, report, done in zip(states, reports, saved, strict=True):
            if report.status == "overlong" and self._encoder.overlong == "error":
                raise EncodingError(
                    f"state {state[:60]!r}: {report.reason}\n"
                    "hint: --overlong skip lists such states, truncate and truncate-state cut them"
                )
            if report.status == "overlong" or report.truncated:
                action = "truncated" if report.truncated else "skipped"
                records.append({"state": state, "tokens": report.tokens, "action": action})
            elif report.status in ("empty", "unknown_token") and not done:
                self._quarantine(state, report.status, report.reason, report.tokens)
        # Before the rows are saved: a resumed run does not look at saved states again.
        self._overlong.add(records)

    def _save(self, states: list[str], rows: NDArray[np.float32], tokens: Tokens) -> None:
        verdicts = self._writer.append(states, np.ascontiguousarray(rows))
        for i, bad in enumerate(verdicts):
            if bad is not None and not self._rightly_equal(states[i], rows[i], tokens[i], bad):
                self._retry_alone(states[i], bad)
        self.outcome.encoded += sum(self._writer.contains_many(states))

    def _rightly_equal(
        self, state: str, row: NDArray[np.float32], tokens: NDArray[np.uint32], bad: BadRow
    ) -> bool:
        """Accepts a row that equals others of which the model makes no difference."""
        looked_at: set[str] = set()
        while bad.duplicate_of is not None and bad.duplicate_of not in looked_at:
            looked_at.add(bad.duplicate_of)
            other = self._writer.stored(bad.duplicate_of)
            if other is None:
                return False
            both = self._encoder.prompts.tokenize([other[0], state])
            if not self._encoder.classes.same(tokens, both[0]):
                return False
            if (both.full_lengths > both.lengths).any() and np.array_equal(tokens, both[0]):
                self._note_same(state, other[0], int(both.full_lengths[1]))
            self._writer.allow_equal(state, other[0])
            again = self._writer.append([state], row[None, :])[0]
            if again is None:
                return True
            bad = again
        return False

    def _note_same(self, state: str, other: str, tokens: int) -> None:
        """Lists a state whose cut prompt is that of another state."""
        action = "truncated" if tokens > (self._encoder.prompts.max_length or tokens) else "kept"
        record = {"state": state, "tokens": tokens, "action": action, "same_as": other}
        self._overlong.add([record], replace=True)

    def _retry_alone(self, state: str, bad: BadRow) -> None:
        """Encodes a refused state alone; what is refused again is quarantined."""
        log.warning("%r: %s; encoding it alone", state[:60], bad.reason)
        self.outcome.retried_alone += 1
        tokens = self._encoder.prompts.tokenize([state])
        length = int(tokens.full_lengths[0])
        try:
            row = self._encoder.run_alone(tokens[0])
        except EncodingError as error:
            self._quarantine(state, _kind(error), str(error), length)
            return
        again = self._writer.append([state], row[None, :])[0]
        if again is None or self._rightly_equal(state, row, tokens[0], again):
            return
        if again.duplicate_of is not None:  # of two equal rows the stored one may be the wrong one
            self._check_stored(again.duplicate_of)
        self._quarantine(state, again.kind, again.reason, length)

    def _check_stored(self, key: str) -> None:
        """Compares a stored row with the state alone; if it is wrong, nothing stored is safe.

        Raises:
            EncodingError: If there is no memory for that.
            VerificationError: If it is wrong.
        """
        stored = self._writer.stored(key)
        if stored is None:
            return
        state, row = stored
        tokens = self._encoder.prompts.tokenize([state])
        try:
            reference = alone_at_last(self._encoder, tokens[0])
        except TextFailedError as error:
            why = str(error)
        else:
            if self._encoder.is_embedding_of(tokens[0], row, reference):
                return
            why = f"cosine {compare(row[None], reference[None])[1]:.6f}"
        self._reject(state, why)

    def _reject(self, state: str, why: str) -> NoReturn:
        """Marks what is stored as wrong, for later runs too."""
        reason = f"the stored row of {state[:60]!r} is not its own ({why})"
        self._writer.reject(reason)
        wrong = f"{reason}. Run again with --overwrite to encode all rows anew"
        raise self._without_settings(VerificationError(wrong))

    def _quarantine(self, state: str, kind: str, reason: str, tokens: int | None = None) -> None:
        log.warning("quarantined %r: %s", state[:60], reason)
        record: dict[str, Any] = {"state": state, "kind": kind, "reason": reason}
        record["tokens"] = (
            int(self._encoder.prompts.tokenize([state]).full_lengths[0])
            if tokens is None
            else tokens
        )
        self.outcome.quarantined.append(record)


def _kind(error: EncodingError) -> str:
    return "model_failed" if isinstance(error, TextFailedError) else "out_of_memory"


def _settings_of(note: bytes | None) -> dict[str, Any] | None:
    """What an interrupted run noted, if it got that far."""
    try:
        settings = json.loads(note or b"null")
        tokens, compiled = settings["max_batch_tokens"], settings["compiled"]
    except (ValueError, TypeError, KeyError):
        return None  # as good as none: it is measured anew
    sound = isinstance(tokens, int) and tokens > 0 and isinstance(compiled, bool)
    return settings if sound else None


def _without(states: list[str], drop: list[bool]) -> list[str]:
    return [state for state, out in zip(states, drop, strict=True) if not out]


def _size(states: list[str], counted: list[bool]) -> int:
    return sum(len(s.encode()) for s, count in zip(states, counted, strict=True) if count)


def _chunks(states: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(states)
    while chunk := list(islice(rest, size)):
        yield chunk
