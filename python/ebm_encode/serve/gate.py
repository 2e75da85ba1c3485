"""What every request passes: the token, the body's limits, counting; and what every answer says."""

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from asgi_correlation_id import correlation_id

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


class Gate:
    """ASGI middleware around the app.

    Bodies are read here, so that a long or slow one costs no more than its limit, whether or not it
    says how long it is.

    Args:
        app: The app.
        service: Its options, counters and encoder.
    """

    def __init__(self, app: Any, service: Service) -> None:
        self._app = app
        self._service = service
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
            refused = error_response(
                401, "unauthorized", "a bearer token is needed", {"www-authenticate": "Bearer"}
            )
            await refused(scope, receive, send)
            return
        limit = self._service.options.max_body_bytes
        length = headers.get(b"content-length", b"0")
        too_long = length.isdigit() and int(length) > limit
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                more = not too_long
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    too_long = len(body) > limit
                    more = message.get("more_body", False) and not too_long
        except TimeoutError:
            slow = f"the body took longer than {self._seconds:g} s"
            self._service.metrics.rejected.labels("slow_body").inc()
            closing = {"connection": "close"}
            await error_response(408, "slow_body", slow, closing)(scope, receive, send)
            return
        if too_long:
            self._service.metrics.rejected.labels("body").inc()
            why = f"the body is longer than {limit} bytes\nhint: send several requests"
            closing = {"connection": "close"}
            await error_response(413, "body_too_long", why, closing)(scope, receive, send)
            return
        await self._app(scope, _replaying(bytes(body), receive), send)

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
