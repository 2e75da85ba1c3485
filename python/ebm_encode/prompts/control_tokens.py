"""Control tokens come from the template and the tokenizer, never from a state's text.

A tokenizer takes the text `</s>` for its end token wherever it stands. In a state it is text: a
string of the program, a comment. Prompts whose state holds such text are tokenized a second time,
by a tokenizer that knows its control tokens by other names; all other prompts are left as they are.
"""

import json
import re
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ebm_encode.prompts.templates import PLACE, Template, looks_like_marker

NOT_PLAIN = np.uint32(2**32 - 1)
"""Stands for a prompt that the tokenizer cannot be kept from reading control tokens in. No model
has such a token, so that it is refused like any other without an embedding."""


class ControlTokens:
    """The control tokens of a tokenizer, and those that the template spells.

    Control tokens are the tokenizer's special tokens, and added tokens that look like markers
    (`<think>`, `<｜User｜>`), which some models do not call special. Added tokens that look like
    words or spaces are ordinary vocabulary.

    Args:
        tokenizer: A transformers tokenizer.
        template: The text around each state.
    """

    def __init__(self, tokenizer: Any, template: Template) -> None:
        self._tokenizer = tokenizer
        self._pieces = template.text.split(PLACE)
        added = dict(getattr(tokenizer, "added_tokens_decoder", {}))
        self._control = _control_of(tokenizer, added)
        self._pattern = _any_of(self._control)
        self._ordinary = {
            token.content: number
            for number, token in added.items()
            if token.content not in self._control
        }
        highest = max(self._control.values(), default=-1)
        self._flags = np.zeros(highest + 1, dtype=bool)
        self._flags[[*self._control.values()]] = True
        unknown = getattr(tokenizer, "unk_token_id", None)
        if unknown is not None and unknown <= highest:
            self._flags[unknown] = False  # it also stands for what the vocabulary lacks
        self._expected = self._count(self._as_it_is(template.prompt("a")))
        self._renamed: tuple[Tokenizer, dict[str, str]] | None = None

    def spelled_by(self, state: str, ids: Sequence[int]) -> bool:
        """Whether a state's prompt may hold control tokens that are text of the state.

        Args:
            state: The state.
            ids: Its prompt, tokenized as one text.
        """
        return self._pattern.search(state) is not None or self._count(ids) != self._expected

    def plain(self, state: str) -> list[int]:
        """The tokens of a state's prompt, with no control token from the state.

        `[NOT_PLAIN]` if the tokenizer does not allow it.
        """
        if getattr(self._tokenizer, "backend_tokenizer", None) is not None:
            ids = self._by_other_names(state)
        else:
            ids = self._by_segments(state)
        return [int(NOT_PLAIN)] if ids is None or self._count(ids) != self._expected else ids

    def _count(self, ids: Sequence[int]) -> int:
        numbers = np.asarray(ids, dtype=np.int64)
        return int(self._flags[numbers[numbers < len(self._flags)]].sum())

    def _as_it_is(self, prompt: str) -> list[int]:
        encoded = self._tokenizer(prompt, add_special_tokens=False, verbose=False)
        return list(encoded["input_ids"])

    def _by_other_names(self, state: str) -> list[int] | None:
        if self._renamed is None:
            self._renamed = _renamed(self._tokenizer, self._control)
        backend, names = self._renamed
        pieces = [self._pattern.sub(lambda m: names[m.group()], piece) for piece in self._pieces]
        if any(backend.token_to_id(names[c]) != number for c, number in self._control.items()):
            return None
        return list(backend.encode(state.join(pieces), add_special_tokens=False).ids)

    def _by_segments(self, state: str) -> list[int] | None:
        """For tokenizers in Python: split where the template has control tokens, as they do."""
        ordinary = _any_of(self._ordinary)
        parts: list[tuple[str, int | None]] = []
        for i, piece in enumerate(self._pieces):
            if i > 0:
                parts += _split(state, ordinary, self._ordinary)
            parts += _split(piece, self._pattern, self._control)
        ids: list[int] = []
        text = ""
        for part, number in [*parts, ("", -1)]:
            if number is None:
                text += part
                continue
            if text:
                try:
                    tokens = self._tokenizer.tokenize(text, split_special_tokens=True)
                except (TypeError, ValueError):  # code that came with the model
                    return None
                ids += self._tokenizer.convert_tokens_to_ids(tokens)
                text = ""
            ids.append(number)
        return ids[:-1]


def _control_of(tokenizer: Any, added: dict[int, Any]) -> dict[str, int]:
    splits = bool(getattr(tokenizer, "split_special_tokens", False))
    special = {str(token) for token in tokenizer.all_special_tokens}
    control = {}
    for number, token in added.items():
        is_special = token.special or token.content in special
        if splits and token.special:
            continue  # this tokenizer reads them as text, wherever they stand
        if token.content.strip() and (is_special or looks_like_marker(token.content)):
            control[token.content] = int(number)
    return control


def _any_of(tokens: dict[str, int]) -> re.Pattern[str]:
    """Matches any of some texts, the longest first, as tokenizers do."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _split(
    text: str, pattern: re.Pattern[str], tokens: dict[str, int]
) -> list[tuple[str, int | None]]:
    parts: list[tuple[str, int | None]] = []
    end = 0
    for found in pattern.finditer(text):
        parts += [(text[end : found.start()], None), (found.group(), tokens[found.group()])]
        end = found.end()
    return [*parts, (text[end:], None)]


def _renamed(tokenizer: Any, control: dict[str, int]) -> tuple[Tokenizer, dict[str, str]]:
    """A tokenizer with other names for its control tokens, which no text holds; and the names."""
    nonce = secrets.token_hex(8)
    names = {content: f"\ue000{nonce}.{number}\ue001" for content, number in control.items()}
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in whole["added_tokens"]:
        if token["content"] in names:
            token["content"], token["normalized"] = names[token["content"]], False
    model = whole["model"]
    vocabulary = model["vocab"]
    # The vocabulary, too: pieces of a Unigram model would be found in the text without being added.
    model["vocab"] = (
        {names.get(piece, piece): number for piece, number in vocabulary.items()}
        if isinstance(vocabulary, dict)
        else [[names.get(piece, piece), score] for piece, score in vocabulary]
    )
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if _merged(merge) not in names]
    whole |= {"post_processor": None, "truncation": None, "padding": None}
    backend = Tokenizer.from_str(json.dumps(whole))
    backend.encode_special_tokens = tokenizer.backend_tokenizer.encode_special_tokens
    return backend, names


def _merged(merge: str | list[str]) -> str:
    return merge.replace(" ", "") if isinstance(merge, str) else "".join(merge)
