"""Has a server give its GPU memory back for a while, and take it again whatever happens."""

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Self

from ebm_encode.errors import ServerError, UnsafeServerError
from ebm_encode.servers.guard.endpoints import MemoryEndpoints, SglangMemory, VllmMemory
from ebm_encode.servers.guard.memory import free_gpu_memory
from ebm_encode.servers.http import ServerClient, making_sense
from ebm_encode.servers.kinds import Kind, kind_of

log = logging.getLogger(__name__)

_LEAST_FREED = 64 * 2**20
"""Bytes; what a server frees that only says so moves by less."""

_NOTHING = 2**20
"""Bytes by which free memory may move while a server keeps all it has."""


class ServerGuard:
    """Borrows the GPU memory of a vLLM or SGLang server on this machine.

    `with ServerGuard(url):` has the server give memory back; at the end of the block, by whichever
    way, it takes it again and must answer a real request. Free memory is measured before and after:
    servers say 200 either way.

    Args:
        url: The server.
        token: Its bearer token.
        needed: Bytes that must be freed; by default 64 MiB.
        patience: Seconds to wait until the server is idle, and until it answers again.
        free_memory: Free bytes of the GPUs; by default as the driver has it.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        needed: int = _LEAST_FREED,
        patience: float = 300.0,
        free_memory: Callable[[], int] = free_gpu_memory,
    ) -> None:
        self._url = url
        # Answers of a server that is asleep never come.
        self._client = ServerClient(url, token=token, timeout=min(patience, 60.0))
        self._needed = needed
        self._patience = patience
        self._free_memory = free_memory
        self._released: MemoryEndpoints | None = None

    def __enter__(self) -> Self:
        self.release()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.resume()
        except ServerError as failure:
            if error is None:
                raise
            error.add_note(f"besides: {failure}")  # what went wrong first is told first

    def release(self) -> None:
        """Has the server give memory back.

        Raises:
            ServerError: If it cannot be reached, is of another kind, or does not become idle.
            UnsafeServerError: If it would end, lose its weights, or give nothing back.
        """
        if self._released is not None:
            return
        with making_sense(self._url):
            endpoints = _endpoints(kind_of(self._client), self._client, self._patience)
            endpoints.require_able()
        endpoints.wait_until_idle()
        before, answered = self._free_memory(), False
        try:
            endpoints.release()
            answered = True
            freed = self._free_memory() - before
            self._require_freed(freed)
        except BaseException:
            # Also if the answer to the call was lost: what is known of it is the memory.
            if endpoints.resume_is_harmless or self._freed(before, unknown=answered):
                self._released = endpoints
                self.resume()
            raise
        self._released = endpoints
        log.info("%s gave %d MiB back", self._url, freed >> 20)

    def take_over(self, free_before: int) -> None:
        """Has a server take the memory again that it gave back to a process that is gone.

        Args:
            free_before: Free bytes of the GPUs before that process asked for memory.

        Raises:
            ServerError: If it does not answer a real request in time.
        """
        with making_sense(self._url):
            endpoints = _endpoints(kind_of(self._client), self._client, self._patience)
            endpoints.read_options()
        if endpoints.resume_is_harmless or self._freed(free_before, unknown=False):
            self._released = endpoints
            self.resume()
        else:
            endpoints.until_it_answers()

    def _freed(self, before: int, *, unknown: bool) -> bool:
        """Whether memory was given back; `unknown` where that cannot be measured any more."""
        try:
            return self._free_memory() - before > _NOTHING
        except ServerError:
            return unknown

    def _require_freed(self, freed: int) -> None:
        if freed < self._needed:
            raise UnsafeServerError(
                f"{self._url}: says that it gave memory back, and {max(0, freed) >> 20} MiB are"
                f" free now that were not, of {self._needed >> 20} needed"
            )

    def resume(self) -> None:
        """Has the server take its memory again, if it gave any back; returns once it answers.

        Raises:
            ServerError: If it does not answer a real request in time.
        """
        if self._released is None:
            return
        endpoints = self._released
        endpoints.resume()
        endpoints.until_it_answers()
        self._released = None
        log.info("%s has its memory again and answers", self._url)


def _endpoints(kind: Kind, client: ServerClient, patience: float) -> MemoryEndpoints:
    if kind == "sglang":
        return SglangMemory(client, patience=patience)
    if kind == "vllm":
        return VllmMemory(client, patience=patience)
    raise ServerError(
        f"{client.url}: `ebm-encode serve` keeps its memory\nhint: stop it and start it again"
    )
