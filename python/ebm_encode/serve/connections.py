"""Connections of a server: what those may cost that ask for nothing or do not read answers."""

import asyncio
import logging
import resource
import time
from contextlib import suppress
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

log = logging.getLogger(__name__)

_LEAST_SENT = 2**18
"""Bytes that a client takes of a longer answer from one look to the next."""
_OTHER_FILES = 128
"""Open files besides connections: weights, caches, devices."""
_MOST = 10_000
"""Connections, however many files there may be."""
_TOLD_SECONDS = 10.0
"""Between two messages on connections that were closed."""


class Connections:
    """What the connections of a server hold together.

    Args:
        most: Most connections.
        body_bytes: Most bytes of bodies and of answers that are not yet sent.
        header_seconds: Within this the whole header of a request must come, from its first byte or
            from the start of the connection.
        look_seconds: How often an answer that is being sent is looked at.

    Attributes:
        most: As given.
        header_seconds: As given.
        look_seconds: As given.
        bodies: Bytes of bodies whose requests are not done.
    """

    def __init__(
        self,
        most: int,
        body_bytes: int,
        *,
        header_seconds: float = 10.0,
        look_seconds: float = 30.0,
    ) -> None:
        self.most = most
        self.header_seconds = header_seconds
        self.look_seconds = look_seconds
        self.bodies = 0
        self._body_bytes = body_bytes
        self._all: set[Connection] = set()
        self._idle: dict[Connection, None] = {}
        self._closed: dict[str, int] = {}
        self._told = -_TOLD_SECONDS

    def has_room(self, more: int) -> bool:
        """Whether so many bytes more of a body may be held."""
        unsent = sum(own.unsent() for own in self._all)
        return self.bodies + unsent + more <= self._body_bytes

    def enter(self, connection: "Connection") -> bool:
        """Takes a connection; one more than allowed costs that which has been idle for longest.

        Returns whether it was taken: not if all others are at work.
        """
        if len(self._all) >= self.most:
            if not self._idle:
                self.note("refused, as many as may be are at work")
                return False
            self.note("closed while idle, to take new ones")
            next(iter(self._idle)).abort()
        self._all.add(connection)
        self._idle[connection] = None
        return True

    def leave(self, connection: "Connection") -> None:
        """Forgets a connection."""
        self._all.discard(connection)
        self._idle.pop(connection, None)

    def set_idle(self, connection: "Connection", *, idle: bool) -> None:
        """Notes whether a connection waits for a request."""
        self._idle.pop(connection, None)
        if idle and connection in self._all:
            self._idle[connection] = None

    def note(self, why: str) -> None:
        """Tells of a connection that was closed; of many at once in one line."""
        self._closed[why] = self._closed.get(why, 0) + 1
        if time.monotonic() - self._told >= _TOLD_SECONDS:
            self._told = time.monotonic()
            for reason, count in self._closed.items():
                log.warning("connections %s: %d", reason, count)
            self._closed = {}

    def protocol(self) -> Any:
        """What uvicorn makes for each connection."""
        return partial(Connection, self)


class Connection(HttpToolsProtocol):
    """A connection with time limits, where uvicorn has none.

    A client must send the whole header of a request in time, and take what it is answered.
    """

    def __init__(self, all_: Connections, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._all = all_
        self._header_timer: asyncio.TimerHandle | None = None
        self._sending_timer: asyncio.TimerHandle | None = None
        self._answers = 0
        self._in_header = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins the time for the first header."""
        super().connection_made(transport)
        if not self._all.enter(self):
            transport.abort()
            return
        self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends all timers."""
        super().connection_lost(exc)
        self._all.leave(self)
        self._end_header_timer()
        if self._sending_timer is not None:
            self._sending_timer.cancel()

    def data_received(self, data: bytes) -> None:
        """The first byte of a further request begins the time for its header."""
        super().data_received(data)
        if self.cycle is None or not self.cycle.response_complete or self.transport.is_closing():
            return
        if self._in_header:
            self._await_header()
        elif self.timeout_keep_alive_task is None:  # it ended by what begins no request
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_header = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The request is known."""
        self._in_header = False
        self._end_header_timer()
        self._all.set_idle(self, idle=False)
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """The answer is written, which does not mean that anything of it was sent."""
        super().on_response_complete()
        self._answers += 1
        self._all.set_idle(self, idle=self.cycle.response_complete)
        if self._sending_timer is None:
            self._look_later(None)

    def timeout_keep_alive_handler(self) -> None:
        """Closes it; what a client does not take would keep it open."""
        if self.unsent():
            self.abort()
        else:
            super().timeout_keep_alive_handler()

    def unsent(self) -> int:
        """Bytes of answers that the client has not taken."""
        return self.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Closes it at once."""
        self._all.leave(self)
        self.transport.abort()

    def _await_header(self) -> None:
        if self._header_timer is None and not self.transport.is_closing():
            self._header_timer = self.loop.call_later(self._all.header_seconds, self._no_header)

    def _end_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _no_header(self) -> None:
        self._header_timer = None
        self._all.note(f"without a whole header for {self._all.header_seconds:g} s")
        self.abort()

    def _look_later(self, before: tuple[int, int] | None) -> None:
        self._sending_timer = self.loop.call_later(self._all.look_seconds, self._look, before)

    def _look(self, before: tuple[int, int] | None) -> None:
        """Ends a connection whose client took too little of an answer since the last look."""
        self._sending_timer = None
        now = (self._answers, self.unsent())
        if not now[1]:
            return
        if before is not None and before[0] == now[0] and now[1] > before[1] - _LEAST_SENT:
            self._all.note(f"whose client took next to nothing for {self._all.look_seconds:g} s")
            self.abort()
            return
        self._look_later(now)


def raise_file_limit() -> int:
    """Lets this process open as many files as it may; returns how many connections then fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # macOS says "unlimited" and does not mean it
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MOST
    return min(_MOST, max(soft - _OTHER_FILES, soft // 2))
