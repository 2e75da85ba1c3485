"""The encoder: states in, checked float32 rows out.

Knows nothing of files other than the model's.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode import _core
from ebm_encode.engines import (
    AloneEngine,
    Engine,
    EngineChoice,
    MaskedWindowEngine,
    PaddedEngine,
    Pooling,
    WindowEngine,
    agrees,
    choose_engine,
    compare,
)
from ebm_encode.engines.choice import require_engine
from ebm_encode.engines.rows import Arrival, Rows
from ebm_encode.errors import (
    ArgumentError,
    BadRowsError,
    EncodingError,
    ModelError,
    TemplateError,
)
from ebm_encode.identity import identify
from ebm_encode.model import DTYPES, Dtype, Model, load_model, one_line
from ebm_encode.templates import PLACE, Template
from ebm_encode.tokens import Prompts, Tokens

log = logging.getLogger(__name__)

Overlong = Literal["truncate", "skip", "error"]
EngineName = Literal["auto", "shared-prefix", "shared-prefix-mask", "packed", "padded", "alone"]
Status = Literal["ok", "bad", "overlong", "empty", "out_of_memory"]

DEFAULT_MAX_BATCH_TOKENS = 8192
DEFAULT_BATCH_SIZE = 256

# They begin alike, one is the beginning of another, and two are the same: all that a trie can hold.
_PROBES = (
    "⊢ True",
    "n : ℕ\n⊢ n + 0 = n",
    "p q : Prop\nhp : p\nhq : q\n⊢ p ∧ q",
    "p q : Prop\nhp : p\nhq : q\n⊢ p",
    "p q : Prop\nhp : p\nhq : q\n⊢ q ∧ p",
    "p q : Prop\nhp : p\nhq : q\n⊢ q ∧ p",
    "α : Type u_1\ninst✝ : CommRing α\nI J : Ideal α\nh : I ≤ J\nx : α\nhx : x ∈ I\n⊢ x ∈ J",
    "α : Type u_1\ninst✝ : CommRing α\nI J : Ideal α\nh : I ≤ J\nx : α\n⊢ x ∈ I → x ∈ J",
    """case succ
x y : ℝ
n : ℕ
ih : x ^ n * y ^ n = (x * y) ^ n
⊢ x ^ (n + 1) * y ^ (n + 1) = (x * y) ^ (n + 1)

