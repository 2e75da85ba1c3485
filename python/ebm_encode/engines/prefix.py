"""Windows: many sequences in one row of tokens, without padding, shared prefixes once.

A causal model's hidden state at a token depends on the tokens up to it alone. So the distinct
prefixes of a window's sequences, the nodes of their trie, are all that has to go through the model,
and a sequence's hidden states are those along its path.

A window goes through the model in slices. How large a window is decides what is shared; how large a
slice is, what a layer works on at a time.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode import _core
from ebm_encode.engines.attention import (
    Carried,
    Paths,
    Run,
    attending_over_paths,
    runs_of,
)
from ebm_encode.engines.budget import Budget
from ebm_encode.engines.compiled import CompiledLayers
from ebm_encode.engines.engine import Pooling
from ebm_encode.engines.layer import LayerTap
from ebm_encode.engines.pooling import along_paths, pool_last, pool_mean
from ebm_encode.engines.rows import Arrival, Rows, to_device
from ebm_encode.engines.torch_settings import inference
from ebm_encode.loading.model import Model
from ebm_encode.prompts.tokens import Tokens

_MOST_QUERIES = 96
"""Longer runs are cut on a CPU: the first part need not be held against the others' keys."""

_SLICE_NODES = 1024
"""Nodes that go through a model at a time on a CPU: what a layer makes of them stays in cache."""

_TRIAL_SLICES = 3
"""Slices of a window in a self-test, where it is short."""


