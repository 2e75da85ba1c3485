"""When a device has no memory left."""

from contextlib import suppress

import torch

_FIRST_WAIT, _LONGEST_WAIT = 16, 1024
"""Passes that fit, after which larger ones are tried again."""

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


class MemoryLimit:
    """Up to which size passes fit the memory, as far as running out of it has shown.

    What was lacking may have been another program's, or that batch's alone. So after a number of
    passes that fitted, passes of twice the size are let through again; if they do not fit either,
    the next number is twice as large.
    """

    def __init__(self) -> None:
        self._limit: int | None = None
        self._wait, self._fitted = _FIRST_WAIT, 0

    def allows(self, size: int) -> bool:
        """Whether a pass of so many tokens is to be tried."""
        return self._limit is None or size < self._limit

    def ran_out(self, size: int) -> None:
        """Notes that a pass of so many tokens did not fit."""
        if self._limit is not None:
            self._wait = min(2 * self._wait, _LONGEST_WAIT)
        self._limit, self._fitted = size, 0

    def fitted(self) -> None:
        """Notes that a pass did."""
        self._fitted += 1
        if self._limit is not None and self._fitted >= self._wait:
            self._limit, self._fitted = 2 * self._limit, 0
