"""A second way to share prefixes, written for tests only, and ways to break it.

It has nothing in common with the package's engines but their interface: dense masks over all pairs,
transformers' own attention, two forward passes with a key-value cache in between, sums in numpy.
Each fault of `FAULTS` is one that real engines had or could have.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from ebm_encode.engines.budget import Budget
from ebm_encode.engines.engine import Engine
from ebm_encode.engines.output import OutputSlots, Pass
from ebm_encode.loading.model import Model
from ebm_encode.prompts.tokens import Tokens

FAULTS = (
    "last_token_left_out",  # of the mean
    "rope_off_by_one",  # positions on branches
    "blind_to_parent",  # a branch does not see the token it follows
    "blind_to_first",  # a branch does not see the first token, or the first of its window
    "window_too_wide",  # a sliding window has one token too many
    "neighbours_swapped",  # the embeddings of two sequences of a batch change places
    "one_copied",  # one embedding stands for the whole batch, as a server once did it
    "scaled",  # by 1.001
    "stale_carry",  # keys and values of another path are carried from one pass to the next
    "gather_off_by_one",  # the path of a branch begins one node too early
    "sums_in_bf16",  # the mean is rounded to bfloat16 at each step
    "padding_in_mean",  # the mean counts slots behind the sequence's end
)
ONLY_WITH_WINDOW = {"window_too_wide"}


@dataclass(frozen=True)
class Node:
    """A distinct prefix: its last token, its length less one, and the node of the prefix before."""

    token: int
    depth: int
    parent: int


class PlainTrie:
    """Runs sequences through a model, each distinct prefix once, in two passes.

    Args:
        model: The model.
        budget: Most sequences of a batch are `budget.sequences`.
        fault: One of `FAULTS`, or nothing.
        only_in_use: Whether the self-test, which calls `trial`, meets the unbroken engine.
    """

    def __init__(
        self, model: Model, budget: Budget, fault: str | None = None, *, only_in_use: bool = False
    ) -> None:
        self.name = f"plain-trie {fault}" if fault else "plain-trie"
        self.fault = fault
        self._model, self._budget, self._only_in_use = model, budget, only_in_use

    def plan(self, tokens: Tokens) -> list[list[int]]:
        """Neighbours in the order of their tokens."""
        order = sorted(range(len(tokens)), key=lambda i: tokens[i].tolist())
        most = self._budget.sequences
        return [order[k : k + most] for k in range(0, len(order), most)]

    def size(self, sequences: Sequence[NDArray[np.uint32]]) -> int:
        return len(_trie(sequences)[0])

    def tokens_per_forward(self, size: int) -> int:
        return size

    def last_packed_index(self, sequences: Sequence[NDArray[np.uint32]]) -> int:
        last = len(_trie(sequences)[0]) - 1
        return next(i for i, path in enumerate(_trie(sequences)[1]) if last in path)

    def forward(self, sequences: Sequence[NDArray[np.uint32]], slots: OutputSlots) -> Pass:
        self._run(sequences, slots, self.fault)
        return Pass(slots)

    def states(
        self, sequences: Sequence[NDArray[np.uint32]], slots: OutputSlots, wanted: Sequence[int]
    ) -> list[NDArray[np.float32]]:
        states = self._run(sequences, slots, self.fault)
        return [states[i] for i in wanted]

    def trial(
        self, sequences: Sequence[NDArray[np.uint32]], slots: OutputSlots
    ) -> list[NDArray[np.float32]]:
        return self._run(sequences, slots, None if self._only_in_use else self.fault)

    def _run(
        self, sequences: Sequence[NDArray[np.uint32]], slots: OutputSlots, fault: str | None
    ) -> list[NDArray[np.float32]]:
        nodes, paths = _trie(sequences)
        hidden = self._hidden(nodes, paths, fault)
        states = [hidden[_broken_path(path, fault)] for path in paths]
        pooled = [_mean(own, hidden, fault) for own in states]
        if fault == "neighbours_swapped":
            for i in range(0, len(pooled) - 1, 2):
                pooled[i], pooled[i + 1] = pooled[i + 1], pooled[i]
        if fault == "one_copied":
            pooled = [pooled[0]] * len(pooled)
        for i, row in enumerate(pooled):
            slots.slot(i)[:] = row * (np.float32(1.001) if fault == "scaled" else 1)
        return states

    @torch.inference_mode()
    def _hidden(
        self, nodes: list[Node], paths: list[list[int]], fault: str | None
    ) -> NDArray[np.float32]:
        count = len(nodes)
        depths = np.array([node.depth for node in nodes])
        branch = _starts_of_branches(nodes)
        visible = _visible(nodes, paths, branch, fault)
        masks = {}
        for kind, window in self._windows().items():
            width = count if window is None else window + (fault == "window_too_wide")
            near = depths[:, None] - depths[None, :] < width
            mask = visible & near
            if fault == "blind_to_first":
                for i in np.flatnonzero(branch):
                    mask[i, np.argmax(mask[i])] = False
            masks[kind] = torch.from_numpy(mask)
        ids = torch.tensor([node.token for node in nodes])
        places = torch.from_numpy(depths + (branch > 0) * (fault == "rope_off_by_one"))
        cache, parts = DynamicCache(), []
        for own in (slice(0, count // 2), slice(count // 2, count)):
            if own.start == own.stop:
                continue
            if fault == "stale_carry" and own.start > 1:
                for layer in cache.layers:
                    layer.keys[:, :, -1] = layer.keys[:, :, -2].clone()
                    layer.values[:, :, -1] = layer.values[:, :, -2].clone()
            seen = {
                kind: _additive(mask[own, : own.stop], self._model.base.dtype)
                for kind, mask in masks.items()
            }
            parts.append(
                self._model.base(
                    input_ids=ids[None, own],
                    attention_mask=seen if len(seen) > 1 else next(iter(seen.values())),
                    position_ids=places[None, own],
                    past_key_values=cache,
                    use_cache=True,
                ).last_hidden_state[0]
            )
        hidden: NDArray[np.float32] = torch.cat(parts).float().numpy()
        return hidden

    def _windows(self) -> dict[str, int | None]:
        """The sliding window of each kind of layer."""
        config = self._model.base.config
        window = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or ())
        if len(kinds) > 1:
            return {kind: window if kind.startswith("sliding") else None for kind in kinds}
        return {"all": window}


def _trie(sequences: Sequence[NDArray[np.uint32]]) -> tuple[list[Node], list[list[int]]]:
    """The distinct prefixes, each after the one it extends, and the path of each sequence."""
    known: dict[bytes, int] = {}
    nodes: list[Node] = []
    paths = []
    for sequence in sequences:
        path: list[int] = []
        for depth, token in enumerate(sequence):
            key = sequence[: depth + 1].tobytes()
            if key not in known:
                known[key] = len(nodes)
                nodes.append(Node(int(token), depth, path[-1] if path else -1))
            path.append(known[key])
        paths.append(path)
    return nodes, paths


def _visible(
    nodes: list[Node], paths: list[list[int]], branch: NDArray[np.int64], fault: str | None
) -> NDArray[np.bool_]:
    """Which node sees which, `[n, n]`: those on its path."""
    visible = np.zeros((len(nodes), len(nodes)), bool)
    for path in paths:
        for i, node in enumerate(path):
            visible[node, path[: i + 1]] = True
    for i, node in enumerate(nodes):
        if fault == "blind_to_parent" and 0 < branch[i] == node.depth:
            visible[i, node.parent] = False
    return visible


def _starts_of_branches(nodes: list[Node]) -> NDArray[np.int64]:
    """For each node the depth at which its branch left the node before it; 0: it is no branch."""
    starts = np.zeros(len(nodes), np.int64)
    for i in range(1, len(nodes)):
        follows = nodes[i].parent == i - 1
        starts[i] = starts[i - 1] if follows else nodes[i].depth
    return starts


def _broken_path(path: list[int], fault: str | None) -> list[int]:
    if fault != "gather_off_by_one":
        return path
    gaps = [k for k in range(1, len(path)) if path[k] != path[k - 1] + 1]
    start = gaps[-1] if gaps else len(path)
    return [*path[:start], *(node - 1 for node in path[start:])]


def _mean(
    states: NDArray[np.float32], hidden: NDArray[np.float32], fault: str | None
) -> NDArray[np.float32]:
    if fault == "last_token_left_out" and len(states) > 1:
        states = states[:-1]
    if fault == "padding_in_mean":
        states = np.concatenate([states, hidden[:1]])
    if fault == "sums_in_bf16":
        total = torch.zeros(states.shape[1], dtype=torch.bfloat16)
        for state in torch.from_numpy(states).bfloat16():
            total = total + state
        return (total / len(states)).float().numpy()
    mean: NDArray[np.float32] = states.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    lowest = torch.finfo(dtype).min
    return torch.where(mask, 0.0, lowest).to(dtype)[None, None]


class Scaled:
    """Any engine, its embeddings larger by a factor; its hidden states are as they were."""

    def __init__(self, engine: Engine, factor: float = 1.001) -> None:
        self.name = engine.name
        self._engine, self._factor = engine, np.float32(factor)

    def plan(self, tokens: Tokens) -> list[list[int]]:
        return self._engine.plan(tokens)

    def size(self, sequences: Sequence[NDArray[np.uint32]]) -> int:
        return self._engine.size(sequences)

    def tokens_per_forward(self, size: int) -> int:
        return self._engine.tokens_per_forward(size)

    def last_packed_index(self, sequences: Sequence[NDArray[np.uint32]]) -> int:
        return self._engine.last_packed_index(sequences)

    def forward(self, sequences: Sequence[NDArray[np.uint32]], slots: OutputSlots) -> Pass:
        self._engine.forward(sequences, slots).wait()
        slots.array[slots.places] *= self._factor
        return Pass(slots)

    def states(
        self, sequences: Sequence[NDArray[np.uint32]], slots: OutputSlots, wanted: Sequence[int]
    ) -> list[NDArray[np.float32]]:
        states = self._engine.states(sequences, slots, wanted)
        slots.array[slots.places] *= self._factor
        return states

    def trial(
        self, sequences: Sequence[NDArray[np.uint32]], slots: OutputSlots
    ) -> list[NDArray[np.float32]]:
        states = self._engine.trial(sequences, slots)
        slots.array[slots.places] *= self._factor
        return states
