"""Waits for free GPU memory."""

import logging
import time
from collections.abc import Callable, Sequence

from ebm_encode.errors import PipelineError
from ebm_encode.servers.guard.memory import free_memory_of_gpus

log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_GIB = 2**30


def wait_for_memory(
    needed: int, seconds: float, *, free: Callable[[], Sequence[int]] = free_memory_of_gpus
) -> None:
    """Returns once a GPU has so much memory free; a process that ended gives it back later.

    Args:
        needed: Bytes.
        seconds: How long to wait.
        free: Free bytes of each GPU; by default as the driver has them.

    Raises:
        PipelineError: If none has by then.
        ServerError: If no GPU can be asked.
    """
    end, told = time.monotonic() + seconds, False
    while (most := max(free(), default=0)) < needed:
        if time.monotonic() > end:
            raise PipelineError(
                f"no GPU has {needed / _GIB:.1f} GiB free after {seconds:g} s, the most is"
                f" {most / _GIB:.1f}\nhint: `nvidia-smi` shows which processes have it"
            )
        if not told:
            log.info(
                "waiting for %.1f GiB of GPU memory, %.1f are free", needed / _GIB, most / _GIB
            )
            told = True
        time.sleep(_POLL_SECONDS)