class WindowEngine:
    """Windows whose attention goes along paths.

    Args:
        model: The model.
        pooling: `mean` over a sequence's own tokens, or its `last`.
        layer: Index of the hidden state as in Hugging Face `hidden_states`.
        budget: Most nodes and sequences of a window.
        share: Whether a prefix that neighbours have in common is computed once.
    """

    def __init__(
        self,
        model: Model,
        pooling: Pooling,
        layer: int,
        budget: Budget,
        *,
        share: bool = True,
    ) -> None:
        self.name = "shared-prefix" if share else "packed"
        self._model = model
        self._pool = pool_last if pooling == "last" else pool_mean
        self._tap = LayerTap(model, layer)
        self._budget = budget
        self._share = share
        self._slice_nodes = _SLICE_NODES if model.device.type == "cpu" else None
        self._compiled: CompiledLayers | None = None

    @property
    def compiled(self) -> bool:
        """Whether the model's layers run compiled."""
        return self._compiled is not None

    def compile(self, *, layers: bool) -> None:
        """From here on the model's layers run compiled, or as they are.

        Raises:
            ModelError: If the layers of the model cannot be told apart.
        """
        self._compiled = CompiledLayers(self._model) if layers else None

    def plan(self, tokens: Tokens) -> list[list[int]]:
        """Windows of sequences that begin alike, under the budget of nodes and rows."""
        return _core.plan_windows(
            tokens.ids, tokens.offsets, self._budget.tokens, self._budget.rows, share=self._share
        )

    def size(self, sequences: Sequence[NDArray[np.uint32]]) -> int:
        """Nodes of a window."""
        return len(self._trie(sequences).ids)

    def at_once(self, size: int) -> int:
        """Nodes of a window's largest slice."""
        return -(-size // len(_cuts(size, self._slice_nodes or size)))

    def last_at_once(self, sequences: Sequence[NDArray[np.uint32]]) -> int:
        """The sequence with the last node of a window's largest slice."""
        trie = self._trie(sequences)
        cuts = _cuts(len(trie.ids), self._slice_nodes or len(trie.ids))
        last = max(cuts, key=lambda own: own.stop - own.start).stop - 1
        # Every node leads to a leaf; the first it leads to is the next one in depth-first order.
        return int(np.argmax(trie.leaves >= last))

    def forward(self, sequences: Sequence[NDArray[np.uint32]], rows: Rows) -> Arrival:
        """One pass; writes the row of each sequence."""
        with inference():
            return self._pooled(*self._nodes(sequences, self._slice_nodes), rows)

    def states(
        self, sequences: Sequence[NDArray[np.uint32]], rows: Rows, wanted: Sequence[int]
    ) -> list[NDArray[np.float32]]:
        """As `forward`, and the hidden states along the paths of some sequences."""
        return self._states(sequences, rows, wanted, self._slice_nodes)

    def trial(
        self, sequences: Sequence[NDArray[np.uint32]], rows: Rows
    ) -> list[NDArray[np.float32]]:
        """As `states` of all, in several slices also where one would do."""
        slice_nodes = -(-self.size(sequences) // _TRIAL_SLICES)
        return self._states(sequences, rows, range(len(sequences)), slice_nodes)

    def _states(
        self,
        sequences: Sequence[NDArray[np.uint32]],
        rows: Rows,
        wanted: Sequence[int],
        slice_nodes: int | None,
    ) -> list[NDArray[np.float32]]:
        with inference():
            trie, hidden = self._nodes(sequences, slice_nodes)
            self._pooled(trie, hidden, rows).wait()
            return along_paths(hidden, trie, wanted)

    def _nodes(
        self, sequences: Sequence[NDArray[np.uint32]], slice_nodes: int | None
    ) -> tuple[_core.Trie, torch.Tensor]:
        """The trie of a window, and the hidden state of each of its nodes, (N, C)."""
        trie = self._trie(sequences)
        return trie, self._hidden(trie, slice_nodes)

    def _pooled(self, trie: _core.Trie, hidden: torch.Tensor, rows: Rows) -> Arrival:
        landing = rows.landing(self._model.device)
        self._pool(hidden, trie, landing)
        return landing.depart()

    def _trie(self, sequences: Sequence[NDArray[np.uint32]]) -> _core.Trie:
        tokens = Tokens.of(sequences)
        return _core.Trie(tokens.ids, tokens.offsets, share=self._share)

    def _hidden(self, trie: _core.Trie, slice_nodes: int | None) -> torch.Tensor:
        """The hidden state of every node, (N, C)."""
        ids, positions = self._inputs(trie)
        nodes = ids.shape[1]
        # Were there no mask at all, transformers would look for packed sequences by the positions.
        mask = torch.ones_like(ids)
        cut = _MOST_QUERIES if self._model.device.type == "cpu" else nodes
        slices = _slices(runs_of(trie), slice_nodes or nodes, cut)
        parts = []
        with attending_over_paths(self._model.base) as attend_over, self._layers():
            for own, paths in slices:
                attend_over(paths)
                parts.append(self._tap.hidden(ids[:, own], mask[:, own], positions[:, own])[0])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _layers(self) -> AbstractContextManager[None]:
        return nullcontext() if self._compiled is None else self._compiled.in_use()

    def _inputs(self, trie: _core.Trie) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and positions of the nodes, (1, N) each, on the model's device."""
        device = self._model.device
        return to_device(trie.ids, device)[None, :], to_device(trie.depths, device)[None, :]


class MaskedWindowEngine(WindowEngine):
    """Windows whose attention is the model's own, under a mask over all pairs of nodes.

    For models that take a mask but no attention function. Pairs outside the paths are computed and
    thrown away, and layers with a sliding window do not keep to it; the self-test tells.
    """

    def __init__(self, model: Model, pooling: Pooling, layer: int, budget: Budget) -> None:
        super().__init__(model, pooling, layer, budget)
        self.name = "shared-prefix-mask"
        self._slice_nodes = None

    def _hidden(self, trie: _core.Trie, slice_nodes: int | None) -> torch.Tensor:  # noqa: ARG002
        ids, positions = self._inputs(trie)
        nodes = torch.arange(ids.shape[1], device=ids.device)
        ends = to_device(trie.ends, ids.device)
        # Node i sees node j exactly if j <= i < ends[j].
        visible = (nodes[None, :] <= nodes[:, None]) & (nodes[:, None] < ends[None, :])  # (N, N)
        mask = visible[None, None]  # (1, 1, N, N)
        if self._model.base.config._attn_implementation == "eager":  # noqa: SLF001
            lowest = torch.finfo(self._model.base.dtype).min
            mask = torch.where(mask, 0.0, lowest).to(self._model.base.dtype)
        with self._layers():
            return self._tap.hidden(ids, mask, positions)[0]


def _slices(runs: list[Run], most: int, longest_run: int) -> list[tuple[slice, Paths]]:
    """Divides a window's runs: slices of at most so many nodes each, of like size.

    Returns the nodes of each slice among those of the window, and its runs, numbered from the
    slice's first node, none longer than `longest_run`.
    """
    cuts = _cuts(runs[-1].stop, most)
    parts: list[list[Run]] = [[] for _ in cuts]
    at = 0
    for run in runs:
        start = run.start
        while start < run.stop:
            while start >= cuts[at].stop:
                at += 1
            stop = min(start + longest_run, run.stop, cuts[at].stop)
            first = cuts[at].start
            parts[at].append(Run(start - first, stop - first, run.kept + start - run.start))
            start = stop
    carried = Carried()
    needed = [*(part[0].kept for part in parts[1:]), 0]
    return [
        (own, Paths(part, max(run.depths.stop for run in part), carried, kept))
        for own, part, kept in zip(cuts, parts, needed, strict=True)
    ]


def _cuts(nodes: int, most: int) -> list[slice]:
    """Divides so many nodes into slices of at most `most` each, of like size."""
    count = -(-nodes // most)
    bounds = [nodes * i // count for i in range(count + 1)]
    return [slice(*pair) for pair in pairwise(bounds)]
