"""HTTP to an inference server: time limits, retries of what may be repeated, a circuit breaker.

Whatever goes wrong is a `ServerError` that names the server.
"""

import json
import logging
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import orjson
import pybreaker
import stamina
import urllib3
from urllib3 import exceptions

from ebm_encode.errors import (
    ArgumentError,
    EbmEncodeError,
    ServerError,
    UnreachableServerError,
    one_line,
)
from ebm_encode.options import is_token

# Without a handler its log would go to the standard error of whoever uses this library.
logging.getLogger("stamina").addHandler(logging.NullHandler())

_OK = 200
_TRIES = 4
_FAILURES = 5
"""So many requests that fail one after another, and the server is left in peace for a while."""
_PEACE_SECONDS = 30.0
_BUSY = (429, 502, 503, 504)
"""Answers of a server that did not take a request up."""
_SHOWN = 300
_LONGEST = 2**30
"""Bytes of an answer that are read."""
_PART = 2**20
"""Bytes of an answer that are read at a time."""
_CONNECTIONS = 64
"""Connections that are kept open, at most; more threads open more."""


@dataclass(frozen=True)
class Reply:
    """A server's answer.

    Attributes:
        content: The body.
        headers: The headers, by their names in small letters.
    """

    content: bytes
    headers: dict[str, str]


class _BusyError(Exception):
    """The server did not take a request up; it may be sent again."""

    def __init__(self, reason: str, wait: float | None) -> None:
        super().__init__(reason)
        self.wait = wait


class ServerClient:
    """Requests to one server. Several threads may share it.

    Args:
        url: The server, as `http://127.0.0.1:30000`.
        token: Sent as bearer token.
        timeout: Seconds that a request may take, its retries not counted.
        tries: How often a request is sent that may be repeated, at most.

    Attributes:
        url: The server, without a slash at the end.
        timeout: As given.

    Raises:
        ArgumentError: If that is no URL of a server.
    """

    def __init__(
        self, url: str, *, token: str | None = None, timeout: float = 300.0, tries: int = _TRIES
    ) -> None:
        if not is_server(url):
            raise ArgumentError(f"`server` {url!r}: expected a URL such as http://127.0.0.1:30000")
        if token is not None and not is_token(token):
            raise ArgumentError("the server's token: expected ASCII characters without spaces")
        self.url = url.rstrip("/")
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._client = urllib3.PoolManager(
            maxsize=_CONNECTIONS,
            retries=False,
            timeout=urllib3.Timeout(connect=min(timeout, 10.0), read=timeout),
        )
        weakref.finalize(self, self._client.clear)
        self.timeout = timeout
        self._tries = tries
        self._breaker = pybreaker.CircuitBreaker(
            fail_max=_FAILURES,
            reset_timeout=_PEACE_SECONDS,
            exclude=[ServerError, _BusyError],  # it answers
        )

    def get_json(self, path: str, *, missing_ok: bool = False) -> dict[str, Any] | None:
        """The JSON object at a path.

        Args:
            path: Begins with a slash.
            missing_ok: Whether `None` is returned where the server has no such path.

        Raises:
            ServerError: If there is none, or the server cannot be reached.
        """
        reply = self._send("GET", path, None, {}, missing_ok=missing_ok, retry=True)
        found = None if reply is None else self._json(path, reply)
        if found is not None and not isinstance(found, dict):
            raise ServerError(f"{self.url}{path}: is no JSON object")
        return found

    def post_json(
        self, path: str, body: Any, *, missing_ok: bool = False, retry: bool = True
    ) -> Any:
        """The JSON that a request brings; `None` for none, and as for `get_json`.

        Args:
            path: Begins with a slash.
            body: Sent as JSON.
            missing_ok: As for `get_json`.
            retry: Whether it may be sent again where the server was too busy.

        Raises:
            ServerError: If the server cannot be reached, went away, or answered with an error.
        """
        reply = self._send("POST", path, body, {}, missing_ok=missing_ok, retry=retry)
        return None if reply is None or not reply.content.strip() else self._json(path, reply)

    def post(self, path: str, body: Any, *, accept: str | None = None) -> Reply:
        """The bytes that a request brings.

        Args:
            path: Begins with a slash.
            body: Sent as JSON.
            accept: The type of answer that is wanted.

        Raises:
            ServerError: As for `post_json`.
        """
        headers = {} if accept is None else {"accept": accept}
        reply = self._send("POST", path, body, headers, missing_ok=False, retry=True)
        assert reply is not None
        return reply

    def close(self) -> None:
        """Closes its connections."""
        self._client.clear()

    def _json(self, path: str, reply: Reply) -> Any:
        try:
            return orjson.loads(reply.content)
        except ValueError:
            pass
        try:  # with the numbers that JSON lacks, which a server may write all the same
            return json.loads(reply.content)
        except (ValueError, RecursionError) as error:
            start = reply.content[:_SHOWN].decode(errors="replace")
            raise ServerError(f"{self.url}{path}: answered what is no JSON: {start!r}") from error

    def _send(
        self,
        method: str,
        path: str,
        body: Any,
        headers: dict[str, str],
        *,
        missing_ok: bool,
        retry: bool,
    ) -> Reply | None:
        content = None if body is None else orjson.dumps(body)
        if content is not None:
            headers = headers | {"content-type": "application/json"}
        tries = stamina.retry_context(
            on=_wait_before_retry, attempts=self._tries if retry else 1, timeout=self.timeout
        )
        try:
            for attempt in tries:
                with attempt, self._breaker.calling():
                    return self._once(method, path, content, headers, missing_ok=missing_ok)
        except pybreaker.CircuitBreakerError as error:
            raise ServerError(
                f"{self.url}: failed {_FAILURES} times in a row and is not asked for"
                f" {_PEACE_SECONDS:.0f} s"
            ) from error
        except _BusyError as error:
            raise ServerError(f"{self.url}{path}: {error}") from error
        except exceptions.NewConnectionError as error:
            raise UnreachableServerError(
                f"{self.url}{path}: cannot be reached ({error})\nhint: is the server running?"
            ) from error
        except exceptions.HTTPError as error:
            raise ServerError(f"{self.url}{path}: {self._why(error)}") from error
        raise AssertionError("a try returns or raises")

    def _once(
        self,
        method: str,
        path: str,
        content: bytes | None,
        headers: dict[str, str],
        *,
        missing_ok: bool,
    ) -> Reply | None:
        until = time.monotonic() + self.timeout
        url = self.url + path
        answer = self._client.request(
            method, url, body=content, headers=self._headers | headers, preload_content=False
        )
        try:
            body = self._body(answer, until)
        except BaseException:
            answer.close()  # what comes later belongs to no request
            raise
        answer.release_conn()
        status = answer.status
        if status == _OK:
            return Reply(body, {k.lower(): v for k, v in answer.headers.items()})
        if missing_ok and status in (404, 405):
            return None
        reason = f"answered {status}: {_message(body)}"
        if status in _BUSY:
            raise _BusyError(reason, _seconds(answer.headers.get("retry-after")))
        raise ServerError(f"{self.url}{path}: {reason}{_hint(body)}")

    def _body(self, answer: urllib3.BaseHTTPResponse, until: float) -> bytes:
        """All of an answer, in time: the client's own limit is on each part of it."""
        parts, size = [], 0
        while part := answer.read1(_PART):
            parts.append(part)
            size += len(part)
            if time.monotonic() > until:
                raise exceptions.TimeoutError("its answer takes too long")
            if size > _LONGEST:
                raise ServerError(f"{self.url}: answers with more than {_LONGEST >> 20} MiB")
        return b"".join(parts)

    def _why(self, error: exceptions.HTTPError) -> str:
        if isinstance(error, exceptions.TimeoutError):
            return f"did not answer within {self.timeout:g} s"
        return f"went away during a request ({error or type(error).__name__})"


