"""What is done for one request, and its end when nobody waits for it any more."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self


class DroppedError(Exception):
    """Nobody waits for these states."""


class Work:
    """The states of a request, from their admission until nothing is done for them.

    A thread enters it, and takes the states in parts. States that it has not taken when the work is
    dropped are never encoded, and do not count as waiting any more.

    Args:
        count: States that were admitted.
        leave: Told how many states wait no more.
    """

    def __init__(self, count: int, leave: Callable[[int], None]) -> None:
        self._counted = count
        self._leave = leave
        self._taken = 0
        self._dropped = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._release(keep=0)

    def take(self, count: int) -> None:
        """Begins so many states.

        Raises:
            DroppedError: If nobody waits for them.
        """
        with self._lock:
            if self._dropped:
                raise DroppedError
            self._taken += count

    def drop(self) -> None:
        """Ends it but for what is being encoded."""
        with self._lock:
            self._dropped = True
        self._release(keep=self._taken)

    @asynccontextmanager
    async def ended_by(self, gone: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """Drops it when the client has gone away, and at the end of the block."""

        async def watch() -> None:
            await gone()
            self.drop()

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
            self.drop()

    def _release(self, keep: int) -> None:
        with self._lock:
            count = max(0, self._counted - keep)
            self._counted -= count
        self._leave(count)
