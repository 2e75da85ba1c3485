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
from ebm_encode.digests import digest_tokens
from ebm_encode.engines import Budget, Compile, EngineChoice, EngineName, Pooling, Selection
from ebm_encode.engines.rows import Rows
from ebm_encode.errors import (
    ArgumentError,
    BadRowsError,
    EncodingError,
    ModelError,
    TemplateError,
    TextFailedError,
)
from ebm_encode.identity import identify
from ebm_encode.model import DTYPES, Dtype, Model, load_model, longest_prompt
from ebm_encode.runner import Runner
from ebm_encode.templates import PLACE, Template
from ebm_encode.tokens import Prompts, Tokens

log = logging.getLogger(__name__)

Overlong = Literal["truncate", "skip", "error"]
Status = Literal["ok", "bad", "overlong", "empty", "out_of_memory"]

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
            has no token. `out_of_memory`: the state does not fit the memory even alone.
        tokens: Length of its prompt before any cut.
        truncated: Whether the end of the prompt was cut off.
        reason: Why, where the status is not `ok`.
        token_digest: 64-bit digest of the token ids that went through the model, after any cut;
            states with equal digests may have equal rows.
    """

    status: Status
    tokens: int
    truncated: bool = False
    reason: str = ""
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
    ) -> None:
        budget = Budget.of(max_batch_tokens, batch_size)
        longest = longest_prompt(model.max_positions, max_length)
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
        selection = Selection(
            model,
            pooling,
            layer,
            budget,
            probes=probes,
            engine=engine,
            compile_layers=compile_layers,
        )
        self.runner = Runner(model, selection, budget)
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
        overlong: Overlong = "truncate",
        max_batch_tokens: int | None = None,
        batch_size: int | None = None,
        engine: EngineName = "auto",
        compile_layers: Compile = "auto",
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
            max_batch_tokens: Most tokens of one forward pass, padding included; by default 8,192,
                and on an accelerator what `calibrate` finds, once that is called.
            batch_size: Most states of one forward pass; by default one for each 32 tokens, and at
                least 256.
            engine: How states go through the model; `auto` is the fastest that is right.
            compile_layers: Whether torch compiles the model's layers: `on`, `off`, or `auto`, which
                leaves it to `calibrate`.
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
        if compile_layers not in get_args(Compile):
            raise ArgumentError(f"compile_layers {compile_layers!r}: expected auto, on or off")
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
            compile_layers=compile_layers,
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

    def encode(self, states: Sequence[str]) -> NDArray[np.float32]:
        """The rows of some states, float32 `[len(states), dim]`, in their order.

        Raises:
            BadRowsError: If a row fails the checks, also alone, or the model fails on a state; the
                states are named.
            EncodingError: If a state is too long, has no token, or does not fit the memory.
            ModelError: If the model does not run any more, or an engine that was forced is wrong.
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
        for batch in self.runner.run(selected, Rows(out, usable)):
            for index, error in batch.failed.items():
                reports[usable[index]] = _without_row(selected, index, error)
        self._redo_bad_rows(states, tokens, out, reports)
        for i, report in enumerate(reports):
            if report.status == "ok":
                reports[i] = replace(report, token_digest=digest_tokens(tokens[i]))
            else:
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
                self._redo(i, tokens, out, reports)
                if verdict.other_row is not None:  # either of two equal rows may be the wrong one
                    self._redo(good[verdict.other_row], tokens, out, reports)
            if not bad:
                return

    def _redo(
        self, i: int, tokens: Tokens, out: NDArray[np.float32], reports: list[RowReport]
    ) -> None:
        """Runs one sequence alone, and says so if that makes no row."""
        try:
            out[i] = self.run_alone(tokens[i])
        except EncodingError as error:
            reports[i] = _without_row(tokens, i, error)


def _refuse_single(states: Sequence[str]) -> None:
    if isinstance(states, str):
        raise ArgumentError("states is one text, expected a list of them")


def _without_row(tokens: Tokens, index: int, error: EncodingError) -> RowReport:
    status: Status = "bad" if isinstance(error, TextFailedError) else "out_of_memory"
    return RowReport(status, int(tokens.full_lengths[index]), reason=str(error))


def _preview(state: str) -> str:
    line = state.partition("\n")[0]
    return repr(line if len(line) <= 60 else line[:60] + "…")  # noqa: PLR2004
