"""What a policy learns from: states of recorded searches, each with a tactic nearer to a proof."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ebm_encode.errors import InputError
from ebm_encode.heads.corpus import Corpus, read_corpus
from ebm_encode.heads.graph import FINISHED
from ebm_encode.heads.options import HeadOptions
from ebm_encode.heads.split import split_theorems
from ebm_encode.prompts.templates import Template
from ebm_encode.prompts.tokens import Prompts

IGNORED = -100
"""Label of a token that the loss does not count, as transformers has it."""

Pair = tuple[str, str]
"""A state and a tactic."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of recorded searches.

    Attributes:
        train: Of the theorems that `train-head` learns from.
        validation: Of those that choose its epoch; nothing is learned from them.
    """

    train: list[Pair]
    validation: list[Pair]


def read_pairs(paths: list[str]) -> Pairs:
    """The pairs of recorded searches, each once, split by theorem as `train-head` splits.

    A tactic counts if the state that it led to has a shorter recorded way to the end of a proof.

    Raises:
        InputError: If a file cannot be read, or there are no such steps.
    """
    corpus = read_corpus(paths)
    split = split_theorems(corpus.graphs, corpus.labels, HeadOptions())
    train = _pairs(corpus, split.train)
    known = set(train)
    pairs = Pairs(train, [p for p in _pairs(corpus, split.validation) if p not in known])
    if not pairs.train or not pairs.validation:
        part = "validation" if pairs.train else "training"
        raise InputError(f"{', '.join(paths)}: no {part} theorem has a step of a proof")
    return pairs


def _pairs(corpus: Corpus, theorems: Sequence[int]) -> list[Pair]:
    found: dict[Pair, None] = {}
    for number in theorems:
        graph, distance = corpus.graphs[number], corpus.labels[number].distance
        for state, edges in enumerate(graph.children):
            for edge in edges:
                left = 0 if edge.child == FINISHED else distance[edge.child]
                if left < distance[state]:
                    found[graph.states[state], edge.tactic] = None
    return [*found]


class Completions(torch.utils.data.Dataset):  # type: ignore[misc]
    """Token ids of prompts with their tactics, and labels that count the tactics' tokens only.

    The prompts are those that `ebm_encode.policy` asks a model with, and a tactic ends with the
    token on which the policy ends it.

    Args:
        tokenizer: A tokenizer with an end-of-sequence token.
        template: The prompt's text around the state.
        pairs: States with tactics.
        longest: Most tokens of a prompt and its tactic; longer ones are skipped, not cut.

    Attributes:
        skipped: How many pairs are too long.
    """

    def __init__(
        self, tokenizer: Any, template: Template, pairs: Sequence[Pair], longest: int
    ) -> None:
        prompts = Prompts(tokenizer, template, None, cut="none")
        ids = prompts.tokenize([state for state, _ in pairs])
        # A policy trims what it generates. Where a word begins, tokenizers want the space with it.
        space = "" if template.text[-1:].isspace() else " "
        tactics = tokenizer([space + t for _, t in pairs], add_special_tokens=False)["input_ids"]
        self._rows: list[tuple[list[int], int]] = []
        for i, tactic in enumerate(tactics):
            prompt = ids[i][: len(ids[i]) - prompts.added_at_end].tolist()
            row = [*prompt, *tactic, tokenizer.eos_token_id]
            if len(row) <= longest:
                self._rows.append((row, len(prompt)))
        self.skipped = len(pairs) - len(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, prompt = self._rows[index]
        return {
            "input_ids": row,
            "attention_mask": [1] * len(row),
            "labels": [IGNORED] * prompt + row[prompt:],
            "length": len(row),
        }
