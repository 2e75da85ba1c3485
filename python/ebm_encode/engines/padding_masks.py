"""Masks of padded batches for which the host does not wait for a device.

transformers asks whether a mask hides anything, to leave it out if not. On a device the host would
wait for the answer, in every pass, with the device idle meanwhile. So the mask is always made.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

_made: ContextVar[bool] = ContextVar("made", default=False)
"""Whether this thread's passes make every mask."""


@contextmanager
def making_masks() -> Iterator[None]:
    """Makes masks also where they hide nothing, for models that attend by torch's own function."""
    token = _made.set(True)
    try:
        yield
    finally:
        _made.reset(token)


def _mask(**options: Any) -> torch.Tensor | None:
    if _made.get():
        options["allow_is_causal_skip"] = False
    mask: torch.Tensor | None = sdpa_mask(**options)
    return mask


# Under its own name: the code of some models branches on that.
AttentionMaskInterface.register("sdpa", _mask)
