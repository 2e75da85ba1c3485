"""The shared-prefix engine: many sequences in one row of tokens, no padding, prefixes once.

A causal model's hidden state at a token depends only on the tokens up to it. So the unique tokens
after prefix sharing, the nodes of the sequences' trie, are all that has to go through the model,
and a sequence's hidden states are those along its path.

A packed batch goes through the model in chunks. How large a batch is decides what is shared; how
large a chunk is, what a layer works on at a time.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode import _core
from ebm_encode.engines import varlen
from ebm_encode.engines.attention import attending_over_paths
from ebm_encode.engines.budget import Budget
from ebm_encode.engines.compiled import CompiledLayers
from ebm_encode.engines.layer import LayerTap
from ebm_encode.engines.output import OutputSlots, Pass, to_device
from ebm_encode.engines.pooling import along_paths, pool
from ebm_encode.engines.trie import chunks_of, even_cuts, runs_of
from ebm_encode.loading.model import Model
from ebm_encode.options import Pooling
from ebm_encode.prompts.tokens import Tokens
from ebm_encode.torch_settings import inference

MOST_QUERIES = 96
"""Longer runs are divided on a CPU: their first part then skips the keys of the later ones."""

CHUNK_NODES = 1024
"""Nodes that go through a model at a time on a CPU: what a layer makes of them stays in cache."""

_TRIAL_CHUNKS = 3
"""Chunks of a packed batch in a self-test, where it is short."""


class PrefixEngine:
    """Packed batches whose attention goes along the paths of their trie.

    Args:
        model: The model.
        pooling: `mean` over a sequence's own tokens, or its `last`.
        layer: Index of the hidden state as in Hugging Face `hidden_states`.
        budget: Most nodes and sequences of a packed batch.
        share: Whether a prefix that neighbours have in common is computed once.
        layers: The model's layers as they are run; its own code if not given.

    Attributes:
        name: As it is asked for.
        attention_in_graph: Whether compiled layers include their attention.
        compiled: Whether the model's layers run compiled; see `with_compiled_layers`.
        chunk_nodes: Most nodes that go through the model at a time; `None`: all of a packed batch.
    """

    name = "shared-prefix"
    attention_in_graph = False

    def __init__(
        self,
        model: Model,
        pooling: Pooling,
        layer: int,
        budget: Budget,
        *,
        share: bool = True,
        layers: CompiledLayers | None = None,
    ) -> None:
        if not share:
            self.name = "packed"
        self.compiled = layers is not None
        self._layer = layer
        self._model = model
        self._pooling: Pooling = pooling
        self._tap = LayerTap(model, layer)
        self._budget = budget
        self._share = share
        self.chunk_nodes: int | None = CHUNK_NODES if model.device.type == "cpu" else None
        self._layers = layers

    def with_compiled_layers(self) -> "PrefixEngine":
        """Another engine like this one, which runs the model's layers compiled.

        Raises:
            ModelError: If the layers of the model cannot be told apart.
        """
        return self._anew(CompiledLayers(self._model, attention_in_graph=self.attention_in_graph))

    def plan(self, tokens: Tokens) -> list[list[int]]:
        """Batches of sequences that begin alike, under the budget of nodes, sequences and bytes."""
        budget = self._budget
        return _core.plan_windows(
            tokens.ids,
            tokens.offsets,
            budget.tokens,
            budget.sequences,
            max_path_tokens=self._path_tokens(),
            share=self._share,
        )

    def _path_tokens(self) -> int | None:
        """Most tokens on all paths of a packed batch, whose keys and values are gathered."""
        most, each = self._budget.path_bytes, varlen.bytes_per_path_token(self._model)
        if most is None or each is None or not varlen.has_kernel(self._model.device):
            return None
        return max(most // each, 1)

    def size(self, sequences: Sequence[NDArray[np.uint32]]) -> int:
        """Nodes of a packed batch."""
        return len(self._trie(sequences).ids)

    def tokens_per_forward(self, size: int) -> int:
        """Nodes of the largest chunk of a packed batch."""
        return -(-size // len(even_cuts(size, self.chunk_nodes or size)))

    def last_packed_index(self, sequences: Sequence[NDArray[np.uint32]]) -> int:
        """The sequence with the last node of the largest chunk of a packed batch."""
        trie = self._trie(sequences)
        cuts = even_cuts(len(trie.ids), self.chunk_nodes or len(trie.ids))
        last = max(cuts, key=lambda own: own.stop - own.start).stop - 1
        # Every node leads to a leaf; the first it leads to is the next one in depth-first order.
        return int(np.argmax(trie.leaves >= last))

    def forward(self, sequences: Sequence[NDArray[np.uint32]], slots: OutputSlots) -> Pass:
        """Starts a pass over a packed batch."""
        with inference():
            trie = self._trie(sequences)
            return pool(self._hidden(trie, self.chunk_nodes), trie, self._pooling, slots)

    def states(
        self, sequences: Sequence[NDArray[np.uint32]], slots: OutputSlots, wanted: Sequence[int]
    ) -> list[NDArray[np.float32]]:
        """As `forward`, and the hidden states along the paths of some sequences."""
        return self._states(sequences, slots, wanted, self.chunk_nodes)

    def trial(
        self, sequences: Sequence[NDArray[np.uint32]], slots: OutputSlots
    ) -> list[NDArray[np.float32]]:
        """As `states` of all, in several chunks also where one would do."""
        chunk_nodes = -(-self.size(sequences) // _TRIAL_CHUNKS)
        return self._states(sequences, slots, range(len(sequences)), chunk_nodes)

    def _states(
        self,
        sequences: Sequence[NDArray[np.uint32]],
        slots: OutputSlots,
        wanted: Sequence[int],
        chunk_nodes: int | None,
    ) -> list[NDArray[np.float32]]:
        with inference():
            trie = self._trie(sequences)
            hidden = self._hidden(trie, chunk_nodes)
            pool(hidden, trie, self._pooling, slots).wait()
            return along_paths(hidden, trie, wanted)

    def _anew(self, layers: CompiledLayers) -> "PrefixEngine":
        """An engine with the same options, and layers of its own."""
        model, share = self._model, self._share
        return PrefixEngine(
            model, self._pooling, self._layer, self._budget, share=share, layers=layers
        )

    def _trie(self, sequences: Sequence[NDArray[np.uint32]]) -> _core.Trie:
        tokens = Tokens.of(sequences)
        return _core.Trie(tokens.ids, tokens.offsets, share=self._share)

    def _hidden(self, trie: _core.Trie, chunk_nodes: int | None) -> torch.Tensor:
        """The hidden state of every node, (N, C)."""
        device = self._model.device
        ids = to_device(trie.ids, device)[None, :]  # (1, N)
        positions = to_device(trie.depths, device)[None, :]  # (1, N)
        nodes = ids.shape[1]
        # Were there no mask at all, transformers would look for packed sequences by the positions.
        mask = torch.ones_like(ids)
        longest_run = MOST_QUERIES if device.type == "cpu" else nodes
        parts = []
        with attending_over_paths(self._model.base) as attend_over, self._layers_in_use():
            for own, paths in chunks_of(runs_of(trie), chunk_nodes or nodes, longest_run):
                attend_over(paths)
                parts.append(self._tap.hidden(ids[:, own], mask[:, own], positions[:, own])[0])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _layers_in_use(self) -> AbstractContextManager[None]:
        return nullcontext() if self._layers is None else self._layers.in_use()
