"""Masks of padded batches for which the host does not wait for a device.

transformers asks whether a mask hides anything, to leave it out if not. On a device the host would
wait for the answer, in every pass, with the device idle meanwhile. So the mask is always made.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionMaskInterface
from transformers.masking_utils import sdpa_mask


@dataclass
class _Masks:
    """Whether all are made. Another thread's pass may meet it: its mask is made, too, and right."""

    all_made: bool = False


_masks = _Masks()


@contextmanager
def making_masks() -> Iterator[None]:
    """Makes masks also where they hide nothing, for models that attend by torch's own function."""
    before, _masks.all_made = _masks.all_made, True
    try:
        yield
    finally:
        _masks.all_made = before


def _mask(*arguments: Any, **options: Any) -> torch.Tensor | None:
    if _masks.all_made:
        options["allow_is_causal_skip"] = False
    mask: torch.Tensor | None = sdpa_mask(*arguments, **options)
    return mask


# Under its own name: the code of some models branches on that.
AttentionMaskInterface.register("sdpa", _mask)
