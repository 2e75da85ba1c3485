"""The policy: states in, tactics with their log-probabilities out."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from traceback import clear_frames
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebm_encode.encoder import Encoder
from ebm_encode.engines.memory import free_memory, is_out_of_memory
from ebm_encode.engines.selftest import SELF_TEST_PROMPTS
from ebm_encode.errors import ArgumentError, ModelError
from ebm_encode.loading.model import Model, load_model, longest_prompt
from ebm_encode.options import Decoding, Dtype, require
from ebm_encode.policy.decoding import Generated, distinct, uniforms_of
from ebm_encode.policy.ends import Ends
from ebm_encode.policy.generation import Generator, Sequences
from ebm_encode.prompts.templates import Template
from ebm_encode.prompts.tokens import Prompts, Tokens
from ebm_encode.screening import Screening
from ebm_encode.texts import Texts

log = logging.getLogger(__name__)

MAX_SEQUENCES = 256
"""Sequences that are generated at a time, unless told otherwise."""


@dataclass(frozen=True)
class Proposal:
    """The tactics of one state.

    Attributes:
        tactics: Distinct tactics, each with its log-probability, most probable first.
        unfinished: Sequences that had not ended after `max_new_tokens`; they give no tactic.
        reason: Why there are no tactics; `None` if there are some.
    """

    tactics: list[tuple[str, float]]
    unfinished: int = 0
    reason: str | None = None


class TacticPolicy:
    """Proposes tactics for states with a causal language model.

    Make one with `TacticPolicy.load`, or beside an encoder with `TacticPolicy.beside`. Several
    threads may share it; their calls run one after the other.

    Attributes:
        model: The loaded model, with its head.
        prompts: States to token sequences.
        limit: Most tokens of a prompt and its tactic together; `None`: no limit.
    """

    def __init__(
        self,
        model: Model,
        template: Template,
        *,
        max_length: int | None = None,
        max_sequences: int = MAX_SEQUENCES,
        lock: "threading.Lock | None" = None,
    ) -> None:
        if max_sequences < 1:
            raise ArgumentError(f"`max_sequences` {max_sequences}: must be at least 1")
        self.model = model
        # Beyond `stretches_after` each new token would turn the positions of all before it, whose
        # keys are kept from earlier passes.
        limits = [n for n in (model.max_positions, model.stretches_after) if n is not None]
        self.limit = longest_prompt(min(limits, default=None), max_length)
        self.prompts = Prompts(model.tokenizer, template, self.limit, cut="none")
        self._screening = Screening(model, self.prompts)
        self._max_sequences = max_sequences
        self._calls = threading.Lock()
        probes = self._tokenize(SELF_TEST_PROMPTS)
        self._screening.require_known(probes)
        short = [i for i in range(len(probes)) if self._room(probes, i, _PROBE_TOKENS) is None]
        if not short:
            raise ModelError(
                f"{model.name}: no self-test prompt fits with a tactic into {self.limit} tokens"
                " (`max_length`)"
            )
        self._generator = Generator(model, lock or threading.Lock(), [probes[i] for i in short])

    @classmethod
    def load(
        cls,
        model_path: str,
        *,
        template: str = "raw",
        dtype: Dtype = "auto",
        device: str = "auto",
        max_length: int | None = None,
        max_sequences: int = MAX_SEQUENCES,
        revision: str | None = None,
        trust_remote_code: bool = False,
        code_revision: str | None = None,
        adapter: str | None = None,
    ) -> "TacticPolicy":
        """A policy with a model from a folder or the Hugging Face Hub.

        Args:
            model_path: A model's folder, or its hub id.
            template: `raw`, `deepseek-prover-v2`, or a file with `{state}` in it. The model goes on
                where it ends.
            dtype: Compute dtype; `auto` is the one that the model's `config.json` names, or else
                the one that its weights are stored in.
            device: Any torch device; `auto` is the first accelerator, else the CPU.
            max_length: Most tokens of a prompt and its tactic; by default the model's own limit.
            max_sequences: Sequences that are generated at a time. Fewer take less memory.
            revision: Branch, tag or commit of a hub id.
            trust_remote_code: Whether code that comes with the model may run.
            code_revision: Commit of that code, where it is in another repository than the model.
            adapter: A PEFT adapter of the model, as for `Encoder.load`.

        Raises:
            AdapterError: If the adapter cannot be merged into the model.
            LibraryError: If there is an adapter, and no peft.
            ModelError: If the model cannot be loaded, has no head, or does not generate what its
                forward passes say.
            TemplateError: If there is no such template, or it has no place for the state.
            ArgumentError: If the options do not fit each other or the model.
        """
        chosen = Template.load(template)
        require("dtype", dtype, Dtype)
        model = load_model(
            model_path,
            dtype=dtype,
            device=device,
            revision=revision,
            trust_remote_code=trust_remote_code,
            code_revision=code_revision,
            keep_head=True,
            adapter=adapter,
        )
        return cls(model, chosen, max_length=max_length, max_sequences=max_sequences)

    @classmethod
    def beside(
        cls,
        encoder: Encoder,
        *,
        template: str = "raw",
        max_length: int | None = None,
        max_sequences: int = MAX_SEQUENCES,
    ) -> "TacticPolicy":
        """A policy that shares an encoder's weights. Both may be used at the same time.

        The encoder's passes and the policy's passes, one for each token, take turns.

        Args:
            encoder: One that was loaded with `keep_head=True`.
            template: As for `load`; that of the encoder is not taken.
            max_length: As for `load`.
            max_sequences: As for `load`.

        Raises:
            ArgumentError: If the encoder has no head.
            ModelError: As for `load`.
            TemplateError: As for `load`.
        """
        if encoder.model.whole is None:
            raise ArgumentError(
                f"`encoder`: {encoder.model.name} was loaded without its language-model head\n"
                "hint: load the encoder with `keep_head=True`"
            )
        return cls(
            encoder.model,
            Template.load(template),
            max_length=max_length,
            max_sequences=max_sequences,
            lock=encoder.selection.lock,
        )

    def propose(
        self,
        states: Any,
        *,
        n: int = 8,
        mode: Decoding = "sample",
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 128,
        stop: Sequence[str] = ("\n",),
        seed: int = 0,
        abandoned: Callable[[], bool] = lambda: False,
    ) -> list[Proposal]:
        """Tactics for some states, in their order.

        A tactic is the text up to the first stop string or the end of the sequence, trimmed. Its
        log-probability is the sum over its tokens and the one that ends it, in the model's own
        distribution (without `temperature` and `top_p`). Samples depend on the state's text and
        the seed only: other states of the call change them by rounding at most.

        Args:
            states: Texts in any ordered collection.
            n: Sequences for each state; equal tactics are merged.
            mode: `sample`: independent samples. `beam`: the most probable ones that a beam search
                of width `n` finds.
            temperature: Of the samples; 0 takes the most probable token.
            top_p: Draws from the most probable tokens that make up this share.
            max_new_tokens: Most tokens of a tactic. One that has not ended by then is dropped.
            stop: Strings that end a tactic.
            seed: Any integer.
            abandoned: Asked before each token; once it says yes, the call ends with an error.

        Returns:
            One proposal per state, with the reason where there are no tactics: the state is no
            text, its prompt is too long for the model, no sequence ended, all were empty, or it
            does not fit the memory. Nothing is cut.

        Raises:
            ArgumentError: If an option has no meaning.
            ModelError: If the model does not run, or gives no finite log-probability.
            AbandonedError: If `abandoned` said yes.
        """
        _check(
            n=n,
            mode=mode,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            stop=stop,
        )
        given = Texts.of(states)
        tokens = self._tokenize(given.texts)
        answers = self._refused(given, tokens, max_new_tokens)
        places: dict[str, list[int]] = {}
        for i, text in enumerate(given.texts):
            if answers[i] is None:
                places.setdefault(text, []).append(i)
        firsts = [same[0] for same in places.values()]
        wanted = Sequences(
            Ends(self.prompts.tokenizer, self.model.eos, tuple(stop)),
            n,
            max_new_tokens,
            temperature,
            top_p,
            beam=mode == "beam",
            abandoned=abandoned,
        )
        lengths = [len(tokens[i]) for i in firsts]
        most = max(1, self._max_sequences // n)
        with self._calls:
            for batch in self._generator.batches(lengths, most):
                own = [firsts[k] for k in batch]
                work = [
                    (tokens[i], uniforms_of(given.texts[i], seed, (n, max_new_tokens))) for i in own
                ]
                for i, proposal in zip(own, self._proposals(work, wanted), strict=True):
                    for same in places[given.texts[i]]:
                        answers[same] = proposal
        return [answer for answer in answers if answer is not None]

    def _proposals(self, work: list["_Work"], wanted: Sequences) -> list[Proposal]:
        """Proposals of a batch; in halves where it does not fit the memory."""
        prompts, uniforms = [ids for ids, _ in work], [numbers for _, numbers in work]
        failure = None
        try:
            found = self._generator.generate(prompts, uniforms, wanted)
            return [_proposal(sequences, wanted) for sequences in found]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = error
        clear_frames(failure.__traceback__)  # which hold the tensors of the pass
        free_memory()
        if len(work) == 1:
            reason = f"out of memory with {wanted.samples} sequences of this state"
            return [Proposal([], reason=reason)]
        half = len(work) // 2
        log.warning("out of memory with %d states; in halves now", len(work))
        return self._proposals(work[:half], wanted) + self._proposals(work[half:], wanted)

    def _refused(self, given: Texts, tokens: Tokens, new: int) -> list[Proposal | None]:
        """Proposals of the states that cannot be run."""
        reasons = [
            report.reason if report.status != "ok" else self._room(tokens, i, new)
            for i, report in enumerate(self._screening.screen(tokens))
        ]
        for i, reason in given.wrong.items():
            reasons[i] = reason
        return [None if reason is None else Proposal([], reason=reason) for reason in reasons]

    def _room(self, tokens: Tokens, i: int, new: int) -> str | None:
        """Why a prompt leaves no room for a tactic."""
        length = len(tokens[i])
        if self.limit is None or length + new <= self.limit:
            return None
        return (
            f"its prompt of {length} tokens and a tactic of `max_new_tokens` {new} are more than"
            f" the {self.limit} tokens that the model reads"
        )

    def _tokenize(self, states: Sequence[str]) -> Tokens:
        """Prompts without special tokens that would end them."""
        tokens = self.prompts.tokenize(states)
        ending = self.prompts.added_at_end
        if not ending:
            return tokens
        return Tokens.of([tokens[i][: len(tokens[i]) - ending] for i in range(len(tokens))])


_Work = tuple[NDArray[np.uint32], NDArray[np.float64]]

_PROBE_TOKENS = 4


def _proposal(sequences: list[Generated], wanted: Sequences) -> Proposal:
    tactics, unfinished = distinct(wanted.ends, sequences)
    if tactics:
        return Proposal(tactics, unfinished)
    reason = "all its tactics are empty"
    if unfinished:
        reason = f"{unfinished} of {len(sequences)} sequences had not ended after"
        reason += f" `max_new_tokens` {wanted.tokens}, and the others are empty"
    return Proposal([], unfinished, reason)


def _check(
    *,
    n: int,
    mode: str,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    stop: Sequence[str],
) -> None:
    require("mode", mode, Decoding)
    for name, number in (("n", n), ("max_new_tokens", max_new_tokens)):
        if number < 1:
            raise ArgumentError(f"`{name}` {number}: must be at least 1")
    if not (np.isfinite(temperature) and temperature >= 0):
        raise ArgumentError(f"`temperature` {temperature}: must be a number of at least 0")
    if not 0 < top_p <= 1:
        raise ArgumentError(f"`top_p` {top_p}: must be above 0 and at most 1")
    if isinstance(stop, str) or not all(isinstance(text, str) and text for text in stop):
        raise ArgumentError(f"`stop` {stop!r}: expected a list of texts that are not empty")
