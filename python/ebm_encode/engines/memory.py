"""When a device has no memory left."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says so."""
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "can't allocate memory" in str(error)
    )


def free_memory() -> None:
    """Gives back what torch holds without using it."""
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
