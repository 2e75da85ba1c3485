"""Attention along paths by torch's variable-length kernel, for 16-bit models on a GPU.

The kernel takes sequences of queries and of keys of different lengths, end to end, and lets the
last query of a sequence see its last key. That is a run and its path: queries are the nodes as they
stand, keys are gathered along the paths, and one call does a whole window.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.attention.varlen import varlen_attn

if TYPE_CHECKING:
    from ebm_encode.engines.attention import PathMask, Paths


@dataclass(frozen=True)
class Ragged:
    """The runs of a window and their paths, end to end.

    Attributes:
        keys: The node of each key, int64 `[K]`.
        query_ends: Where each run begins among the nodes, and N, int32 `[R + 1]`.
        key_ends: Where each path begins among the keys, and K, int32 `[R + 1]`.
        most_queries: Length of the longest run.
        most_keys: Length of the longest path.
    """

    keys: torch.Tensor
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    most_queries: int
    most_keys: int

    @classmethod
    def of(cls, paths: "Paths", device: torch.device) -> "Ragged":
        """Lays the paths of a window out."""
        path = torch.zeros(paths.longest, dtype=torch.long)
        keys, queries, lengths = [], [0], [0]
        for run in paths.runs:
            path[run.depths] = torch.arange(run.start, run.stop)
            keys.append(path[: run.depths.stop].clone())
            queries.append(run.stop)
            lengths.append(lengths[-1] + run.depths.stop)
        return cls(
            torch.cat(keys).to(device),
            torch.tensor(queries, dtype=torch.int32, device=device),
            torch.tensor(lengths, dtype=torch.int32, device=device),
            max(run.stop - run.start for run in paths.runs),
            paths.longest,
        )


def usable(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: "PathMask") -> bool:
    """Whether the kernel takes these, and says by a window what the mask says."""
    fits = query.dtype in {torch.float16, torch.bfloat16} and key.shape[3] == value.shape[3]
    return query.device.type == "cuda" and fits and mask.banded


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: "PathMask",
    scaling: float | None,
) -> torch.Tensor:
    """Outputs (1, N, H, D) of queries (1, H, N, D), keys and values (1, G, N, D)."""
    ragged = mask.ragged
    by_node = [part[0].transpose(0, 1) for part in (query, key, value)]  # (N, H or G, D)
    mixed: torch.Tensor = varlen_attn(
        by_node[0].contiguous(),
        by_node[1][ragged.keys],
        by_node[2][ragged.keys],
        ragged.query_ends,
        ragged.key_ends,
        ragged.most_queries,
        ragged.most_keys,
        scale=scaling,
        window_size=(-1 if mask.reach is None else mask.reach - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed[None]
