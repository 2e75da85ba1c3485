"""Prompts to generated sequences, by transformers' `generate`, exact for the model.

Prompts of a batch are padded on the left, and a prompt runs once for all its samples, if a
self-test finds the log-probabilities of that to be those of plain forward passes at batch size 1.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from ebm_encode.errors import ModelError, one_line
from ebm_encode.loading.model import Model
from ebm_encode.policy.decoding import AbandonedError, Beams, Generated, Sampling
from ebm_encode.policy.ends import Ends
from ebm_encode.torch_settings import inference

log = logging.getLogger(__name__)

_BOUNDS = {"float32": 1e-3}
_BOUND_16_BIT = 0.25
"""A token's log-probability may differ from the reference by this, by dtype, in the median: wrong
positions or a wrong mask change all of them, and rounding may send few tokens to other experts."""
_TURNS = "_ebm_encode_takes_turns"
_TEST_TOKENS = 4
_TEST_SAMPLES = 2


@dataclass(frozen=True)
class Sequences:
    """What is to be generated for some prompts.

    Attributes:
        ends: Where sequences end.
        samples: How many of each prompt; the width of a beam search.
        tokens: Most new tokens of a sequence.
        temperature: 0 takes the most probable token.
        top_p: Draws from the most probable tokens that make up this share.
        beam: Beam search instead of samples.
        abandoned: Whether nobody waits any more.
    """

    ends: Ends
    samples: int
    tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    beam: bool = False
    abandoned: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Way:
    """How prompts are batched.

    Attributes:
        padded: Prompts of different lengths may share a batch.
        once: A prompt runs once for all its samples.
    """

    padded: bool
    once: bool

    def __str__(self) -> str:
        """In words."""
        padded = "padded on the left" if self.padded else "by equal length"
        return f"{padded}, each prompt once" if self.once else padded


_WAYS = (Way(padded=True, once=True), Way(padded=True, once=False), Way(padded=False, once=False))


class Generator:
    """Generates with a model that has its head.

    Args:
        model: The model, loaded with its head.
        lock: Held during each forward pass, as an encoder that shares the weights switches the
            model's attention for its own.
        probes: Prompts of different lengths for the self-test.

    Attributes:
        way: How prompts are batched.

    Raises:
        ModelError: If what is generated does not have the log-probabilities of forward passes.
    """

    def __init__(
        self, model: Model, lock: threading.Lock, probes: Sequence[NDArray[np.uint32]]
    ) -> None:
        self._model, self._whole = model, model.whole
        _take_turns(model, lock)
        self.way = self._choose(probes)

    def batches(self, lengths: Sequence[int], most: int) -> list[list[int]]:
        """Prompts of like length together, at most `most` in a batch, by index."""
        order = sorted(range(len(lengths)), key=lambda i: lengths[i])
        batches: list[list[int]] = []
        for i in order:
            last = batches[-1] if batches else []
            fits = self.way.padded or (bool(last) and lengths[last[0]] == lengths[i])
            if last and len(last) < most and fits:
                last.append(i)
            else:
                batches.append([i])
        return batches

    def generate(
        self,
        prompts: Sequence[NDArray[np.uint32]],
        uniforms: Sequence[NDArray[np.float64]],
        wanted: Sequences,
    ) -> list[list[Generated]]:
        """The sequences of each prompt, `wanted.samples` of them.

        Args:
            prompts: Token ids, at least one each; of one length unless `way` pads.
            uniforms: For each prompt float64 `[samples, tokens]`, in [0, 1).
            wanted: What to generate.

        Raises:
            AbandonedError: If nobody waits any more.
        """
        with inference():
            return self._generate(prompts, uniforms, wanted, self.way)

    def _generate(
        self,
        prompts: Sequence[NDArray[np.uint32]],
        uniforms: Sequence[NDArray[np.float64]],
        wanted: Sequences,
        way: Way,
    ) -> list[list[Generated]]:
        ids, mask = _left_padded(prompts, self._model.device)
        kept = self._prompts_once(ids, mask, wanted.samples) if way.once else {}
        run = self._beams if wanted.beam and wanted.samples > 1 else self._samples
        found = run(ids, mask, kept, np.concatenate(uniforms), wanted)
        each = wanted.samples
        return [found[i * each : (i + 1) * each] for i in range(len(prompts))]

    def _samples(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        kept: dict[str, Any],
        uniforms: NDArray[np.float64],
        wanted: Sequences,
    ) -> list[Generated]:
        sampling = Sampling(
            wanted.ends,
            uniforms,
            temperature=0 if wanted.beam else wanted.temperature,
            top_p=wanted.top_p,
            abandoned=wanted.abandoned,
        )
        self._call(
            ids.repeat_interleave(wanted.samples, dim=0),
            mask.repeat_interleave(wanted.samples, dim=0),
            LogitsProcessorList([sampling.choose]),
            StoppingCriteriaList([sampling.finished]),
            max_new_tokens=wanted.tokens,
            **kept,
        )
        return sampling.sequences

    def _beams(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        kept: dict[str, Any],
        _: NDArray[np.float64],
        wanted: Sequences,
    ) -> list[Generated]:
        beams = Beams(wanted.ends, ids.shape[1], wanted.samples, abandoned=wanted.abandoned)
        output = self._call(
            ids,
            mask,
            LogitsProcessorList([beams.note]),
            StoppingCriteriaList([beams.finished]),
            max_new_tokens=wanted.tokens,
            num_beams=wanted.samples,
            num_return_sequences=wanted.samples,
            length_penalty=0.0,  # hypotheses are compared by the sum of their log-probabilities
            early_stopping=False,
            eos_token_id=sorted(self._model.eos) or None,
            **kept,
        )
        return beams.sequences(output)

    def _prompts_once(self, ids: torch.Tensor, mask: torch.Tensor, samples: int) -> dict[str, Any]:
        """The keys and values of prompts without their last token, repeated for their samples."""
        # Of a prompt of one token nothing but padding would be left.
        if samples == 1 or bool((mask.sum(dim=1) == 1).any()):
            return {}
        output = self._call(
            ids[:, :-1],
            mask[:, :-1],
            LogitsProcessorList(),
            StoppingCriteriaList(),
            max_new_tokens=1,
            return_dict_in_generate=True,
        )
        cache = output.past_key_values
        cache.batch_repeat_interleave(samples)
        return {"past_key_values": cache}

    def _call(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        past_key_values: Any = None,
        **options: Any,
    ) -> Any:
        cache = {} if past_key_values is None else {"past_key_values": past_key_values}
        config = GenerationConfig(do_sample=False, use_cache=True, pad_token_id=0, **options)
        return self._whole.generate(
            ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=processors,
            stopping_criteria=criteria,
            **cache,
        )

    def _choose(self, probes: Sequence[NDArray[np.uint32]]) -> Way:
        found = []
        for way in _WAYS:
            try:
                error = self._error(probes, way)
            except AbandonedError:
                raise
            except Exception as failure:  # noqa: BLE001  (a model's code may raise anything)
                found.append(f"{way}: {one_line(failure)}")
                continue
            if error <= _BOUNDS.get(self._model.dtype, _BOUND_16_BIT):
                if found:
                    log.info("%s: prompts %s (%s)", self._model.name, way, "; ".join(found))
                return way
            found.append(f"{way}: log-probabilities off by {error:.1e}")
        raise ModelError(
            f"{self._model.name}: what it generates does not have the log-probabilities of its own"
            f" forward passes ({'; '.join(found)})"
        )

    def _error(self, probes: Sequence[NDArray[np.uint32]], way: Way) -> float:
        """Median difference of a token's log-probability from the unbatched reference."""
        shape = (_TEST_SAMPLES, _TEST_TOKENS)
        uniforms = [np.random.default_rng(i).random(shape) for i in range(len(probes))]
        wanted = Sequences(_Never(), _TEST_SAMPLES, _TEST_TOKENS)
        groups = [[i] for i in range(len(probes))]
        groups = [[i for group in groups for i in group]] if way.padded else groups
        errors: list[float] = []
        with inference():
            for group in groups:
                own = [probes[i] for i in group]
                found = self._generate(own, [uniforms[i] for i in group], wanted, way)
                for prompt, sequences in zip(own, found, strict=True):
                    for sequence in sequences:
                        errors += self._differences(prompt, sequence)
        return float(np.median(errors))

    def _differences(self, prompt: NDArray[np.uint32], sequence: Generated) -> list[float]:
        ids = torch.tensor([[*prompt.tolist(), *sequence.ids]], device=self._model.device)
        logits = self._whole(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        own = torch.log_softmax(logits, dim=-1)
        new = ids[0, len(prompt) :, None]
        truth = own.gather(1, new)[:, 0].tolist()
        return [abs(a - b) for a, b in zip(sequence.log_probs, truth, strict=True)]


class _Never(Ends):
    """Sequences that never end."""

    def __init__(self) -> None:
        super().__init__(None, frozenset(), ())


def _take_turns(model: Model, lock: threading.Lock) -> None:
    """Has every forward pass of the model with its head run under a lock."""
    whole = model.whole
    if hasattr(whole, _TURNS):  # an earlier policy with the same weights did
        return

    def enter(*_: Any) -> None:
        lock.acquire()
        model.rotary.reset()

    def leave(*_: Any) -> None:
        lock.release()

    whole.register_forward_pre_hook(enter)
    whole.register_forward_hook(leave, always_call=True)
    setattr(whole, _TURNS, True)


def _left_padded(
    prompts: Sequence[NDArray[np.uint32]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, int64 (B, T): a sequence goes on right behind its prompt."""
    longest = max(map(len, prompts))
    ids = np.zeros((len(prompts), longest), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
