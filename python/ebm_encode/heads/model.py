"""The energy head while it is trained."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils import parametrizations


class Head(nn.Module):  # type: ignore[misc]  # torch is not typed here
    """A multilayer perceptron over standardised embeddings: `[n, dim]` to energies `[n]`.

    Args:
        mean: Mean of the training embeddings, float32 `[dim]`.
        deviation: Their deviation, float32 `[dim]`, above zero.
        hidden: Widths of the hidden layers; none is a linear head.
        dropout: Share of hidden values that are dropped in training.
        spectral_norm: Whether each layer's largest singular value is held at 1, by torch's
            parametrisation: one power iteration a step (Miyato et al., 2018, arXiv 1802.05957).
    """

    def __init__(
        self,
        mean: torch.Tensor,
        deviation: torch.Tensor,
        hidden: Sequence[int],
        *,
        dropout: float = 0.0,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("deviation", deviation.clone())
        widths = [len(mean), *hidden, 1]
        self.layers = nn.ModuleList()
        for before, after in pairwise(widths):
            layer = nn.Linear(before, after)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if after == 1 else "relu")
            if after == 1:
                with torch.no_grad():  # small first energies: the first steps then do not jump
                    layer.weight.mul_(0.1)
            nn.init.zeros_(layer.bias)
            self.layers.append(parametrizations.spectral_norm(layer) if spectral_norm else layer)
        self.dropout = nn.Dropout(dropout)
        # Of the origin's InfoNCE: a learned temperature, about 0.1 at first.
        self.log_temperature = nn.Parameter(torch.tensor(-2.3))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Energies, lower is better, `[n]`."""
        # In place where it can be: a batch of embeddings is larger than all that follows.
        values = (embeddings - self.mean).mul_(self.deviation.reciprocal())
        for layer in self.layers[:-1]:
            values = self.dropout(nn.functional.silu(layer(values)))
        return self.layers[-1](values).squeeze(-1)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """For the optimiser: weights with decay, biases and the temperature without."""
        parameters = list(self.parameters())
        return [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]


def folded(head: Head) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weight and bias of each layer for raw embeddings, float32: what a head file holds.

    Standardisation goes into the first layer, `W' = W / deviation` and `b' = b - W' mean`. A
    spectrally normalised weight is divided by its exact largest singular value, where training used
    the estimate of one power iteration a step. All in float64, rounded once at the end.
    """
    layers = []
    with torch.no_grad():
        for number, layer in enumerate(head.layers):
            if parametrized := hasattr(layer, "parametrizations"):
                weight = layer.parametrizations.weight.original.double()
                weight = weight / torch.linalg.matrix_norm(weight, 2)
            if not parametrized:
                weight = layer.weight.double()
            bias = layer.bias.double()
            if number == 0:
                weight = weight / head.deviation.double()
                bias = bias - weight @ head.mean.double()
            layers.append((weight.float(), bias.float()))
    return layers


def energies(
    layers: Sequence[tuple[torch.Tensor, torch.Tensor]], rows: torch.Tensor
) -> torch.Tensor:
    """The energies of folded layers, `[n]`, in the dtype of the rows."""
    values = rows
    for number, (weight, bias) in enumerate(layers):
        values = nn.functional.linear(values, weight.to(rows.dtype), bias.to(rows.dtype))
        if number < len(layers) - 1:
            values = nn.functional.silu(values)
    return values.squeeze(-1)
