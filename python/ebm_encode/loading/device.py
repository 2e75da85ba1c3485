"""Where a model goes."""

import torch

from ebm_encode.errors import ModelError, one_line


def find_device(device: str) -> torch.device:
    """The device of a name; `auto` is the first accelerator, else the CPU.

    Raises:
        ModelError: If there is no such device here. Something is made on it to know, before
            gigabytes are read.
    """
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if accelerator is None else accelerator
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"`device` {device}: {one_line(error)}") from error
    if found.type == "meta":
        raise ModelError("`device` meta: computes nothing")
    return found
