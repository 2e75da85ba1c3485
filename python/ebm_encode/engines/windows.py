"""Windows: many sequences in one row of tokens, without padding, shared prefixes once.

A causal model's hidden state at a token depends on the tokens up to it alone. So the distinct
prefixes of a window's sequences, the nodes of their trie, are all that has to go through the model,
and a sequence's hidden states are those along its path.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode import _core
from ebm_encode.engines.attention import Paths, Run, over_paths
from ebm_encode.engines.engine import Pooling
from ebm_encode.engines.layer import LayerTap
from ebm_encode.engines.rows import Rows
from ebm_encode.model import Model
from ebm_encode.tokens import Tokens

_MOST_QUERIES = 96
"""Longer runs are cut on a CPU: the first part need not be held against the others' keys."""


class WindowEngine:
    """Windows whose attention goes along paths.

    Args:
        model: The model.
        pooling: `mean` over a sequence's own tokens, or its `last`.
        layer: Index of the hidden state as in Hugging Face `hidden_states`.
        max_tokens: Most nodes of a window.
        max_rows: Most sequences of a window.
        share: Whether a prefix that neighbours have in common is computed once.
    """

    def __init__(
        self,
        model: Model,
        pooling: Pooling,
        layer: int,
        *,
        max_tokens: int,
        max_rows: int,
        share: bool = True,
    ) -> None:
        self.name = "shared-prefix" if share else "packed"
        self._model = model
        self._pooling = pooling
        self._tap = LayerTap(model, layer)
        self._max_tokens = max_tokens
        self._max_rows = max_rows
        self._share = share

    def plan(self, tokens: Tokens) -> list[list[int]]:
        """Windows of sequences that begin alike, under the budget of nodes and rows."""
        return _core.plan_windows(
            tokens.ids, tokens.offsets, self._max_tokens, self._max_rows, share=self._share
        )

    def size(self, sequences: Sequence[NDArray[np.uint32]]) -> int:
        """Nodes of a window."""
        return len(self._trie(sequences).ids)

    def forward(self, sequences: Sequence[NDArray[np.uint32]], rows: Rows) -> None:
        """One pass; writes the row of each sequence."""
        trie = self._trie(sequences)
        with torch.inference_mode(), rows.on(self._model.device) as targets:
            self._pool(self._hidden(trie), trie, targets)

    def _trie(self, sequences: Sequence[NDArray[np.uint32]]) -> _core.Trie:
        tokens = Tokens.of(sequences)
        return _core.Trie(tokens.ids, tokens.offsets, share=self._share)

    def _hidden(self, trie: _core.Trie) -> torch.Tensor:
        """The hidden state of every node, (N, C)."""
        ids, positions = self._inputs(trie)
        # Were there no mask at all, transformers would look for packed sequences by the positions.
        mask = torch.ones_like(ids)
        cut = _MOST_QUERIES if self._model.device.type == "cpu" else max(ids.shape)
        with over_paths(self._model.base, _paths(trie, cut)):
            return self._tap.hidden(ids, mask, positions)[0]

    def _inputs(self, trie: _core.Trie) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and positions of the nodes, (1, N) each, on the model's device."""
        device = self._model.device
        ids, depths = torch.from_numpy(trie.ids), torch.from_numpy(trie.depths)
        return ids[None, :].to(device), depths[None, :].to(device)

    def _pool(
        self, hidden: torch.Tensor, trie: _core.Trie, targets: Sequence[torch.Tensor]
    ) -> None:
        """One float32 row per sequence from its path, (N, C) to S rows of (C,)."""
        if self._pooling == "last":
            for row, leaf in zip(targets, trie.leaves.tolist(), strict=True):
                row.copy_(hidden[leaf])
            return
        runs = _runs(trie)
        longest = max(run.depths.stop for run in runs)
        path = hidden.new_empty((longest, hidden.shape[1]), dtype=torch.float32)
        for row, run in zip(targets, runs, strict=True):
            path[run.depths] = hidden[run.nodes]
            torch.mean(path[: run.depths.stop], dim=0, out=row)


class MaskedWindowEngine(WindowEngine):
    """Windows whose attention is the model's own, under a mask over all pairs of nodes.

    For models that take a mask but no attention function. Pairs outside the paths are computed and
    thrown away, and layers with a sliding window do not keep to it; the self-test tells.
    """

    def __init__(
        self, model: Model, pooling: Pooling, layer: int, *, max_tokens: int, max_rows: int
    ) -> None:
        super().__init__(model, pooling, layer, max_tokens=max_tokens, max_rows=max_rows)
        self.name = "shared-prefix-mask"

    def _hidden(self, trie: _core.Trie) -> torch.Tensor:
        ids, positions = self._inputs(trie)
        nodes = torch.arange(ids.shape[1], device=ids.device)
        ends = torch.from_numpy(trie.ends).to(ids.device)
        # Node i sees node j exactly if j <= i < ends[j].
        visible = (nodes[None, :] <= nodes[:, None]) & (nodes[:, None] < ends[None, :])  # (N, N)
        mask = visible[None, None]  # (1, 1, N, N)
        if self._model.base.config._attn_implementation == "eager":  # noqa: SLF001
            lowest = torch.finfo(self._model.base.dtype).min
            mask = torch.where(mask, 0.0, lowest).to(self._model.base.dtype)
        return self._tap.hidden(ids, mask, positions)[0]


def _runs(trie: _core.Trie) -> list[Run]:
    """The new tokens of each sequence, which may be none."""
    starts, kept = trie.starts.tolist(), trie.kept.tolist()
    ends = zip(starts[:-1], starts[1:], kept, strict=True)
    return [Run(start, stop, depth) for start, stop, depth in ends]


def _paths(trie: _core.Trie, longest_run: int) -> Paths:
    runs = _runs(trie)
    parts = [
        Run(start, min(start + longest_run, run.stop), run.kept + start - run.start)
        for run in runs
        for start in range(run.start, run.stop, longest_run)
    ]
    return Paths(parts, max(run.depths.stop for run in runs))
