"""What every request passes: the token, the body's limits, counting; and what every answer says."""

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from asgi_correlation_id import correlation_id
from starlette.responses import Response

from ebm_encode.serve.connections import Connections
from ebm_encode.serve.failures import error_response
from ebm_encode.serve.service import Service

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_OPEN = ("/health",)
"""Paths that need no token."""
_BODY_SECONDS = 30.0
"""A body that takes longer is not waited for."""


_BUSY = 429


class _GoneError(Exception):
    pass


class Gate:
    """ASGI middleware around the app.

    Bodies are read here, so that a long or slow one costs no more than its limit, whether or not it
    says how long it is.

    Args:
        app: The app.
        service: Its options, counters and encoder.
        connections: Counts the bytes of all bodies.
    """

    def __init__(self, app: Any, service: Service, connections: Connections) -> None:
        self._app = app
        self._service = service
        self._connections = connections
        self._seconds = min(_BODY_SECONDS, service.options.timeout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Takes a request, or passes on what is none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *self._own_headers()]
            await send(message)

        try:
            await self._pass(scope, receive, answer)
        finally:
            route = scope.get("route")
            endpoint = getattr(route, "path", "other")
            self._service.metrics.requests.labels(endpoint, str(status)).inc()
            seconds = time.perf_counter() - start
            self._service.metrics.seconds.labels(endpoint).observe(seconds)
            log.info(
                "%s %r %d %.1f ms, request %s",
                scope["method"],
                scope["path"],
                status,
                seconds * 1e3,
                correlation_id.get(),
            )

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if not self._has_token(scope["path"], headers.get(b"authorization", b"")):
            unknown = error_response(
                401, "unauthorized", "a bearer token is needed", {"www-authenticate": "Bearer"}
            )
            await unknown(scope, receive, send)
            return
        body = bytearray()
        try:
            refused = await self._read(headers, receive, body)
            if refused is not None:
                await refused(scope, receive, send)
                return
            await self._app(scope, _replaying(bytes(body), receive), send)
        except _GoneError:
            return
        finally:
            self._connections.bodies -= len(body)

    async def _read(
        self, headers: Mapping[bytes, bytes], receive: Receive, body: bytearray
    ) -> Response | None:
        """Reads a body, and counts what it holds; returns the answer if it is not taken.

        Raises:
            _GoneError: If the client went away.
        """
        limit = self._service.options.max_body_bytes
        length = headers.get(b"content-length", b"0")
        too_long = length.isdigit() and int(length) > limit
        try:
            async with asyncio.timeout(self._seconds):
                more = not too_long
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    part = message.get("body", b"")
                    if part and not self._connections.has_room(len(part)):
                        why = "the bodies of all requests take as much memory as they may"
                        return self._refused("memory", 429, "memory_full", why)
                    self._connections.bodies += len(part)
                    body += part
                    too_long = len(body) > limit
                    more = message.get("more_body", False) and not too_long
        except TimeoutError:
            why = f"the body took longer than {self._seconds:g} s"
            return self._refused("slow_body", 408, "slow_body", why)
        if too_long:
            why = f"the body is longer than {limit} bytes\nhint: send several requests"
            return self._refused("body", 413, "body_too_long", why)
        return None

    def _refused(self, reason: str, status: int, code: str, why: str) -> Response:
        """An answer to a body that is not read to its end."""
        self._service.metrics.rejected.labels(reason).inc()
        headers = {"connection": "close"} | ({"retry-after": "1"} if status == _BUSY else {})
        return error_response(status, code, why, headers)

    def _has_token(self, path: str, header: bytes) -> bool:
        token = self._service.options.token
        if token is None or path in _OPEN:
            return True
        kind, _, given = header.partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), token.encode())

    def _own_headers(self) -> list[tuple[bytes, bytes]]:
        origin = self._service.origin
        if origin is None:
            return []
        return [
            (b"ebm-identity", origin.identity.encode()),
            (b"ebm-instance", origin.instance.encode()),
        ]


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, and then what the connection says."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
