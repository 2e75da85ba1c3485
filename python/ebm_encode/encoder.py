"""The encoder: states in, checked float32 rows out.

Knows nothing of files other than the model's.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ebm_encode import _core
from ebm_encode._core import BadRow
from ebm_encode.digests import digest_tokens
from ebm_encode.engines.budget import Budget
from ebm_encode.engines.engine import Pooling
from ebm_encode.engines.noise import NoiseFloor
from ebm_encode.engines.reference import compare, embeddings_agree
from ebm_encode.engines.rows import Rows
from ebm_encode.engines.runner import Runner
from ebm_encode.engines.selection import Compile, EngineFactory, EngineName, Selection
from ebm_encode.engines.selftest import EngineChoice
from ebm_encode.equal_rows import RowClasses
from ebm_encode.errors import (
    ArgumentError,
    BadRowsError,
    EncodingError,
    ModelError,
    TemplateError,
    TextFailedError,
)
from ebm_encode.identity.identity import identify
from ebm_encode.loading.model import (
    DTYPES,
    Dtype,
    Model,
    load_model,
    longest_prompt,
    text_config_of,
)
from ebm_encode.prompts.control_tokens import NOT_PLAIN
from ebm_encode.prompts.cutting import Overlong, cut_for
from ebm_encode.prompts.templates import Template
from ebm_encode.prompts.tokens import Prompts, Tokens
from ebm_encode.texts import Texts, preview, texts_of

log = logging.getLogger(__name__)

Status = Literal["ok", "bad", "overlong", "empty", "out_of_memory", "unknown_token", "not_text"]

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
        status: `ok`: the row is right. `bad`: it failed the row checks twice, or the model fails
            on the state. `overlong`: the prompt is longer than `max_length`. `empty`: the prompt
            has no token. `unknown_token`: the prompt has one that the model has no embedding for.
            `out_of_memory`: the state does not fit the memory even alone. `not_text`: it is no
            `str`, or has half of a surrogate pair.
        tokens: Length of its prompt before any cut.
        truncated: Whether the prompt was cut.
        reason: Why, where the status is not `ok`.
        same_as: Index of another state of the call with the same tokens, where it has them only
            because a prompt was cut.
        token_digest: 64-bit digest of the class of token sequences that the prompt, after any cut,
            belongs to (`Encoder.classes`); states with equal digests may have equal rows.
    """

    status: Status
    tokens: int
    truncated: bool = False
    reason: str = ""
    same_as: int | None = None
    token_digest: int | None = None


@dataclass(frozen=True)
class Batch:
    """One batch's rows.

    Attributes:
        indices: Which sequences they are of.
        rows: Their rows, float32 `[len(indices), dim]`, not yet checked.
        failed: Those of the batch that cannot be encoded, with the reason.
    """

    indices: list[int]
    rows: NDArray[np.float32]
    failed: dict[int, EncodingError]


