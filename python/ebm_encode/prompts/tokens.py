"""States to token ids: the template, the tokenizer, special tokens once, prompts cut where asked.

Knows nothing of the model's weights.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebm_encode.errors import ModelError
from ebm_encode.prompts.control_tokens import NOT_PLAIN, ControlTokens
from ebm_encode.prompts.cutting import Cut, cut_end, without_hypotheses
from ebm_encode.prompts.templates import PLACE, Template

CHUNK_STATES = 4096
"""States that are tokenized and planned at a time; lists of Python numbers take much memory."""

SPECIAL_TOKENS_RULE = "template-once"
"""The prompt gets the special tokens that the tokenizer adds to any text, at its start and end;
those that the template spells there are not added a second time. What a state spells is text."""

FORMER_SPECIAL_TOKENS_RULE = "tokenizer-default-once"
"""The rule of earlier versions: what a state spelled was taken for special tokens as well, and the
special tokens at the end of a cut prompt were lost."""


def in_chunks(states: Iterable[str]) -> Iterator[list[str]]:
    """States in their order, at most `CHUNK_STATES` at a time."""
    rest = iter(states)
    while chunk := list(islice(rest, CHUNK_STATES)):
        yield chunk


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

    def within(self, longest: int | None) -> "Tokens":
        """The sequences, cut on the right where they are longer."""
        return Tokens.of([self[i][:longest] for i in range(len(self))], self.full_lengths)

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
        tokenizer: A transformers tokenizer. It is copied: another user may have it cut or pad,
            which is a setting of the object.
        template: The text around each state.
        max_length: Longest sequence. `None`: no limit.
        cut: What is done about longer ones. Where nothing is done or can be done they stay as they
            are, longer than `max_length`.

    Attributes:
        template: As given.
        max_length: As given.
        cut: As given.
        tokenizer: The copy of the tokenizer, whose settings nobody else may change.
    """

    def __init__(
        self, tokenizer: Any, template: Template, max_length: int | None, *, cut: Cut = "end"
    ) -> None:
        self.template = template
        self.max_length = max_length
        self.cut = cut
        self.tokenizer = _own_copy(tokenizer)
        self._control = ControlTokens(self.tokenizer, template)
        self._before, self._after = _added_special_tokens(self.tokenizer)
        self._first, self._last = self._ids([template.text.split(PLACE)[i] for i in (0, -1)])
        # Decided once, by the template: what a state begins or ends with is its own text.
        self._spells_before = _begins_with(self._first, self._before)
        self._spells_after = _begins_with(self._last[::-1], self._after[::-1])

    @property
    def side(self) -> str:
        """Which end of a prompt is cut, if one is: `right` or `left`, as the tokenizer has it."""
        return "left" if getattr(self.tokenizer, "truncation_side", "right") == "left" else "right"

    @property
    def added_at_end(self) -> int:
        """How many special tokens the tokenizer adds after a prompt; text cannot go on there."""
        return 0 if self._spells_after else len(self._after)

    @property
    def keeps_end(self) -> bool:
        """Whether special tokens stay at the end that is cut."""
        return bool(self._before if self.side == "left" else self._after)

    def fixed_tokens(self) -> tuple[int, int]:
        """Tokens of every prompt, whatever its state: those before the state, and those after it.

        Special tokens are included. Of the template, parts that may be cut off are not.
        """
        before = len(self._first) + (0 if self._spells_before else len(self._before))
        after = len(self._last) + (0 if self._spells_after else len(self._after))
        if self.cut == "end" and self.side == "right":
            after = len(self._after)
        elif self.cut == "end":
            before = len(self._before)
        return before, after

    def tokenize(self, states: Sequence[str]) -> Tokens:
        """The token sequences of some states."""
        full: list[int] = []
        sequences: list[NDArray[np.uint32]] = []
        for some in in_chunks(states):
            for state, content in zip(some, self._contents(some), strict=True):
                full.append(len(content) + len(self._before) + len(self._after))
                sequences.append(np.asarray(self._cut(state, content), dtype=np.uint32))
        return Tokens.of(sequences, np.asarray(full, dtype=np.int64))

    def as_before(self, states: Sequence[str], *, longest: int | None) -> Tokens:
        """The token sequences by the rule of earlier versions (`FORMER_SPECIAL_TOKENS_RULE`).

        Args:
            states: The states.
            longest: Where prompts were cut; `None` where none was.
        """
        sequences = []
        for some in in_chunks(states):
            for ids in self._ids([self.template.prompt(state) for state in some]):
                before = [] if _begins_with(ids, self._before) else self._before
                after = [] if _begins_with(ids[::-1], self._after[::-1]) else self._after
                sequences.append(np.asarray([*before, *ids, *after][:longest], dtype=np.uint32))
        return Tokens.of(sequences)

    def unknown_markers(self) -> list[str]:
        """Markers that the template spells and that this tokenizer takes for plain text."""
        return [marker for marker in self.template.markers() if not self._is_special(marker)]

    def _contents(self, states: Sequence[str]) -> list[list[int]]:
        """The tokens of prompts, without the special tokens at their start and end."""
        prompts = self._ids([self.template.prompt(state) for state in states])
        return [
            self._inside(
                self._control.plain(state) if self._control.spelled_by(state, ids) else ids
            )
            for state, ids in zip(states, prompts, strict=True)
        ]

    def _inside(self, ids: list[int]) -> list[int]:
        if ids == [NOT_PLAIN]:
            return ids
        start = len(self._before) if self._spells_before else 0
        stop = len(ids) - (len(self._after) if self._spells_after else 0)
        return ids[start:stop]

    def _cut(self, state: str, content: list[int]) -> list[int]:
        longest = self.max_length
        if longest is not None and self.cut == "hypotheses":
            room = longest - len(self._before) - len(self._after)
            if len(content) > room:
                shorter = without_hypotheses(state, lambda s: len(self._contents([s])[0]) <= room)
                content = content if shorter is None else self._contents([shorter])[0]
        return cut_end(
            self._before,
            content,
            self._after,
            longest=longest if self.cut == "end" else None,
            side=self.side,
        )

    def _ids(self, prompts: list[str]) -> list[list[int]]:
        if not prompts:
            return []
        encoded = self.tokenizer(
            prompts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _is_special(self, marker: str) -> bool:
        ids = self._ids([marker])[0]
        return len(ids) == 1 and ids[0] in self.tokenizer.added_tokens_decoder


def _own_copy(tokenizer: Any) -> Any:
    try:
        return copy.deepcopy(tokenizer)
    except Exception as error:
        if getattr(tokenizer, "backend_tokenizer", None) is not None:
            raise ModelError(f"the tokenizer cannot be copied: {error}") from error
        # Code that came with a model may hold what cannot be copied. Tokenizers in Python get the
        # settings for cutting with each call, and share none.
        return tokenizer


def _begins_with(ids: list[int], special: list[int]) -> bool:
    return bool(special) and ids[: len(special)] == special


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
