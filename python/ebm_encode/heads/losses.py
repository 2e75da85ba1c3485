"""Losses over energies; lower energy is better."""

import torch
from torch.nn import functional


def sibling_loss(energy: torch.Tensor, groups: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Softmax over the recorded children of one parent, all proved ones together in the numerator.

    `-log(sum over targets of exp(-E) / sum over all of exp(-E))`, the mean over the groups.

    Args:
        energy: Energies of the batch, `[n]`.
        groups: Children of each parent as places in the batch, int64 `[G, C]`, filled with -1.
        targets: Which of them are proved, bool `[G, C]`; in each group some are and some are not.
    """
    if not len(groups):
        return energy.sum() * 0.0
    scores = (-energy)[groups.clamp_min(0)].masked_fill(groups < 0, -torch.inf)
    numerator = scores.masked_fill(~targets, -torch.inf).logsumexp(dim=1)
    return (scores.logsumexp(dim=1) - numerator).mean()


def pair_loss(energy: torch.Tensor, nearer: torch.Tensor, farther: torch.Tensor) -> torch.Tensor:
    """Logistic loss of pairs that the distance orders: `log(1 + exp(E(nearer) - E(farther)))`.

    Args:
        energy: Energies of the batch, `[n]`.
        nearer: Places of the states nearer to the end of a proof, int64 `[P]`.
        farther: Places of the others, int64 `[P]`.
    """
    if not len(nearer):
        return energy.sum() * 0.0
    return functional.softplus(energy[nearer] - energy[farther]).mean()


def distance_loss(energy: torch.Tensor, steps: torch.Tensor, scale: float) -> torch.Tensor:
    """Huber loss between the energies of proved states and their distance in units of `scale`.

    Args:
        energy: Energies of proved states, `[m]`.
        steps: Steps to the end of the proof, `[m]`.
        scale: Steps of one unit. A fixed number: divided by a batch's largest distance, as the
            origin does, the same state has another target in another batch.
    """
    if not len(energy):
        return energy.sum() * 0.0
    return functional.huber_loss(energy, steps.to(energy.dtype) / scale)


def infonce_loss(energy: torch.Tensor, log_temperature: torch.Tensor) -> torch.Tensor:
    """The origin's InfoNCE: cross entropy of the positive, in column 0, among its negatives.

    Args:
        energy: Energies, `[B, 1 + K]`.
        log_temperature: Learned, held between -5 and 2.
    """
    scores = -energy / log_temperature.clamp(-5.0, 2.0).exp()
    return functional.cross_entropy(
        scores, torch.zeros(len(energy), dtype=torch.int64, device=energy.device)
    )


def margin_loss(energy: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    """The origin's margin loss: hinge between the positive, in column 0, and each negative.

    Averaged over the pairs that violate the margin alone. No temperature: a small one would make
    the hinge vanish.
    """
    hinge = (margin + energy[:, :1] - energy[:, 1:]).clamp_min(0.0)
    active = hinge > 0
    return hinge.sum() / active.sum().clamp_min(1)


def origin_distance_loss(energy: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """The origin's depth regression: squared error to remaining depth / the batch's largest.

    Args:
        energy: Energies, `[n]`.
        steps: Remaining steps, `[n]`; those below 0 are not known.
    """
    known = steps >= 0
    if not known.any():
        return energy.sum() * 0.0
    wanted = steps[known].to(energy.dtype)
    return functional.mse_loss(energy[known], wanted / wanted.max().clamp_min(1.0))
