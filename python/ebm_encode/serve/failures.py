"""Errors of requests, each with its status, in one form."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from ebm_encode.errors import ArgumentError, EbmEncodeError, one_line
from ebm_encode.serve.bodies import Error

log = logging.getLogger(__name__)


class RequestError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: The HTTP status.
        code: A word for programs.
        message: What is wrong; a `hint:` line in it is sent apart.
        headers: Sent along.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})


class BodyError(HTTPException):
    """A body of another form, which was checked outside of FastAPI; it passes this kind on.

    Attributes:
        problems: As of `RequestValidationError.errors`.
    """

    def __init__(self, problems: Sequence[Any]) -> None:
        super().__init__(422)
        self.problems = problems


def error_response(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An answer of an error."""
    text, _, hint = message.partition("\nhint: ")
    kind = "invalid_request_error" if status < 500 else "server_error"  # noqa: PLR2004
    body = {"message": text, "type": kind, "code": code, "hint": hint or None}
    # Text of a request may hold what is no UTF-8.
    return _Escaped({"error": body}, status_code=status, headers=dict(headers or {}))


class _Escaped(JSONResponse):
    def render(self, content: Any) -> bytes:
        return super().render(_without_surrogates(content))


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_surrogates(inner) for key, inner in value.items()}
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _place(loc: Sequence[Any]) -> str:
    """Where in a body, without the names of validators."""
    parts = [str(part) for part in loc[1:] if "[" not in str(part)]
    return ".".join(parts) or "body"


def _invalid(problems: Sequence[Any]) -> Response:
    told = [f"{_place(problem['loc'])}: {problem['msg']}" for problem in problems[:3]]
    return error_response(422, "invalid_body", "; ".join(told))


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": text}
    for status, text in {
        400: "The request has no meaning",
        401: "The bearer token is missing or wrong",
        413: "The body or the request is too large",
        422: "The body is not of the right form",
        429: "Too much is waiting; see Retry-After",
        500: "The server failed on this request",
        503: "The model is being loaded, has failed, or the server is stopping",
        504: "The request took too long",
    }.items()
}
"""What every endpoint may answer besides 200, for the OpenAPI document."""


def add_handlers(app: FastAPI) -> None:
    """Has every exception of a request answered in the one form."""

    @app.exception_handler(RequestError)
    async def _request(_: Request, error: RequestError) -> Response:
        return error_response(error.status, error.code, error.message, error.headers)

    @app.exception_handler(RequestValidationError)
    async def _form(_: Request, error: RequestValidationError) -> Response:
        return _invalid(error.errors())

    @app.exception_handler(BodyError)
    async def _long_form(_: Request, error: BodyError) -> Response:
        return _invalid(error.problems)

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> Response:
        codes = {404: "not_found", 405: "method_not_allowed"}
        code = codes.get(error.status_code, "invalid_request")
        return error_response(error.status_code, code, str(error.detail), error.headers)

    @app.exception_handler(ArgumentError)
    async def _argument(_: Request, error: ArgumentError) -> Response:
        return error_response(400, "invalid_request", str(error))

    @app.exception_handler(EbmEncodeError)
    async def _own(_: Request, error: EbmEncodeError) -> Response:
        log.error("a request failed: %s", error)
        return error_response(500, "encoding_failed", str(error))

    @app.exception_handler(Exception)
    async def _any(_: Request, error: Exception) -> Response:
        log.error("a request failed", exc_info=error)
        return error_response(500, "internal_error", one_line(error))
