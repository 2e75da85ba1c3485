"""A bulk run: distinct states through an encoder into a cache, resumable at any point."""

import json
import logging
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ebm_encode import _core
from ebm_encode._core import CacheWriter
from ebm_encode.bulk.ahead import ahead
from ebm_encode.bulk.outcome import Outcome
from ebm_encode.bulk.progress import EncodingProgress
from ebm_encode.bulk.recheck import Recheck, kind_of
from ebm_encode.bulk.reference_embeddings import ReferenceEmbeddings
from ebm_encode.bulk.reuse import Reuse
from ebm_encode.bulk.verification import verify
from ebm_encode.data.side_files import (
    OVERLONG,
    QUARANTINE,
    Journal,
    read_list,
    side_file,
    write_list,
)
from ebm_encode.encoder import Encoder
from ebm_encode.engines.output import Pass
from ebm_encode.engines.work import Work
from ebm_encode.errors import EncodingError, TextFailedError, VerificationError
from ebm_encode.prompts.tokens import CHUNK_STATES, Tokens, in_chunks
from ebm_encode.reports import RowReport

log = logging.getLogger(__name__)

_PASSES_AHEAD = 4
"""Finished passes that may wait for the checks and the disk; the model waits for neither."""

_SETTINGS = "settings.jsonl"
"""In the work folder of a run: what was measured to be fastest."""


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


