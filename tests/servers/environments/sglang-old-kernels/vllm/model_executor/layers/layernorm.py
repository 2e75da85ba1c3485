"""RMS norms that add the residual first, as vLLM's do."""

import torch
from torch.nn import functional


class RMSNorm(torch.nn.Module):
    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def scale(self) -> torch.Tensor:
        return self.weight

    def forward(self, states: torch.Tensor, residual: torch.Tensor | None = None):
        if residual is not None:
            residual = states = states + residual
        scale = self.scale()
        normed = functional.rms_norm(states, scale.shape, scale, self.variance_epsilon)
        return normed if residual is None else (normed, residual)


class GemmaRMSNorm(RMSNorm):
    def scale(self) -> torch.Tensor:
        return self.weight + 1