case zero
x y : ℝ
⊢ x ^ 0 * y ^ 0 = (x * y) ^ 0""",
)


@dataclass(frozen=True)
class RowReport:
    """What became of one state.

    Attributes:
        status: `ok`: the row is right. `bad`: it failed the row checks twice. `overlong`: the
            prompt is longer than `max_length`. `empty`: the prompt has no token. `out_of_memory`:
            the state does not fit the memory even alone.
        tokens: Length of its prompt before any cut.
        truncated: Whether the end of the prompt was cut off.
        reason: Why, where the status is not `ok`.
    """

    status: Status
    tokens: int
    truncated: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Batch:
    """One batch's rows.

    Attributes:
        indices: Which sequences they are of.
        rows: Their rows, float32 `[len(indices), dim]`, not yet checked.
        failed: Those of the batch that do not fit the memory, with the reason.
    """

    indices: list[int]
    rows: NDArray[np.float32]
    failed: dict[int, str]


@dataclass(frozen=True)
class _Done:
    """A batch whose rows have been written where they belong."""

    indices: list[int]
    rows: Rows
    failed: dict[int, str]


@dataclass(frozen=True)
class _UnderWay:
    """A batch that a device has been told to run.

    Attributes:
        indices: Its sequences.
        rows: Where their rows go.
        failed: Those that do not fit the memory, with the reason.
        arrivals: What to wait for, one of each part of the batch.
    """

    indices: list[int]
    rows: Rows
    failed: dict[int, str]
    arrivals: list[Arrival]

    @property
    def here(self) -> bool:
        """Whether there is nothing to wait for."""
        return all(arrival.here for arrival in self.arrivals)

    def done(self) -> _Done:
        """Waits for the rows."""
        for arrival in self.arrivals:
            arrival.wait()
        good = [k for k, i in enumerate(self.indices) if i not in self.failed]
        return _Done([self.indices[k] for k in good], self.rows.select(good), self.failed)


class Encoder:
    """Turns states into embeddings with one model and one set of options.

    Make one with `Encoder.load`.

    Attributes:
        model: The loaded model.
        identity: Everything that changes the rows beyond rounding.
        choice: The engine in use, and why.
        prompts: States to token sequences.
        overlong: What is done about prompts longer than `max_length`.
    """

    def __init__(
        self,
        model: Model,
        template: Template,
        *,
        pooling: Pooling,
        layer: int,
        max_length: int | None,
        overlong: Overlong,
        max_batch_tokens: int,
        batch_size: int,
        engine: EngineName = "auto",
    ) -> None:
        if min(max_batch_tokens, batch_size) < 1:
            raise ArgumentError("max_batch_tokens and batch_size must be at least 1")
        longest = _longest(model, max_length)
        self.model = model
        self.overlong: Overlong = overlong
        self.prompts = Prompts(model.tokenizer, template, longest)
        self.identity = identify(
            model,
            template,
            pooling=pooling,
            layer=layer,
            max_length=longest,
            truncates=overlong == "truncate",
        )
        self._alone = AloneEngine(model, pooling, layer)
        self._forced = engine != "auto"
        candidates: list[Engine] = [
            candidate
            for candidate in _engines(model, pooling, layer, max_batch_tokens, batch_size)
            if engine in ("auto", candidate.name)
        ]
        for marker in self.prompts.unknown_markers():
            log.warning(
                "template %s: %s is no special token of this tokenizer and will be read as plain"
                " text",
                template.name,
                marker,
            )
        self._require_room_for_states()
        probes = self.prompts.tokenize(_PROBES)
        self._require_known(probes)
        stretched = self._stretched(probes)
        if len(stretched) < len(probes):
            probes = probes.select([i for i in range(len(probes)) if i not in stretched])
        try:
            self.choice: EngineChoice = choose_engine(candidates, self._alone, probes, model.dtype)
        except Exception as error:  # a model's code may raise anything
            raise ModelError(f"{model.name}: does not run: {one_line(error)}") from error
        if self._forced:
            require_engine(self.choice, engine)
        # The longest sequence whose row was compared with the sequence alone.
        self._compared = int(probes.lengths.max())
        # Engines switch the model's attention while they run it.
        self._lock = threading.Lock()
        # Slots of the smallest batch that ran out of memory, if any did.
        self._too_large: int | None = None

    @classmethod
    def load(
        cls,
        model_path: str,
        *,
        template: str = "raw",
        dtype: Dtype = "auto",
        device: str = "auto",
        pooling: Pooling = "mean",
        layer: int = -1,
        max_length: int | None = None,
        overlong: Overlong = "truncate",
        max_batch_tokens: int = DEFAULT_MAX_BATCH_TOKENS,
        batch_size: int = DEFAULT_BATCH_SIZE,
        engine: EngineName = "auto",
        trust_remote_code: bool = False,
    ) -> "Encoder":
        """Loads a model and makes an encoder of it.

        Args:
            model_path: A model's folder, or its hub id.
            template: `raw`, `deepseek-prover-v2`, or a file with `{state}` in it.
            dtype: Compute dtype; `auto` is the one the weights are stored in.
            device: Any torch device; `auto` is the first accelerator, else the CPU.
            pooling: `mean` over all tokens of the prompt, summed in float32, or the `last` one.
            layer: Which of Hugging Face's `hidden_states`; -1 is the last, after the final norm.
            max_length: Longest prompt in tokens; by default the model's own limit.
            overlong: What to do with longer ones: `truncate` their end, `skip` them, or `error`.
            max_batch_tokens: Most tokens of one forward pass, padding included.
            batch_size: Most states of one forward pass.
            engine: How states go through the model; `auto` is the fastest that is right.
            trust_remote_code: Whether code that comes with the model may run.

        Raises:
            ModelError: If the model cannot be loaded or used.
            TemplateError: If there is no such template, or it has no place for the state.
            ArgumentError: If the options do not fit each other or the model.
        """
        chosen = Template.load(template)
        if pooling not in ("mean", "last"):
            raise ArgumentError(f"pooling {pooling!r}: expected mean or last")
        if overlong not in ("truncate", "skip", "error"):
            raise ArgumentError(f"overlong {overlong!r}: expected truncate, skip or error")
        if dtype != "auto" and dtype not in DTYPES:
            raise ArgumentError(f"dtype {dtype!r}: expected auto, {', '.join(DTYPES)}")
        if engine not in get_args(EngineName):
            raise ArgumentError(f"engine {engine!r}: expected {', '.join(get_args(EngineName))}")
        model = load_model(
            model_path, dtype=dtype, device=device, trust_remote_code=trust_remote_code
        )
        return cls(
            model,
            chosen,
            pooling=pooling,
            layer=layer,
            max_length=max_length,
            overlong=overlong,
            max_batch_tokens=max_batch_tokens,
            batch_size=batch_size,
            engine=engine,
        )

    @property
    def dim(self) -> int:
        """Length of every row."""
        return self.choice.dim

    def encode(self, states: Sequence[str]) -> NDArray[np.float32]:
        """The rows of some states, float32 `[len(states), dim]`, in their order.

        Raises:
            BadRowsError: If a row fails the checks, also alone; names the states.
            EncodingError: If a state is too long, has no token, or does not fit the memory.
        """
        _refuse_single(states)
        out = np.empty((len(states), self.dim), dtype=np.float32)
        reports = self.encode_into(states, out)
        wrong = [i for i, report in enumerate(reports) if report.status != "ok"]
        if wrong:
            named = "; ".join(
                f"state {i} ({_preview(states[i])}): {reports[i].reason}" for i in wrong[:3]
            )
            message = f"{len(wrong)} of {len(states)} states have no row; {named}"
            kinds = {reports[i].status for i in wrong}
            raise BadRowsError(message) if "bad" in kinds else EncodingError(message)
        return out

    def encode_into(self, states: Sequence[str], out: NDArray[np.float32]) -> list[RowReport]:
        """Writes the rows of some states into the caller's array.

        Args:
            states: The states.
            out: float32 `[len(states), dim]`, C order, writeable; it stays the caller's. The row of
                a state whose status is not `ok` becomes NaN, so that it cannot be taken for one.

        Returns:
            One report per state.

        Raises:
            ArgumentError: If `out` is of another shape, dtype or order.
        """
        self._require_out(states, out)
        tokens = self.prompts.tokenize(states)
        reports = self.screen(tokens)
        usable = [i for i, report in enumerate(reports) if report.status == "ok"]
        selected = tokens.select(usable)
        for batch in self._batches(selected, Rows(out, usable)):
            for index, reason in batch.failed.items():
                reports[usable[index]] = _out_of_memory(selected, index, reason)
        self._redo_bad_rows(states, tokens, out, reports)
        for i, report in enumerate(reports):
            if report.status != "ok":
                out[i] = np.nan
        return reports

    def screen(self, tokens: Tokens) -> list[RowReport]:
        """What can be said of each sequence before it is run.

        Raises:
            ModelError: If the tokenizer gives a token that the model does not know.
        """
        self._require_known(tokens)
        return [self._screen(int(full)) for full in tokens.full_lengths]

    def run(
        self, tokens: Tokens, *, wanted: Callable[[list[int]], bool] = lambda _: True
    ) -> Iterator[Batch]:
        """Runs sequences in batches; yields each batch's rows, unchecked.

        Args:
            tokens: Sequences of at least one token each.
            wanted: Asked of each batch whether it is to be run; what it answers does not change
                how the sequences are divided.
        """
        for done in self._batches(tokens, None, wanted):
            rows = done.rows
            yield Batch(done.indices, rows.array[rows.places], done.failed)

    def _batches(
        self,
        tokens: Tokens,
        into: Rows | None,
        wanted: Callable[[list[int]], bool] = lambda _: True,
    ) -> Iterator[_Done]:
        """Runs sequences in batches; the rows go into memory that is given, or a batch's own."""
        stretched = self._stretched(tokens)
        for i in stretched:
            if wanted([i]):
                yield self._alone_batch(tokens, i, into)
        rest = [i for i in range(len(tokens)) if i not in stretched]
        while rest:
            plan = self.choice.engine.plan(tokens.select(rest))
            batches = _longest_first([[rest[k] for k in batch] for batch in plan], tokens)
            chosen = [batch for batch in batches if wanted(batch)]
            left = {i for batch in chosen for i in batch}
            for done in self._each(tokens, chosen, into):
                if not self._still_right(tokens, done):
                    break  # and plan anew, for the engine that is used from here on
                yield done
                left.difference_update(done.indices, done.failed)
            rest = [i for i in rest if i in left]

    def _each(self, tokens: Tokens, batches: list[list[int]], into: Rows | None) -> Iterator[_Done]:
        """The batches in their order; a device works on the next one while one is in use."""
        before: _UnderWay | None = None
        for indices in batches:
            batch = self._start(tokens, indices, into)
            if before is not None:
                yield before.done()
            before = batch
            if before.here:
                yield before.done()
                before = None
        if before is not None:
            yield before.done()

    def _start(self, tokens: Tokens, indices: list[int], into: Rows | None) -> _UnderWay:
        rows = into.select(indices) if into else Rows.new(len(indices), self.dim)
        batch = _UnderWay(indices, rows, {}, [])
        self._forward(tokens, indices, rows, batch)
        return batch

    def _stretched(self, tokens: Tokens) -> dict[int, None]:
        """The sequences that would change the positions of others in their batch."""
        limit = self.model.stretches_after
        long = [] if limit is None else np.flatnonzero(tokens.lengths > limit).tolist()
        return dict.fromkeys(long)

    def _alone_batch(self, tokens: Tokens, i: int, into: Rows | None) -> _Done:
        rows = into.select([i]) if into else Rows.new(1, self.dim)
        try:
            rows.row(0)[:] = self.run_alone(tokens[i])
        except EncodingError as error:
            return _Done([], rows.select([]), {i: str(error)})
        return _Done([i], rows, {})

    def _still_right(self, tokens: Tokens, done: _Done) -> bool:
        """Compares a batch with sequences longer than any compared so far with these alone.

        Some of what can make an engine wrong shows only beyond some length: a sliding window that
        is not kept to, positions that are stretched. So the longest of such a batch is compared,
        and the shortest, which must not suffer from it. Returns whether the rows are right; if not,
        another engine is chosen.

        Raises:
            ModelError: If the engine was forced.
        """
        engine, lengths = self.choice.engine, tokens.lengths[done.indices]
        if engine is self._alone or lengths.max(initial=0) <= self._compared:
            return True
        longest = int(lengths.max())
        ends = sorted({int(lengths.argmin()), int(lengths.argmax())})
        sample = [done.indices[k] for k in ends]
        alone = np.stack([self.run_alone(tokens[i]) for i in sample])
        error, cosine = compare(np.stack([done.rows.row(k) for k in ends]), alone)
        if agrees(error, cosine, self.model.dtype) or not np.isfinite(alone).all():
            self._compared = longest
            return True
        reason = (
            f"{engine.name} differs from sequences alone at {longest} tokens (relative error"
            f" {error:.1e}, cosine {cosine:.6f})"
        )
        if self._forced:
            raise ModelError(f"--engine {engine.name}: cannot be used for this model: {reason}")
        probes = tokens.select(sample)
        choice = choose_engine(self.choice.worse, self._alone, probes, self.model.dtype)
        self.choice = replace(choice, reason=f"{reason}; {choice.reason}")
        log.warning("engine %s from here on: %s", choice.engine.name, self.choice.reason)
        return False

    def run_alone(self, sequence: NDArray[np.uint32]) -> NDArray[np.float32]:
        """The row of one sequence, float32 `[dim]`: the model on it alone, no padding.

        Raises:
            EncodingError: If it does not fit the memory.
        """
        rows = Rows.new(1, self.dim)
        try:
            with self._lock:
                self._alone.forward([sequence], rows).wait()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            _free_memory()
            raise EncodingError(_memory_reason(len(sequence))) from error
        return rows.row(0)

    def _require_room_for_states(self) -> None:
        """Refuses a template that fills the longest prompt: all prompts would be the same."""
        limit, template = self.prompts.max_length, self.prompts.template
        before = template.text.partition(PLACE)[0]
        fixed = int(self.prompts.tokenize_texts([before]).full_lengths[0]) if before else 0
        if limit is not None and fixed >= limit:
            raise TemplateError(
                f"--template {template.name}: has {fixed} tokens before the state, and prompts may"
                f" have {limit} (--max-length)"
            )

    def _require_known(self, tokens: Tokens) -> None:
        """Refuses tokens without an embedding; on a GPU they would end the process."""
        highest = int(tokens.ids.max(initial=0))
        known = self.model.base.get_input_embeddings().num_embeddings
        if highest >= known:
            raise ModelError(
                f"{self.model.name}: its tokenizer gives token {highest}, and the model knows"
                f" {known}; they do not belong together"
            )

    def _require_out(self, states: Sequence[str], out: NDArray[np.float32]) -> None:
        _refuse_single(states)
        expected = (len(states), self.dim)
        if out.shape != expected or out.dtype != np.float32:
            raise ArgumentError(
                f"out is {out.dtype} {list(out.shape)}, expected float32 {list(expected)}"
            )
        if not (out.flags.c_contiguous and out.flags.writeable):
            raise ArgumentError("out must be C-contiguous and writeable")

    def _screen(self, full: int) -> RowReport:
        limit = self.prompts.max_length
        if full == 0:
            return RowReport("empty", 0, reason="the prompt has no token")
        if limit is None or full <= limit:
            return RowReport("ok", full)
        if self.overlong == "truncate":
            return RowReport("ok", full, truncated=True)
        reason = f"{full} tokens are more than --max-length {limit}"
        return RowReport("overlong", full, reason=reason)

    def _forward(self, tokens: Tokens, indices: list[int], rows: Rows, batch: _UnderWay) -> None:
        """Runs some of a batch, in halves where the memory does not hold it."""
        slots = self.choice.engine.size([tokens[i] for i in indices])
        splittable = len(indices) > 1
        if not (splittable and self._too_large is not None and slots >= self._too_large):
            try:
                with self._lock:
                    arrival = self.choice.engine.forward([tokens[i] for i in indices], rows)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                _free_memory()
                if not splittable:
                    batch.failed[indices[0]] = _memory_reason(len(tokens[indices[0]]))
                    return
                self._too_large = slots
                log.warning("out of memory at %d tokens; going on with smaller batches", slots)
            else:
                batch.arrivals.append(arrival)
                return
        half = len(indices) // 2
        for part in (range(half), range(half, len(indices))):
            self._forward(tokens, [indices[k] for k in part], rows.select(part), batch)

    def _redo_bad_rows(
        self,
        states: Sequence[str],
        tokens: Tokens,
        out: NDArray[np.float32],
        reports: list[RowReport],
    ) -> None:
        """Checks all rows of a call together; runs the bad ones alone and checks again."""
        for attempt in ("batched", "alone"):
            good = [i for i, report in enumerate(reports) if report.status == "ok"]
            selected = tokens.select(good)
            rows = out if len(good) == len(states) else out[good]
            verdicts = _core.check_rows(
                [states[i] for i in good], selected.ids, selected.offsets, rows
            )
            bad = {i: verdict for i, verdict in zip(good, verdicts, strict=True) if verdict}
            for i, verdict in bad.items():
                if attempt == "alone":
                    length = int(tokens.full_lengths[i])
                    reports[i] = RowReport("bad", length, reason=verdict.reason)
                    continue
                log.warning("state %d: %s; encoding it alone", i, verdict.reason)
                out[i] = self.run_alone(tokens[i])
                if verdict.other_row is not None:  # either of two equal rows may be the wrong one
                    other = good[verdict.other_row]
                    out[other] = self.run_alone(tokens[other])
            if not bad:
                return