@dataclass(eq=False, kw_only=True)
class _ChunkWork(Work):
    """The sequences of a chunk, as they are run."""

    chunk: _Chunk


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
        self._recheck = Recheck(encoder, writer, self.outcome, self._overlong, self._settings)
        self._reference = ReferenceEmbeddings(encoder)
        self._reuse = Reuse(encoder, writer, self._reference, self._overlong)
        # What other code saved is not resumed; `adopt` removes it.
        self._starts_over = not self._reference.continues(
            output, writer.work_folder(), overwrite=overwrite
        )
        for damage in writer.discarded():
            log.warning("a damaged checkpoint was removed, its states are re-encoded: %s", damage)
        for state, bad in writer.left_out():
            log.warning("bad embedding in the output, skipped: %r: %s", state[:60], bad.reason)

    def adopt(self, caches: Sequence[str], states: list[str]) -> list[str]:
        """Reuses embeddings of earlier caches; returns the states still to be encoded.

        Raises:
            IdentityMismatchError: If a cache is of another encoder, or of one that gave other
                embeddings.
        """
        if self._starts_over:
            self._reuse.remove_saved()
        kept = self._writer.former_many(states)
        todo = [state for state, there in zip(states, kept, strict=True) if not there]
        self.outcome.already_there = len(states) - len(todo)
        left = self._reuse.take(caches, todo)
        self.outcome.from_caches = len(todo) - len(left)
        return left

    def encode(self, states: list[str], progress: EncodingProgress) -> None:
        """Encodes states, skipping those that an interrupted run has saved.

        Order and batches depend on the states only, not on what is already saved, so that a resumed
        run computes the same embeddings, to the bit, as an uninterrupted one. Whatever
        ends this early, what was encoded is saved first.

        The model runs on its own thread, so that it waits neither for the tokenizer, which is
        a chunk ahead, nor for the row checks and the disk, which this thread does.
        """
        # By text, so that states that begin alike are in one chunk and share what they can.
        order = sorted(states)
        try:
            self._settle(order)
            chunks = ahead(self._tokenized(order), "tokenize")
            with closing(
                ahead(
                    self._passes(chunks),
                    "forward",
                    self._encoder.selection.stop,
                    items=_PASSES_AHEAD,
                )
            ) as passes:
                for chunk, done in passes:
                    if done is None:
                        self._begin(chunk, progress)
                    else:
                        self._take(chunk, done, progress)
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
            self._recheck.retry(state, bad)
        try:
            self.outcome.verification = verify(self._writer, self._encoder, sample=sample)
        except VerificationError as error:
            raise self._recheck.without_settings(error) from error
        provenance["verification"] = (
            self.outcome.verification.to_json() if self.outcome.verification else None
        )
        provenance |= self._reference.to_json()
        overlong = [*self._former_overlong(), *self._overlong.records.values()]
        self.outcome.truncated = sum(record["action"] == "truncated" for record in overlong)
        self.outcome.skipped = sum(record["action"] == "skipped" for record in overlong)
        self.outcome.same_by_cutting = sum("same_as" in record for record in overlong)
        provenance["counts"] = self.outcome.counts()
        # In a store only the end shows that the output is this run's; here the lock does, and lists
        # that stand before the cache does outlive a crash.
        remote = _core.is_remote(self._output)
        if not remote:
            self._write_lists(overlong)
        self.outcome.rows, left_out, self.outcome.written = self._writer.finish(provenance)
        for state, bad in left_out:
            self._recheck.quarantine(state, bad.kind, bad.reason)
        if remote or left_out:
            self._write_lists(overlong)
        return self.outcome

    def _write_lists(self, overlong: list[dict[str, Any]]) -> None:
        write_list(side_file(self._output, OVERLONG), overlong)
        write_list(side_file(self._output, QUARANTINE), self.outcome.quarantined)

    def _settle(self, order: list[str]) -> None:
        """Measures what the device is fastest with; a resumed run has the run before's settings.

        Embeddings differ by rounding with what else is in their batch, so a run that measured again
        would end with other ones.
        """
        if not self._encoder.tuning.wanted:
            return
        former = note_of(_core.read_file(self._settings))
        if former is not None and self._encoder.resume(former):
            return
        first = order[:CHUNK_STATES]
        _, _, tokens = self._screened(first)
        times = sum(map(len, order)) / max(sum(map(len, first)), 1)
        kept = bool(len(tokens)) and self._encoder.tuning.resume_kept(tokens, times=times)
        if kept or self._encoder.calibrate(tokens, times=times):
            settings = json.dumps(self._encoder.settings())
            _core.write_file(self._settings, settings.encode() + b"\n")

    def _tokenized(self, states: list[str]) -> Iterator[_Chunk]:
        for texts in in_chunks(states):
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

    def _passes(
        self, chunks: Generator[_Chunk, None, None]
    ) -> Generator[tuple[_Chunk, Pass | None], None, None]:
        """Each chunk without a pass first, and then with each of its passes.

        The passes of a chunk start while the last one of the chunk before is under way.
        """
        begun: deque[_Chunk] = deque()

        def works() -> Iterator[_ChunkWork]:
            for chunk in chunks:
                begun.append(chunk)
                if chunk.tokens is not None:
                    yield _ChunkWork(chunk.tokens, wanted=chunk.wants, chunk=chunk)

        with closing(chunks):
            at = None
            for work, done in self._encoder.runner.run_all(works()):
                while at is not work.chunk:
                    at = begun.popleft()
                    yield at, None
                yield work.chunk, done
            for chunk in begun:
                yield chunk, None

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

    def _take(self, chunk: _Chunk, done: Pass, progress: EncodingProgress) -> None:
        """Saves the embeddings of a pass."""
        tokens = chunk.tokens
        assert tokens is not None
        new = [k for k, i in enumerate(done.indices) if not chunk.saved[chunk.usable[i]]]
        self._check_saved(chunk, done)
        indices = [done.indices[k] for k in new]
        texts = [chunk.states[chunk.usable[i]] for i in indices]
        self._recheck.save(texts, done.embeddings[new], tokens.select(indices))
        for i, error in done.failed.items():
            if chunk.saved[chunk.usable[i]]:
                continue
            text = chunk.states[chunk.usable[i]]
            self._recheck.quarantine(text, kind_of(error), str(error), int(tokens.full_lengths[i]))
            progress.advance(1, len(text.encode()), 0)
        count = sum(len(tokens[i]) for i in indices)
        progress.advance(len(texts), sum(len(text.encode()) for text in texts), count)
        self.outcome.tokens += count

    def _check_saved(self, chunk: _Chunk, done: Pass) -> None:
        """Saved states run again with others of their batch; each must still have an embedding.

        Raises:
            VerificationError: If one has none at batch size 1 either.
        """
        assert chunk.tokens is not None
        infinite = np.flatnonzero(~np.isfinite(done.embeddings).all(axis=1))
        doubtful = [done.indices[k] for k in infinite]
        doubtful += [i for i, error in done.failed.items() if isinstance(error, TextFailedError)]
        for i in doubtful:
            if chunk.saved[chunk.usable[i]]:
                state = chunk.states[chunk.usable[i]]
                self._recheck.require_embedding(state, chunk.tokens[i])

    def _former_overlong(self) -> list[dict[str, Any]]:
        """What the list beside the former output says of states that are kept."""
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
                self._recheck.quarantine(state, report.status, report.reason, report.tokens)
        # Before the embeddings are saved: a resumed run does not look at saved states again.
        self._overlong.add(records)


def note_of(content: bytes | None) -> dict[str, Any] | None:
    """The note with measured settings that an interrupted run left; `None` if there is none.

    Args:
        content: Of the file, a JSON object; `None`: no file.
    """
    try:
        note = json.loads(content or b"null")
    except ValueError:
        return None  # it is measured again
    return note if isinstance(note, dict) else None


def _size(states: list[str], counted: list[bool]) -> int:
    return sum(len(s.encode()) for s, count in zip(states, counted, strict=True) if count)
