"""What some sequences cost a model: tokens, unique tokens, and the FLOPs of the unique ones."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ebm_encode.prompts.tokens import Tokens


@dataclass(frozen=True)
class Cost:
    """The work of some states, however it is done.

    Attributes:
        states: Number of sequences.
        tokens: Tokens of all of them.
        unique_tokens: Trie nodes: tokens after prefix sharing.
        flops: FLOPs of the unique tokens: twice the layers' parameters for each, and for each pair
            of a unique token and a token that it attends to, four times the width of all heads in
            every layer. Embeddings and head are not counted.
    """

    states: int
    tokens: int
    unique_tokens: int
    flops: float


def cost_of(tokens: Tokens, config: Any, parameters: int) -> Cost:
    """The cost of sequences.

    Args:
        tokens: The sequences.
        config: That of a Llama.
        parameters: Of all layers, without embeddings and head.
    """
    nodes = pairs = 0
    before = np.zeros(0, np.uint32)
    # In big-endian bytes sequences sort as their ids do.
    order = sorted(range(len(tokens)), key=lambda i: tokens[i].astype(">u4").tobytes())
    for i in order:
        own = tokens[i]
        least = min(len(before), len(own))
        differs = np.flatnonzero(before[:least] != own[:least])
        same, length = int(differs[0]) if len(differs) else least, len(own)
        nodes += length - same
        pairs += (length * (length + 1) - same * (same + 1)) // 2
        before = own
    width = config.num_attention_heads * config.head_dim
    flops = 2.0 * parameters * nodes + 4.0 * width * config.num_hidden_layers * pairs
    return Cost(len(tokens), int(tokens.lengths.sum()), nodes, flops)