def _engines(
    model: Model, pooling: Pooling, layer: int, max_tokens: int, max_rows: int
) -> list[Engine]:
    """All engines for a model, best first."""
    windows = partial(WindowEngine, model, pooling, layer, max_tokens=max_tokens, max_rows=max_rows)
    return [
        windows(),
        MaskedWindowEngine(model, pooling, layer, max_tokens=max_tokens, max_rows=max_rows),
        windows(share=False),
        PaddedEngine(model, pooling, layer, max_tokens=max_tokens, max_rows=max_rows),
    ]


def _longest_first(batches: list[list[int]], tokens: Tokens) -> list[list[int]]:
    """The batch with the longest sequence comes first; compared alone, it vouches for the rest."""
    lengths = tokens.lengths
    first = max(range(len(batches)), key=lambda i: lengths[batches[i]].max())
    return [batches[first], *batches[:first], *batches[first + 1 :]]


def _refuse_single(states: Sequence[str]) -> None:
    if isinstance(states, str):
        raise ArgumentError("states is one text, expected a list of them")


def _longest(model: Model, max_length: int | None) -> int | None:
    if max_length is None:
        return model.max_positions
    if max_length < 1:
        raise ArgumentError(f"--max-length {max_length}: must be at least 1")
    if model.max_positions is not None and max_length > model.max_positions:
        raise ArgumentError(
            f"--max-length {max_length}: the model reads at most {model.max_positions} tokens"
        )
    return max_length


def _out_of_memory(tokens: Tokens, index: int, reason: str) -> RowReport:
    return RowReport("out_of_memory", int(tokens.full_lengths[index]), reason=reason)


def _memory_reason(length: int) -> str:
    return f"out of memory, though encoded alone ({length} tokens)"


def _is_out_of_memory(error: BaseException) -> bool:
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "can't allocate memory" in str(error)
    )


def _free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _preview(state: str) -> str:
    line = state.partition("\n")[0]
    return repr(line if len(line) <= 60 else line[:60] + "…")  # noqa: PLR2004