@contextmanager
def making_sense(where: str) -> Iterator[None]:
    """Makes an answer that is not of the form that it should have a `ServerError`.

    Args:
        where: The server, for the error.
    """
    try:
        yield
    except EbmEncodeError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ServerError(f"{where}: answered what makes no sense ({one_line(error)})") from error
    except RecursionError as error:
        raise ServerError(f"{where}: answered JSON that is nested too deeply") from error


def is_server(url: str) -> bool:
    """Whether that is a URL of a server: scheme, host, no user and no query."""
    if not url.startswith(("http://", "https://")):
        return False
    try:
        parts = urllib3.util.parse_url(url)
    except exceptions.LocationParseError:
        return False
    return bool(parts.host) and not parts.auth and not parts.query


def _wait_before_retry(error: Exception) -> bool | float:
    """What may be sent again: what never reached the server, or was not taken up by it."""
    if isinstance(error, _BusyError):
        return True if error.wait is None else error.wait
    return isinstance(error, exceptions.NewConnectionError | exceptions.ConnectTimeoutError)


def _seconds(header: str | None) -> float | None:
    try:
        return None if header is None else min(60.0, max(0.0, float(header)))
    except ValueError:
        return None


def _message(content: bytes) -> str:
    """What an error answer says, in any of the forms that servers have for it."""
    for value in _texts(content, ("message", "detail", "error")):
        return value[:_SHOWN]
    return content[:_SHOWN].decode(errors="replace").strip() or "nothing"


def _hint(content: bytes) -> str:
    return next((f"\nhint: {value}" for value in _texts(content, ("hint",))), "")


def _texts(content: bytes, names: tuple[str, ...]) -> Iterator[str]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return
    inner = found.get("error") if isinstance(found, dict) else None
    for place in (inner, found):
        if isinstance(place, dict):
            yield from (place[n] for n in names if isinstance(place.get(n), str) and place[n])
