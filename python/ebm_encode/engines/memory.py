"""When a device has no memory left."""

from contextlib import suppress

import torch

_SIGNS = ("can't allocate memory", "out of memory", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says so."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # What is not torch's own allocator on a device raises a plain RuntimeError.
    message = str(error).lower()
    return any(sign in message for sign in _SIGNS)


def free_memory() -> None:
    """Gives back what torch holds without using it.

    Not to be called where an exception is being handled: it holds the tensors of the pass. What a
    broken device says to it, it says to the next pass, too.
    """
    if torch.accelerator.is_available():
        with suppress(RuntimeError):
            torch.accelerator.empty_cache()
