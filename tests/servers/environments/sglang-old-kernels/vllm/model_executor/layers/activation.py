"""Gated activations over halves of the last dimension."""

import torch
from torch.nn import functional


class SiluAndMul(torch.nn.Module):
    def forward(self, both: torch.Tensor) -> torch.Tensor:
        gate, value = both.tensor_split(2, dim=-1)
        return functional.silu(gate).mul(value)


class GeluAndMul(torch.nn.Module):
    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, both: torch.Tensor) -> torch.Tensor:
        gate, value = both.tensor_split(2, dim=-1)
        return functional.gelu(gate, approximate=self.approximate).mul(value)