class Encoder:
    """Turns states into embeddings with one model and one set of options.

    Make one with `Encoder.load`.

    Attributes:
        model: The loaded model.
        identity: Everything that changes the rows beyond rounding.
        prompts: States to token sequences.
        overlong: What is done about prompts longer than `max_length`.
        runner: Token sequences to rows.
        classes: Which token sequences may have equal rows.
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
        max_batch_tokens: int | None,
        batch_size: int | None,
        engine: EngineName = "auto",
        compile_layers: Compile = "auto",
        engines: EngineFactory | None = None,
    ) -> None:
        budget = Budget.of(max_batch_tokens, batch_size)
        longest = longest_prompt(model.max_positions, max_length)
        self.model = model
        self.overlong: Overlong = overlong
        self.prompts = Prompts(model.tokenizer, template, longest, cut=cut_for(overlong))
        self.identity = identify(model, self.prompts, pooling=pooling, layer=layer)
        for marker in self.prompts.unknown_markers():
            log.warning(
                "template %s: %s is no special token of this tokenizer and will be read as plain"
                " text",
                template.name,
                marker,
            )
        self._require_room_for_states()
        probes = self.prompts.tokenize(_PROBES).within(longest)
        self._require_known(probes)
        selection = Selection(
            model,
            pooling,
            layer,
            budget,
            probes=probes,
            engine=engine,
            compile_layers=compile_layers,
            engines=engines,
        )
        self.runner = Runner(model, selection, budget)
        index = layer % (int(text_config_of(model.config).num_hidden_layers) + 1)
        self.classes = RowClasses(index, pooling, model.dtype, self.run_alone)
        # What a CPU is fastest with is known; of a device it must be measured.
        self._to_calibrate = max_batch_tokens is None and model.device.type != "cpu"

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
        overlong: Overlong = "error",
        max_batch_tokens: int | None = None,
        batch_size: int | None = None,
        engine: EngineName = "auto",
        compile_layers: Compile = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        code_revision: str | None = None,
        engines: EngineFactory | None = None,
    ) -> "Encoder":
        """Loads a model and makes an encoder of it.

        Args:
            model_path: A model's folder, or its hub id.
            template: `raw`, `deepseek-prover-v2`, or a file with `{state}` in it.
            dtype: Compute dtype; `auto` is the one that the model's `config.json` names, or else
                the one that its weights are stored in.
            device: Any torch device; `auto` is the first accelerator, else the CPU.
            pooling: `mean` over all tokens of the prompt, summed in float32, or the `last` one.
            layer: Which of Hugging Face's `hidden_states`; -1 is the last, after the final norm.
            max_length: Longest prompt in tokens; by default the model's own limit.
            overlong: What to do with longer ones. `error` and `skip`: they get no embedding
                (`encode` raises, a bulk run stops or lists them). `truncate`: cut them as
                transformers does. `truncate-state`: drop hypotheses of the Lean state, the first
                ones first, so that its goals and the template stay whole.
            max_batch_tokens: Most tokens of one forward pass, padding included; by default 8,192,
                and on an accelerator what `calibrate` finds, once that is called.
            batch_size: Most states of one forward pass; by default one for each 32 tokens, and at
                least 256.
            engine: How states go through the model; `auto` is the fastest that is right.
            compile_layers: Whether torch compiles the model's layers: `on`, `off`, or `auto`, which
                leaves it to `calibrate`.
            revision: Branch, tag or commit of a hub id.
            trust_remote_code: Whether code that comes with the model may run.
            code_revision: Commit of that code, where it is in another repository than the model.
            engines: Makes the engines to choose from, best first; this package's if not given.
                Whatever it makes must pass the self-test.

        Raises:
            ModelError: If the model cannot be loaded or used.
            TemplateError: If there is no such template, or it has no place for the state.
            ArgumentError: If the options do not fit each other or the model.
        """
        chosen = Template.load(template)
        if pooling not in ("mean", "last"):
            raise ArgumentError(f"pooling {pooling!r}: expected mean or last")
        if overlong not in get_args(Overlong):
            raise ArgumentError(f"overlong {overlong!r}: expected {', '.join(get_args(Overlong))}")
        if dtype != "auto" and dtype not in DTYPES:
            raise ArgumentError(f"dtype {dtype!r}: expected auto, {', '.join(DTYPES)}")
        if engine not in get_args(EngineName):
            raise ArgumentError(f"engine {engine!r}: expected {', '.join(get_args(EngineName))}")
        if compile_layers not in get_args(Compile):
            raise ArgumentError(f"compile_layers {compile_layers!r}: expected auto, on or off")
        model = load_model(
            model_path,
            dtype=dtype,
            device=device,
            revision=revision,
            trust_remote_code=trust_remote_code,
            code_revision=code_revision,
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
            compile_layers=compile_layers,
            engines=engines,
        )

    @property
    def dim(self) -> int:
        """Length of every row."""
        return self.choice.dim

    @property
    def choice(self) -> EngineChoice:
        """The engine in use, and why."""
        return self.runner.choice

    @property
    def wants_calibration(self) -> bool:
        """Whether `calibrate` would measure."""
        return self._to_calibrate

    def require_finite(self) -> None:
        """Refuses a model that gave no finite embedding of any self-test prompt.

        It would give none of any state. Loading such a model only warns; `encode`, `encode_into`
        and a bulk run ask this before any state is run.

        Raises:
            ModelError: If it gave none.
        """
        if not self.choice.finite:
            hint = (
                '`dtype="float32"` holds numbers that float16 does not'
                if self.model.dtype == "float16"
                else "its weights may be damaged: NaN or far too large"
            )
            raise ModelError(
                f"{self.model.name}: gives no finite embedding of any self-test prompt in"
                f" {self.model.dtype}, so no state is encoded\nhint: {hint}"
            )

    def settings(self) -> dict[str, Any]:
        """What `calibrate` found, and for whom; JSON values only."""
        return self._whose() | self.runner.settings()

    def resume(self, settings: dict[str, Any]) -> bool:
        """Takes settings that an earlier run measured.

        Returns whether it did: not those of another model, device or engine, nor where there is
        nothing to measure.
        """
        ours = all(settings.get(name) == value for name, value in self._whose().items())
        if not self._to_calibrate or not ours:
            return False
        self.runner.resume(settings)
        return True

    def _whose(self) -> dict[str, str]:
        return {
            "identity": self.identity.digest,
            "device": self.model.device_name,
            "engine": self.choice.engine.name,
        }

    def calibrate(self, tokens: Tokens, *, times: float = 1.0) -> bool:
        """Measures with how many tokens of one pass the device is fastest, before bulk work.

        Rows are the same, beyond rounding. On a CPU, and where the user has said how many, there is
        nothing to measure.

        Args:
            tokens: Sequences like those to come, some ten thousands of tokens or more.
            times: How many times as much as these is to come. If that is minutes of work on a GPU,
                the model's layers are compiled too, if they are faster then.

        Returns:
            Whether it was measured.
        """
        if not self._to_calibrate or not len(tokens):
            return False
        found = self.runner.calibrate(tokens, times=times)
        layers = ", layers compiled" if self.runner.compiled else ""
        log.info("up to %d tokens at a time%s (%s)", found.tokens, layers, found)
        return True

    def encode(self, states: Any) -> NDArray[np.float32]:
        """The embeddings of some states, float32 `[len(states), dim]`, in their order.

        Args:
            states: Texts in any ordered collection: a list, tuple or iterator, a numpy array, a
                column of pandas, polars or pyarrow. One text is refused: its embedding is
                `encode([state])[0]`.

        Raises:
            ArgumentError: If states are not text (`None`, NaN, half of a surrogate pair), naming
                them by index, or `states` is no such collection. Nothing is encoded then.
            BadRowsError: If a row fails the checks, also alone, or the model fails on a state; the
                states are named.
            EncodingError: If a state is too long, has no token, or does not fit the memory.
            ModelError: If the model does not run any more, or gives no finite embedding at all, or
                an engine that was forced is wrong.
        """
        texts = texts_of(states)
        out = np.empty((len(texts), self.dim), dtype=np.float32)
        reports = self.encode_into(texts, out)
        wrong = [i for i, report in enumerate(reports) if report.status != "ok"]
        if wrong:
            named = "; ".join(
                f"state {i} ({preview(texts[i])}): {reports[i].reason}" for i in wrong[:3]
            )
            message = f"{len(wrong)} of {len(texts)} states have no row; {named}"
            kinds = {reports[i].status for i in wrong}
            if "overlong" in kinds:
                message += (
                    '\nhint: cut them with `overlong="truncate"` or `overlong="truncate-state"`'
                )
            raise BadRowsError(message) if "bad" in kinds else EncodingError(message)
        return out

    def encode_into(self, states: Any, out: NDArray[np.float32]) -> list[RowReport]:
        """Writes the embeddings of some states into the caller's array.

        Args:
            states: Texts in any ordered collection, as for `encode`. What is not text gets a report
                of its own and harms no other state.
            out: float32 `[len(states), dim]`, C order, writeable; it stays the caller's. The row of
                a state whose status is not `ok` becomes NaN, so that it cannot be taken for one.

        Returns:
            One report per state.

        Raises:
            ArgumentError: If `states` is no such collection, or `out` is of another shape, dtype or
                order.
            ModelError: If the model does not run any more, or gives no finite embedding at all, or
                an engine that was forced is wrong.
        """
        given = Texts.of(states)
        texts = given.texts
        self._require_out(len(texts), out)
        self.require_finite()
        tokens = self.prompts.tokenize(texts)
        reports = self.screen(tokens)
        for i, reason in given.wrong.items():
            reports[i] = RowReport("not_text", 0, reason=reason)
        _note_same(texts, tokens, reports)
        usable = [i for i, report in enumerate(reports) if report.status == "ok"]
        selected = tokens.select(usable)
        for batch in self.runner.run(selected, Rows(out, usable)):
            for index, error in batch.failed.items():
                reports[usable[index]] = _without_row(selected, index, error)
        self._redo_bad_rows(texts, tokens, out, reports)
        for i, report in enumerate(reports):
            if report.status == "ok":
                reports[i] = replace(report, token_digest=digest_tokens(self.classes.of(tokens[i])))
            else:
                out[i] = np.nan
        return reports

    def screen(self, tokens: Tokens) -> list[RowReport]:
        """What can be said of each sequence before it is run."""
        return [self._screen(tokens[i], int(full)) for i, full in enumerate(tokens.full_lengths)]

    def run(
        self, tokens: Tokens, *, wanted: Callable[[list[int]], bool] = lambda _: True
    ) -> Iterator[Batch]:
        """Runs sequences in batches; yields each batch's rows, unchecked.

        Args:
            tokens: Sequences of at least one token each.
            wanted: Asked of each batch whether it is to be run; what it answers does not change
                how the sequences are divided.
        """
        for done in self.runner.run(tokens, wanted=wanted):
            rows = done.rows
            yield Batch(done.indices, rows.array[rows.places], done.failed)

    def run_alone(self, sequence: NDArray[np.uint32]) -> NDArray[np.float32]:
        """The row of one sequence, float32 `[dim]`: the model on it alone, no padding.

        Raises:
            EncodingError: If it does not fit the memory.
            TextFailedError: If the model fails on it.
            ModelError: If the model does not run any more.
        """
        return self.runner.run_alone(sequence)

    @property
    def noise(self) -> NoiseFloor:
        """How far rounding alone moves the hidden states of this model."""
        return self.runner.selection.noise

    def is_embedding_of(
        self,
        sequence: NDArray[np.uint32],
        row: NDArray[np.float32],
        reference: NDArray[np.float32],
    ) -> bool:
        """Whether a row is the embedding of a sequence, as far as rounding allows.

        Where it is farther from the reference than usual, rounding at random tells how far it may
        be for this sequence: with mixture-of-experts models a short one may be far.

        Args:
            sequence: Token ids.
            row: float32 `[dim]`.
            reference: That of the sequence at batch size 1, float32 `[dim]`.
        """
        if not (np.isfinite(row).all() and np.isfinite(reference).all()):
            return False
        if embeddings_agree(*compare(row[None], reference[None]), self.noise):
            return True
        off = np.linalg.norm(row.astype(np.float64) - reference) / np.linalg.norm(reference)
        return bool(off <= 2 * self.runner.spread(sequence))

    def _require_room_for_states(self) -> None:
        """Refuses a longest prompt that what is around the states fills: all would be the same."""
        limit, template = self.prompts.max_length, self.prompts.template
        before, after = self.prompts.fixed_tokens()
        if limit is None or before + after < limit:
            return
        where = "before" if before >= limit else "around"
        raise TemplateError(
            f"`template` {template.name}: has {max(before, before + after)} tokens {where} the"
            f" state, special tokens included, and prompts may have {limit} (`max_length`)"
        )

    def _require_known(self, tokens: Tokens) -> None:
        """Refuses a model without embeddings for usual tokens."""
        highest = int(tokens.ids.max(initial=0))
        known = self.model.vocabulary
        if highest >= known:
            raise ModelError(
                f"{self.model.name}: its tokenizer gives token {highest}, and the model knows"
                f" {known}; they do not belong together"
            )

    def _require_out(self, count: int, out: NDArray[np.float32]) -> None:
        expected = (count, self.dim)
        if not isinstance(out, np.ndarray):
            raise ArgumentError(f"out is a {type(out).__name__}, expected a numpy array")
        if out.shape != expected or out.dtype != np.float32:
            raise ArgumentError(
                f"out is {out.dtype} {list(out.shape)}, expected float32 {list(expected)}"
            )
        if not (out.flags.c_contiguous and out.flags.writeable):
            raise ArgumentError("out must be C-contiguous and writeable")

    def _screen(self, sequence: NDArray[np.uint32], full: int) -> RowReport:
        limit, length = self.prompts.max_length, len(sequence)
        if length == 0:
            return RowReport("empty", 0, reason="the prompt has no token")
        highest = int(sequence.max())
        if highest >= self.model.vocabulary:  # on a GPU it would end the process
            return RowReport("unknown_token", full, reason=self._unknown(highest))
        if limit is None or length <= limit:
            return RowReport("ok", full, truncated=full > length)
        reason = f"{full} tokens are more than `max_length` {limit}"
        if self.prompts.cut == "hypotheses":
            reason += ", also without hypotheses"
        return RowReport("overlong", full, reason=reason)

    def _unknown(self, token: int) -> str:
        if token == int(NOT_PLAIN):
            return "the tokenizer reads text of the state as a special token"
        try:
            text = repr(self.prompts.tokenizer.convert_ids_to_tokens(token))
        except (KeyError, IndexError, ValueError, TypeError):
            text = "unknown"
        return (
            f"its token {token} ({text}) has no embedding: the model knows {self.model.vocabulary}"
        )

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
            rows = out if len(good) == len(states) else out[good]
            verdicts = self._verdicts([states[i] for i in good], tokens.select(good), rows)
            bad = {i: verdict for i, verdict in zip(good, verdicts, strict=True) if verdict}
            for i, verdict in bad.items():
                if attempt == "alone":
                    length = int(tokens.full_lengths[i])
                    reports[i] = RowReport("bad", length, reason=verdict.reason)
                    continue
                log.warning("state %d: %s; encoding it alone", i, verdict.reason)
                self._redo(i, tokens, out, reports)
                if verdict.other_row is not None:  # either of two equal rows may be the wrong one
                    self._redo(good[verdict.other_row], tokens, out, reports)
            if not bad:
                return

    def _verdicts(
        self, states: list[str], tokens: Tokens, rows: NDArray[np.float32]
    ) -> list[BadRow | None]:
        """Why rows of one call are bad; those that are equal and may be so are not."""
        first: dict[bytes, int] = {}
        # A number for each set of states whose rows may be equal.
        classes = np.array(
            [first.setdefault(self.classes.of(tokens[i]).tobytes(), i) for i in range(len(tokens))],
            dtype=np.uint32,
        )
        offsets = np.arange(len(classes) + 1, dtype=np.int64)
        return _core.check_rows(states, classes, offsets, rows)

    def _redo(
        self, i: int, tokens: Tokens, out: NDArray[np.float32], reports: list[RowReport]
    ) -> None:
        """Runs one sequence alone, and says so if that makes no row."""
        try:
            out[i] = self.run_alone(tokens[i])
        except EncodingError as error:
            reports[i] = _without_row(tokens, i, error)


def _note_same(states: Sequence[str], tokens: Tokens, reports: list[RowReport]) -> None:
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


def _without_row(tokens: Tokens, index: int, error: EncodingError) -> RowReport:
    status: Status = "bad" if isinstance(error, TextFailedError) else "out_of_memory"
    return RowReport(status, int(tokens.full_lengths[index]), reason=str(error))
