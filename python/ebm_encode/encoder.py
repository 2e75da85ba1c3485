"""The encoder: states in, checked float32 embeddings out.

Knows nothing of files other than the model's.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebm_encode.digests import digest_tokens
from ebm_encode.engines.budget import Budget
from ebm_encode.engines.meter import Meter
from ebm_encode.engines.noise import NoiseFloor
from ebm_encode.engines.output import OutputSlots
from ebm_encode.engines.reference import compare, embeddings_agree
from ebm_encode.engines.runner import Runner
from ebm_encode.engines.selection import EngineFactory, Selection
from ebm_encode.engines.selftest import SELF_TEST_PROMPTS, EngineChoice
from ebm_encode.engines.tuning import Tuning
from ebm_encode.equal_embeddings import TokenClasses
from ebm_encode.errors import ArgumentError, ModelError
from ebm_encode.identity.identity import identify, with_backend
from ebm_encode.loading.model import Model, load_model, longest_prompt, text_config_of
from ebm_encode.options import (
    Backend,
    Compile,
    Dtype,
    EngineName,
    Overlong,
    Pooling,
    PrintedFormat,
    StateFormat,
    engine_name,
    require,
)
from ebm_encode.prompts.cutting import cut_for
from ebm_encode.prompts.templates import Template
from ebm_encode.prompts.tokens import Prompts, Tokens
from ebm_encode.reports import RowReport, note_same, require_embeddings, without_embedding
from ebm_encode.row_checks import RowChecks
from ebm_encode.screening import Screening
from ebm_encode.servers.backends import requiring_identity, server_engines
from ebm_encode.state_formats import convert_all, format_name, not_in
from ebm_encode.texts import Texts, texts_of
from ebm_encode.versions import versions

log = logging.getLogger(__name__)

_HINTS = {
    "overlong": 'cut them with `overlong="truncate"` or `overlong="truncate-state"`',
    "other_format": "convert them with `Encoder.convert`",
}
"""What to do about states without an embedding."""


class Encoder:
    """Turns states into embeddings with one model and one set of options.

    Make one with `Encoder.load`. Several threads may share it.

    Attributes:
        model: The loaded model.
        identity: Everything that changes the embeddings beyond rounding.
        state_format: The printed form of the states that it takes, with its version, as `lean-1`.
        prompts: States to token sequences.
        overlong: What is done about prompts longer than `max_length`.
        budget: The most that one forward pass may hold.
        selection: The engine in use.
        runner: Token sequences to embeddings.
        tuning: What is measured to be fastest on the device.
        classes: Which token sequences may have equal embeddings.
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
        state_format: StateFormat = "as-given",
        engines: EngineFactory | None = None,
    ) -> None:
        longest = longest_prompt(model.max_positions, max_length)
        self.model = model
        self.overlong: Overlong = overlong
        self.budget = Budget.of(
            max_batch_tokens, batch_size, path_bytes=Meter(model.device).share_for_paths()
        )
        self.prompts = Prompts(model.tokenizer, template, longest, cut=cut_for(overlong))
        self.state_format = format_name(state_format)
        identity = identify(
            model, self.prompts, pooling=pooling, layer=layer, state_format=self.state_format
        )
        for marker in self.prompts.unknown_markers():
            log.warning(
                "template %s: %s is no special token of this tokenizer and will be read as plain"
                " text",
                template.name,
                marker,
            )
        self._screening = Screening(model, self.prompts)
        probes = self.prompts.tokenize(SELF_TEST_PROMPTS).within(longest)
        self._screening.require_known(probes)
        self.selection = Selection(
            model,
            pooling,
            layer,
            self.budget,
            probes=probes,
            engine=engine,
            compile_layers=compile_layers,
            engines=None if engines is None else requiring_identity(engines, identity),
        )
        server = self.selection.server
        self.identity = identity if server is None else with_backend(identity, server.identity)
        self.runner = Runner(model, self.selection)
        # What a CPU is fastest with is known; of a device it must be measured.
        wanted = max_batch_tokens is None and model.device.type != "cpu" and server is None
        applies_to = {"identity": self.identity.digest, "device": model.device_name}
        chosen = {"asked": f"engine {engine}, {batch_size} sequences, compiled {compile_layers}"}
        self.tuning = Tuning(
            model,
            self.selection,
            self.budget,
            wanted=wanted,
            applies_to=applies_to,
            kept_for=None if engines is not None else versions() | chosen,
        )
        self.tuning.start()
        index = layer % (int(text_config_of(model.config).num_hidden_layers) + 1)
        self.classes = TokenClasses(index, pooling, model.dtype, self.run_unbatched)
        self._row_checks = RowChecks(self.classes, self.run_unbatched)

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
        engine: str = "auto",
        compile_layers: Compile = "auto",
        state_format: StateFormat = "as-given",
        revision: str | None = None,
        trust_remote_code: bool = False,
        code_revision: str | None = None,
        keep_head: bool = False,
        adapter: str | None = None,
        backend: Backend = "hf",
        server: Any = None,
        server_token: str | None = None,
        server_exclusive: bool = False,
        engines: EngineFactory | None = None,
    ) -> "Encoder":
        """An encoder with a model from a folder or the Hugging Face Hub.

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
            max_batch_tokens: Maximum tokens per forward pass, padding included. Default: 8,192,
                and on an accelerator what `calibrate` finds, once that is called.
            batch_size: Maximum states per forward pass. Default: max(256, `max_batch_tokens` / 32).
            engine: Execution strategy; `auto` is the fastest one that is exact for the model.
            compile_layers: Whether torch compiles the model's layers: `on`, `off`, or `auto`, which
                leaves it to `calibrate`.
            state_format: The printed form of the states that are encoded: `lean` (Lean's own
                printer), `pantograph`, `burnqed`, or `as-given`, which takes any text. It is part
                of the identity. Texts in another form are refused; `convert` converts them.
            revision: Branch, tag or commit of a hub id.
            trust_remote_code: Whether code that comes with the model may run.
            code_revision: Commit of that code, where it is in another repository than the model.
            keep_head: Whether the language-model head stays in memory, so that a `TacticPolicy` can
                share the weights. Embeddings are the same.
            adapter: A PEFT adapter (LoRA and others) of the model: its folder; or its hub id, with
                `@` and a revision behind it if wanted. It is merged in float32, in memory, and is
                part of the identity. Needs the extra `ebm-encode[adapter]`.
            backend: What computes embeddings: `hf`, the model in this process; or a server, whose
                replies are compared with it: `remote` (`ebm-encode serve`), `sglang` or `vllm`. The
                model is then loaded too, on the CPU unless `device` says otherwise.
            server: URL of the server; for `sglang` also an `sglang.Engine` of this process.
            server_token: Bearer token that the server wants.
            server_exclusive: Nobody else uses the server. SGLang before 0.5.17 is refused without.
            engines: Makes the engines to choose from, best first; this package's if not given.
                They must pass the self-test too.

        Raises:
            ServerError: If a server cannot be reached, or is of another kind.
            UnsafeServerError: If a server's embeddings are not those of the model.
            IdentityMismatchError: If a `remote` server has another encoder.
            ModelError: If the model cannot be loaded or used.
            AdapterError: If the adapter cannot be merged into the model.
            LibraryError: If there is an adapter, and no peft.
            TemplateError: If there is no such template, or it has no place for the state.
            ArgumentError: If the options do not fit each other or the model.
        """
        chosen = Template.load(template)
        chosen_engine = engine_name(engine)
        require("pooling", pooling, Pooling)
        require("overlong", overlong, Overlong)
        require("dtype", dtype, Dtype)
        require("compile_layers", compile_layers, Compile)
        require("state_format", state_format, StateFormat)
        engines = engines or server_engines(
            backend, server, token=server_token, exclusive=server_exclusive
        )
        if backend != "hf" and (chosen_engine != "auto" or compile_layers == "on"):
            raise ArgumentError(
                f"`engine` and `compile_layers` go with `backend` hf, not {backend}"
            )
        model = load_model(
            model_path,
            dtype=dtype,
            # Beside a server there is no room for the model on the device.
            device="cpu" if device == "auto" and backend != "hf" else device,
            revision=revision,
            trust_remote_code=trust_remote_code,
            code_revision=code_revision,
            keep_head=keep_head,
            adapter=adapter,
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
            engine=chosen_engine,
            compile_layers=compile_layers,
            state_format=state_format,
            engines=engines,
        )

    @property
    def dim(self) -> int:
        """Length of every embedding."""
        return self.choice.dim

    @property
    def choice(self) -> EngineChoice:
        """The engine in use, and why."""
        return self.selection.choice

    @property
    def noise(self) -> NoiseFloor:
        """How far rounding moves the hidden states of this model."""
        return self.selection.noise

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
        """Calibration result and the model and device it applies to; JSON values only."""
        return self.tuning.note()

    def resume(self, settings: dict[str, Any]) -> bool:
        """Takes settings that an earlier run measured.

        Returns whether it did: not those of another model or device, nor where there is nothing to
        measure, nor damaged ones.
        """
        return self.tuning.resume(settings)

    def calibrate(self, tokens: Tokens, *, times: float = 1.0) -> bool:
        """Measures with which engine and how many tokens per pass the device is fastest.

        Embeddings are the same, beyond rounding. On a CPU, and where the user has said how many,
        there is nothing to measure. The result is kept for later processes with the same model,
        device and software: a search then starts with the engine that is fastest for its requests.

        Args:
            tokens: Sequences like those to come, some ten thousands of tokens or more.
            times: How many times as much as these is to come. From half a minute of work on, every
                exact engine is timed; from five minutes on, the model's layers are compiled too,
                if they are faster then.

        Returns:
            Whether it was measured.
        """
        if not self.tuning.wanted or not len(tokens):
            return False
        found = self.tuning.calibrate(tokens, times=times)
        layers = ", layers compiled" if self.selection.compiled else ""
        log.info("%d tokens per pass%s (%s)", found.tokens, layers, found)
        return True

    def convert(self, states: Any, *, states_in: PrintedFormat | None = None) -> list[str]:
        """The texts of some states in the encoder's format, in their order.

        Args:
            states: Texts in any ordered collection, as for `encode`.
            states_in: The form that they are in; by default what the texts show, where it makes no
                difference what they do not show.

        Raises:
            ArgumentError: If states are not text, or `states` is no such collection.
            StateFormatError: If a state is in another form than that, or holds less than the
                encoder's format prints, or the form must be said.
        """
        if states_in is not None:
            require("states_in", states_in, PrintedFormat)
        return convert_all(texts_of(states), self.state_format, states_in)

    def encode(self, states: Any) -> NDArray[np.float32]:
        """The embeddings of some states, float32 `[len(states), dim]`, in their order.

        Args:
            states: Texts in any ordered collection: a list, tuple or iterator, a numpy array, a
                column of pandas, polars or pyarrow. One text is refused: its embedding is
                `encode([state])[0]`.

        Raises:
            ArgumentError: If states are not text (`None`, NaN, half of a surrogate pair), listing
                them by index, or `states` is no such collection. Nothing is encoded then.
            BadRowsError: If an embedding fails the row checks, unbatched too, or the model fails
                on a state; lists the states.
            EncodingError: If a state is too long, has no token, or does not fit the memory.
            ModelError: If the model does not run any more, or gives no finite embedding at all, or
                a forced engine is not exact.
        """
        texts = texts_of(states)
        out = np.empty((len(texts), self.dim), dtype=np.float32)
        reports = self.encode_into(texts, out)
        require_embeddings(texts, reports, _HINTS)
        return out

    def encode_into(self, states: Any, out: NDArray[np.float32]) -> list[RowReport]:
        """Writes the embeddings of some states into the caller's array.

        Args:
            states: Texts in any ordered collection, as for `encode`. What is not text gets a report
                and affects no other state.
            out: float32 `[len(states), dim]`, C order, writeable; it stays the caller's. The row of
                a state whose status is not `ok` becomes NaN, so that it cannot be taken for an
                embedding.

        Returns:
            One report per state.

        Raises:
            ArgumentError: If `states` is no such collection, or `out` is of another shape, dtype or
                order.
            ModelError: If the model does not run any more, or gives no finite embedding at all, or
                a forced engine is not exact.
        """
        given = Texts.of(states)
        texts = given.texts
        self._require_out(len(texts), out)
        self.require_finite()
        tokens = self.prompts.tokenize(texts)
        reports = self.screen(tokens)
        for i, reason in given.wrong.items():
            reports[i] = RowReport("not_text", 0, reason=reason)
        for i, reason in not_in(texts, self.state_format).items():
            if i not in given.wrong:
                why = f"not in the format {self.state_format}: {reason}"
                reports[i] = RowReport("other_format", 0, reason=why)
        note_same(texts, tokens, reports)
        self._fill(texts, tokens, out, reports)
        return reports

    def encode_tokens_into(
        self, sequences: Sequence[NDArray[np.uint32]], out: NDArray[np.float32]
    ) -> list[RowReport]:
        """As `encode_into`, of token ids: they are used as they are, without template or cut.

        Args:
            sequences: Token ids, uint32 `[length]` each.
            out: float32 `[len(sequences), dim]`, C order, writeable.

        Returns:
            One report per sequence.

        Raises:
            ArgumentError: If `out` is of another shape, dtype or order.
            ModelError: As of `encode_into`.
        """
        self._require_out(len(sequences), out)
        self.require_finite()
        tokens = Tokens.of([np.ascontiguousarray(own, dtype=np.uint32) for own in sequences])
        reports = self.screen(tokens)
        # The row checks know states by their texts: equal sequences are one.
        self._fill([own.tobytes().hex() for own in sequences], tokens, out, reports)
        return reports

    def _fill(
        self,
        texts: Sequence[str],
        tokens: Tokens,
        out: NDArray[np.float32],
        reports: list[RowReport],
    ) -> None:
        """Runs what was found usable, checks it, and completes the reports."""
        usable = [i for i, report in enumerate(reports) if report.status == "ok"]
        selected = tokens.select(usable)
        for done in self.runner.run(selected, OutputSlots(out, usable)):
            for index, error in done.failed.items():
                reports[usable[index]] = without_embedding(selected, index, error)
        self._row_checks.apply(texts, tokens, out, reports)
        for i, report in enumerate(reports):
            if report.status == "ok":
                reports[i] = replace(report, token_digest=digest_tokens(self.classes.of(tokens[i])))
            else:
                out[i] = np.nan

    def screen(self, tokens: Tokens) -> list[RowReport]:
        """What can be said of each sequence before it is run."""
        return self._screening.screen(tokens)

    def run_unbatched(self, sequence: NDArray[np.uint32]) -> NDArray[np.float32]:
        """The embedding of one sequence at batch size 1, without padding, float32 `[dim]`.

        Raises:
            EncodingError: If it does not fit the memory.
            TextFailedError: If the model fails on it.
            ModelError: If the model does not run any more.
        """
        return self.selection.unbatched.embedding(sequence)

    def is_embedding_of(
        self,
        sequence: NDArray[np.uint32],
        embedding: NDArray[np.float32],
        reference: NDArray[np.float32],
    ) -> bool:
        """Whether an embedding is that of a sequence, as far as rounding allows.

        Where it is farther from the reference than usual, rounding at random tells how far it may
        be for this sequence: with mixture-of-experts models a short one may be far.

        Args:
            sequence: Token ids.
            embedding: float32 `[dim]`.
            reference: That of the sequence at batch size 1, float32 `[dim]`.
        """
        if not (np.isfinite(embedding).all() and np.isfinite(reference).all()):
            return False
        if embeddings_agree(*compare(embedding[None], reference[None]), self.noise):
            return True
        off = np.linalg.norm(embedding.astype(np.float64) - reference) / np.linalg.norm(reference)
        return bool(off <= 2 * self.selection.unbatched.spread(sequence))

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
