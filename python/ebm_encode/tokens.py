"""States to token ids: the template, the tokenizer, special tokens once, the cut at the end.

Knows nothing of the model's weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebm_encode.errors import ModelError
from ebm_encode.templates import Template

CHUNK_STATES = 4096
"""States that are tokenized and planned at a time; lists of Python numbers take much memory."""

SPECIAL_TOKENS_RULE = "tokenizer-default-once"
"""The prompt gets the special tokens that the tokenizer adds to any text, at its start and end;
those that the prompt spells itself are not added a second time."""


@dataclass(frozen=True)
class Tokens:
    """Token sequences, end to end.

    Attributes:
        ids: uint32 `[total]`, all sequences.
        offsets: int64 `[n + 1]`; sequence `i` is `ids[offsets[i]:offsets[i + 1]]`.
        full_lengths: int64 `[n]`, lengths before any cut.
    """

    ids: NDArray[np.uint32]
    offsets: NDArray[np.int64]
    full_lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.full_lengths)

    def __getitem__(self, i: int) -> NDArray[np.uint32]:
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Lengths as they are now, int64 `[n]`.

        Computed once: callers ask for one length at a time, and `n` times `n` is no time to wait.
        """
        return np.diff(self.offsets)

    def select(self, indices: Sequence[int]) -> "Tokens":
        """Some of the sequences, in the order given."""
        return Tokens.of([self[i] for i in indices], self.full_lengths[list(indices)])

    @staticmethod
    def joined(first: "Tokens", second: "Tokens") -> "Tokens":
        """The sequences of one, and then those of the other."""
        return Tokens(
            np.concatenate([first.ids, second.ids]),
            np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
            np.concatenate([first.full_lengths, second.full_lengths]),
        )

    @staticmethod
    def of(
        sequences: Sequence[NDArray[np.uint32]], full_lengths: NDArray[np.int64] | None = None
    ) -> "Tokens":
        """Puts sequences end to end."""
        lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        ids = np.concatenate([np.zeros(0, np.uint32), *sequences])
        return Tokens(ids, offsets, lengths if full_lengths is None else full_lengths)


class Prompts:
    """Turns states into token sequences.

    Args:
        tokenizer: A transformers tokenizer.
        template: The text around each state.
        max_length: Longest sequence; longer ones lose their end. `None`: no limit.
    """

    def __init__(self, tokenizer: Any, template: Template, max_length: int | None) -> None:
        self.template = template
        self.max_length = max_length
        self._tokenizer = tokenizer
        self._before, self._after = _added_special_tokens(tokenizer)

    def tokenize(self, states: Sequence[str]) -> Tokens:
        """The token sequences of some states."""
        if not states:
            return Tokens.of([])
        return self.tokenize_texts([self.template.prompt(state) for state in states])

    def tokenize_texts(self, prompts: list[str]) -> Tokens:
        """The token sequences of texts that need no template."""
        full: list[int] = []
        cut: list[NDArray[np.uint32]] = []
        for start in range(0, len(prompts), CHUNK_STATES):
            for ids in self._ids(prompts[start : start + CHUNK_STATES]):
                whole = self._with_special_tokens(ids)
                full.append(len(whole))
                cut.append(np.asarray(whole[: self.max_length], dtype=np.uint32))
        return Tokens.of(cut, np.asarray(full, dtype=np.int64))

    def unknown_markers(self) -> list[str]:
        """Markers that the template spells and that this tokenizer takes for plain text."""
        return [marker for marker in self.template.markers() if not self._is_special(marker)]

    def _ids(self, prompts: list[str]) -> list[list[int]]:
        encoded = self._tokenizer(
            prompts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _with_special_tokens(self, ids: list[int]) -> list[int]:
        before, after = self._before, self._after
        if before and ids[: len(before)] == before:
            before = []
        if after and ids[-len(after) :] == after:
            after = []
        return [*before, *ids, *after]

    def _is_special(self, marker: str) -> bool:
        ids = self._ids([marker])[0]
        return len(ids) == 1 and ids[0] in self._tokenizer.added_tokens_decoder


def _added_special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer adds before and after any text."""
    probe = "a"
    plain = list(tokenizer(probe, add_special_tokens=False)["input_ids"])
    whole = list(tokenizer(probe, add_special_tokens=True)["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if plain and whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    raise ModelError(
        f"the tokenizer turns {probe!r} into {plain} without special tokens and into {whole} with"
        " them; special tokens in the middle of a text are not supported"
    )
