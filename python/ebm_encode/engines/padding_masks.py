"""Masks of padded batches for which the host does not wait for a device.

transformers asks whether a mask hides anything, to leave it out if not. On a device the host would
wait for the answer, in every pass, with the device idle meanwhile. So the mask is always made.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ebm_encode.engines.attending import attending_by

NAME = "ebm_encode_padded"
"""Under this name transformers finds torch's attention function, and masks that are made."""


@contextmanager
def without_waiting(base: Any, device: torch.device) -> Iterator[None]:
    """Lets a model that attends by torch's own function run without waiting for its device."""
    if device.type == "cpu" or base.config._attn_implementation != "sdpa":  # noqa: SLF001
        yield
        return
    with attending_by(base, NAME):
        yield


def _mask(**options: Any) -> torch.Tensor | None:
    made: torch.Tensor | None = sdpa_mask(**options | {"allow_is_causal_skip": False})
    return made


AttentionInterface.register(NAME, sdpa_attention_forward)
AttentionMaskInterface.register(NAME, _mask)
