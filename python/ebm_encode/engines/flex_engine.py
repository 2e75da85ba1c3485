"""The shared-prefix engine with FlexAttention: one kernel a layer for every kind of mask."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode import _core
from ebm_encode.engines.block_masks import TrieLayout
from ebm_encode.engines.budget import Budget
from ebm_encode.engines.compiled import CompiledLayers
from ebm_encode.engines.flex import attending_over_trie
from ebm_encode.engines.output import OutputSlots, to_device
from ebm_encode.engines.prefix import PrefixEngine
from ebm_encode.engines.recordings import MOST_NODES, Recordings, Run, record_on_device
from ebm_encode.loading.model import Model
from ebm_encode.options import Pooling


class FlexEngine(PrefixEngine):
    """Packed batches whose attention is one kernel over the trie; see `flex.py`.

    A packed batch goes through the model whole. On a CPU that is for tests: torch has no kernel
    there for such masks, and makes the scores of all pairs.

    Args:
        model: The model.
        pooling: `mean` over a sequence's own tokens, or its `last`.
        layer: Index of the hidden state as in Hugging Face `hidden_states`.
        budget: Most nodes and sequences of a packed batch.
        layers: The model's layers as they are run; its own code if not given.
        recordings: Makes what records small passes; if not given, on a GPU they are CUDA graphs.

    Attributes:
        only_by_name: Whether it is used only if asked for by name.
    """

    name = "shared-prefix-flex"
    attention_in_graph = True

    def __init__(
        self,
        model: Model,
        pooling: Pooling,
        layer: int,
        budget: Budget,
        *,
        layers: CompiledLayers | None = None,
        recordings: Callable[[Run], Recordings] | None = None,
    ) -> None:
        super().__init__(model, pooling, layer, budget, layers=layers)
        self.chunk_nodes = None
        self.only_by_name = model.device.type == "cpu"
        if recordings is None and model.device.type == "cuda":
            recordings = partial(Recordings, model.device, record=record_on_device)
        self._make_recordings = recordings
        self._recordings = None if recordings is None else recordings(self._run)

    def trial(
        self, sequences: Sequence[NDArray[np.uint32]], slots: OutputSlots
    ) -> list[NDArray[np.float32]]:
        """As `states` of all."""
        return self.states(sequences, slots, range(len(sequences)))

    def _path_tokens(self) -> None:
        """Nothing is gathered."""

    def _anew(self, layers: CompiledLayers) -> "FlexEngine":
        return FlexEngine(
            self._model,
            self._pooling,
            self._layer,
            self._budget,
            layers=layers,
            recordings=self._make_recordings,
        )

    def _hidden(self, trie: _core.Trie, chunk_nodes: int | None) -> torch.Tensor:  # noqa: ARG002
        layout = TrieLayout.of(trie, self._model.device)
        ids = np.zeros((1, layout.length), np.int64)
        ids[0, : layout.nodes] = trie.ids
        if self._recordings is not None and layout.length <= MOST_NODES:
            return self._recordings.hidden(layout, ids)[: layout.nodes]
        positions = layout.depths[None].astype(np.int64)
        device = layout.device
        return self._run(layout, to_device(ids, device), to_device(positions, device))[
            : layout.nodes
        ]

    def _run(self, layout: TrieLayout, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The hidden states of all nodes, (length, C)."""
        # Were there no mask at all, transformers would look for packed sequences by the positions.
        mask = torch.ones_like(ids)
        with attending_over_trie(self._model.base, layout), self._layers_in_use():
            hidden: torch.Tensor = self._tap.hidden(ids, mask, positions)[0]
        return hidden
