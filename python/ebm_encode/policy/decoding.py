"""What chooses tokens while transformers generates, and notes their log-probabilities.

Random numbers come from the caller, one for each token of a sequence, so that what a sequence
becomes does not depend on the others of its batch. A log-probability is that of the model's own
distribution: without temperature, and without the cut of top-p.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from ebm_encode.errors import ModelError
from ebm_encode.policy.ends import Ends


class AbandonedError(Exception):
    """Nobody waits for the tactics any more. Never leaves this package's policy."""


@dataclass
class Generated:
    """A sequence of new tokens.

    Attributes:
        ids: The tokens, the one that ends it included.
        log_probs: The log-probability of each.
        done: Whether it has ended.
    """

    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    done: bool = False

    @property
    def log_prob(self) -> float:
        """Sum over all tokens; at most 0."""
        return min(sum(self.log_probs), 0.0)


class Sampling:
    """Draws each sequence's next token with a number of its own.

    `choose` is a logits processor of transformers, and `finished` a stopping criterion.

    Args:
        ends: Where sequences end.
        uniforms: float64 `[sequences, tokens]`, in [0, 1).
        temperature: 0 takes the most probable token.
        top_p: Draws from the most probable tokens that make up this share.
        abandoned: Whether nobody waits any more; asked before each token.
    """

    def __init__(
        self,
        ends: Ends,
        uniforms: NDArray[np.float64],
        *,
        temperature: float,
        top_p: float,
        abandoned: Callable[[], bool],
    ) -> None:
        self.sequences = [Generated() for _ in uniforms]
        self._ends, self._uniforms, self._abandoned = ends, uniforms, abandoned
        self._temperature = temperature
        self._warpers: list[Any] = []
        if temperature > 0:
            self._warpers.append(TemperatureLogitsWarper(float(temperature)))
        if top_p < 1:
            self._warpers.append(TopPLogitsWarper(float(top_p)))
        self._step = 0
        self._chosen: list[tuple[int, float]] = []

    def choose(self, _: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Leaves of each row of logits, float32 (B, V), only the token that was drawn."""
        _require_wanted(self._abandoned)
        own = torch.log_softmax(logits.float(), dim=-1)
        drawn = self._draw(logits)[:, None]
        log_probs = own.gather(1, drawn)[:, 0].tolist()
        self._chosen = list(zip(drawn[:, 0].tolist(), log_probs, strict=True))
        return torch.full_like(logits, -torch.inf).scatter_(1, drawn, 0.0)

    def finished(self, input_ids: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
        """Notes what was chosen; bool (B,)."""
        for sequence, (token, log_prob) in zip(self.sequences, self._chosen, strict=True):
            if not sequence.done:
                _require_finite(log_prob)
                sequence.ids.append(token)
                sequence.log_probs.append(log_prob)
                sequence.done = self._ends.reached(sequence.ids)
        self._step += 1
        return torch.tensor([s.done for s in self.sequences], device=input_ids.device)

    def _draw(self, logits: torch.Tensor) -> torch.Tensor:
        if self._temperature == 0:
            return logits.argmax(dim=-1)
        for warper in self._warpers:
            logits = warper(None, logits)
        # float64, so that rounding moves the borders between tokens as little as may be.
        wide = logits if logits.device.type == "mps" else logits.double()
        ends = torch.softmax(wide, dim=-1).cumsum(dim=-1)
        step = min(self._step, self._uniforms.shape[1] - 1)
        places = torch.from_numpy(self._uniforms[:, step].copy()).to(ends)[:, None] * ends[:, -1:]
        drawn = torch.searchsorted(ends, places, right=True)[:, 0]
        return drawn.clamp_(max=logits.shape[-1] - 1)


class Beams:
    """Notes the log-probabilities of a beam search.

    `note` is a logits processor of transformers, and `finished` a stopping criterion.

    Args:
        ends: Where sequences end.
        prompt: Length of all prompts, padding included.
        beams: Beams of each prompt.
        abandoned: Whether nobody waits any more; asked before each token.
    """

    def __init__(
        self, ends: Ends, prompt: int, beams: int, *, abandoned: Callable[[], bool]
    ) -> None:
        self._ends, self._prompt, self._beams = ends, prompt, beams
        self._abandoned = abandoned
        self._rows: dict[tuple[int, tuple[int, ...]], int] = {}
        self._table = torch.empty(0)
        self._known: dict[tuple[int, tuple[int, ...]], tuple[float, ...]] = {}
        self._done: set[tuple[int, tuple[int, ...]]] = set()

    def note(self, input_ids: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
        """Keeps the log-probabilities, float32 (B * beams, V), and returns them."""
        _require_wanted(self._abandoned)
        running = input_ids[:, self._prompt :].tolist()
        self._rows = {(row // self._beams, tuple(ids)): row for row, ids in enumerate(running)}
        self._table = log_probs.clone()  # transformers adds to its own
        return log_probs

    def finished(self, candidates: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
        """Which candidates, the same number for each prompt, have ended; bool (candidates,)."""
        prompts = len(self._table) // self._beams
        each = len(candidates) // prompts
        keys = [
            (row // each, tuple(ids))
            for row, ids in enumerate(candidates[:, self._prompt :].tolist())
        ]
        parents = [(prompt, ids[:-1]) for prompt, ids in keys]
        rows = torch.tensor([self._rows[parent] for parent in parents], device=candidates.device)
        own = self._table[rows, candidates[:, -1]].tolist()
        done = []
        for key, parent, log_prob in zip(keys, parents, own, strict=True):
            self._known[key] = (*self._known.get(parent, ()), log_prob)
            done.append(self._ends.reached(key[1]))
            if done[-1]:
                self._done.add(key)
        return torch.tensor(done, device=candidates.device)

    def sequences(self, output: torch.Tensor) -> list[Generated]:
        """What transformers returns, (B * beams, T), without the padding behind each sequence."""
        found = []
        for row, ids in enumerate(output[:, self._prompt :].tolist()):
            prefixes = ((row // self._beams, tuple(ids[:n])) for n in range(1, len(ids) + 1))
            key = next((prefix for prefix in prefixes if prefix in self._done), None)
            if key is None:
                found.append(Generated(ids))
                continue
            for log_prob in self._known[key]:
                _require_finite(log_prob)
            found.append(Generated([*key[1]], [*self._known[key]], done=True))
        return found


def uniforms_of(text: str, seed: int, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Random numbers in [0, 1) that depend on the seed and the text alone.

    Args:
        text: A state.
        seed: Any integer.
        shape: Samples and tokens.
    """
    digest = blake2b(f"{seed}\n{text}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest)).random(shape)


def distinct(ends: Ends, sequences: Sequence[Generated]) -> tuple[list[tuple[str, float]], int]:
    """Tactics with their log-probabilities, most probable first, and how many did not end.

    Of equal tactics the most probable sequence counts; empty ones are dropped. Ties stay in order.
    """
    best: dict[str, float] = {}
    for sequence in sequences:
        tactic = ends.tactic(sequence.ids) if sequence.done else ""
        if tactic:
            best[tactic] = max(best.get(tactic, -np.inf), sequence.log_prob)
    unfinished = sum(not sequence.done for sequence in sequences)
    return sorted(best.items(), key=lambda item: -item[1]), unfinished


def _require_wanted(abandoned: Callable[[], bool]) -> None:
    if abandoned():
        raise AbandonedError


def _require_finite(log_prob: float) -> None:
    if not np.isfinite(log_prob):
        raise ModelError(
            "the model gives no finite log-probability of a token that it generated\n"
            'hint: its weights may be damaged, or need `dtype="float32"`'
        )
