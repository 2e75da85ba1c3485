"""The endpoints."""

import base64
import json
from functools import partial
from pathlib import Path

import numpy as np
from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ebm_encode._core import __version__
from ebm_encode.serve.accept import chosen_form
from ebm_encode.serve.bodies import (
    EmbeddingsReply,
    EmbeddingsRequest,
    EncodeReply,
    EncodeTexts,
    EncodeTokens,
    Error,
    Health,
    Info,
    ModelCard,
    Models,
)
from ebm_encode.serve.connections import Connections
from ebm_encode.serve.failures import RESPONSES, RequestError, add_handlers
from ebm_encode.serve.forms import (
    ARROW,
    JSON,
    RAW,
    Encoded,
    as_arrow,
    as_json,
    as_raw,
    numbers,
)
from ebm_encode.serve.gate import Gate
from ebm_encode.serve.parsing import Route, in_thread_if
from ebm_encode.serve.service import Service

_LISTED = 3
_LONGEST_ID = 128
_MANY_VALUES = 2**17
"""So many numbers take milliseconds to write as text."""


def make_app(service: Service, connections: Connections) -> FastAPI:
    """The app over an encoder."""
    app = FastAPI(
        title="ebm-encode",
        summary="Checked embeddings of proof states",
        version=__version__,
        responses=RESPONSES,
    )
    app.router.route_class = Route
    app.state.service = service
    add_handlers(app)
    _add_native(app, service)
    _add_openai(app, service)
    # The last one added is the first to see a request.
    app.add_middleware(Gate, service=service, connections=connections)
    app.add_middleware(CorrelationIdMiddleware, header_name="x-request-id", validator=_is_id)
    return app


def _is_id(given: str) -> bool:
    """Whether a client's own id of a request may stand in logs and replies."""
    return len(given) <= _LONGEST_ID and given.isascii() and given.isprintable()


def _add_native(app: FastAPI, service: Service) -> None:
    forms = {
        JSON: {},
        RAW: {"schema": {"type": "string", "format": "binary"}},
        ARROW: {"schema": {"type": "string", "format": "binary"}},
    }

    @app.post(
        "/encode",
        response_model=EncodeReply,
        responses={
            200: {"content": forms},
            406: {"model": Error, "description": "No such form of answer"},
            408: {"model": Error, "description": "The body came too slowly"},
        },
    )
    async def encode(body: EncodeTexts | EncodeTokens, request: Request) -> Response:
        """Embeds states.

        The answer is JSON, or by `Accept` raw float32 (`application/octet-stream`) or an Arrow
        stream (`application/vnd.apache.arrow.stream`).
        """
        form = chosen_form(request.headers.getlist("accept"))
        if form is None:
            raise RequestError(406, "not_acceptable", f"answers are {JSON}, {RAW} or {ARROW}")
        texts = body.texts if isinstance(body, EncodeTexts) else None
        tokens = body.tokens if isinstance(body, EncodeTokens) else None
        found = await service.encode(texts, tokens, partial(_gone, request))
        origin = service.origin
        assert origin is not None
        if form == ARROW:
            return Response(as_arrow(found, origin), media_type=ARROW)
        if form == RAW:
            raw, headers = as_raw(found)
            return Response(raw, media_type=RAW, headers=headers)
        text = await in_thread_if(_is_long(found), lambda: as_json(found, origin))
        return Response(text, media_type=JSON)

    @app.get("/health", responses={503: {"model": Health}})
    async def health(response: Response) -> Health:
        """Whether requests are taken: the model is loaded and has passed its self-test."""
        if service.state != "ready":
            response.status_code = 503
        return Health(status=service.state, reason=str(service.failure or ""))

    @app.get("/info")
    async def info() -> Info:
        """What the server is: its encoder's identity, engine, limits, versions."""
        return service.info()

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_openai(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> Models:
        """The model that is served."""
        return Models(data=[ModelCard(id=_names(service)[0])])

    @app.post(
        "/v1/embeddings",
        response_model=EmbeddingsReply,
        responses={404: {"model": Error, "description": "No such model"}, 408: {"model": Error}},
    )
    async def embeddings(body: EmbeddingsRequest, request: Request) -> Response:
        """Embeds texts or token ids, as OpenAI's endpoint does; all of them or none."""
        names, dim = _names(service), service.encoder.dim
        if body.model not in names:
            raise RequestError(
                404, "model_not_found", f"no model {body.model[:100]!r}, only {names[0]!r}"
            )
        if body.dimensions not in (None, dim):
            raise RequestError(
                400,
                "invalid_dimensions",
                f"embeddings have {dim} dimensions, not {body.dimensions}",
            )
        texts, tokens = _inputs(body.input)
        found = await service.encode(texts, tokens, partial(_gone, request))
        _require_all(found)
        text = await in_thread_if(
            _is_long(found), lambda: _openai(found, names[0], body.encoding_format)
        )
        return Response(text, media_type=JSON)


async def _gone(request: Request) -> None:
    """Returns when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _is_long(found: Encoded) -> bool:
    return found.embeddings.size > _MANY_VALUES


def _names(service: Service) -> tuple[str, str]:
    name = service.encoder.model.name
    return Path(name).name or name, name


def _inputs(
    given: str | list[str] | list[int] | list[list[int]],
) -> tuple[list[str] | None, list[list[int]] | None]:
    """Texts, or token ids."""
    if isinstance(given, str):
        return [given], None
    if not given:
        raise RequestError(400, "empty_input", "input is empty")
    texts = [text for text in given if isinstance(text, str)]
    if texts:
        return texts, None
    sequences = [ids for ids in given if isinstance(ids, list)]
    return None, sequences or [[token for token in given if isinstance(token, int)]]


def _require_all(found: Encoded) -> None:
    failed = found.failed
    if not failed:
        return
    listed = "; ".join(
        f"input {i}: {found.reasons[i] or found.statuses[i]}" for i in failed[:_LISTED]
    )
    raise RequestError(
        400, "no_embedding", f"{len(failed)} of {len(found.statuses)} have none: {listed}"
    )


def _openai(found: Encoded, model: str, encoding: str) -> bytes:
    """The answer; numbers are written once, without Python objects."""
    parts: list[bytes] = []
    for i, embedding in enumerate(found.embeddings):
        start = json.dumps({"object": "embedding", "index": i})[:-1].encode()
        parts.append(start + b', "embedding": ' + _one(embedding, encoding) + b"}")
    total = sum(found.tokens)
    end = {"model": model, "usage": {"prompt_tokens": total, "total_tokens": total}}
    return (
        b'{"object": "list", "data": [' + b", ".join(parts) + b"], " + json.dumps(end)[1:].encode()
    )


def _one(embedding: np.ndarray[tuple[int], np.dtype[np.float32]], encoding: str) -> bytes:
    if encoding == "base64":
        return b'"' + base64.b64encode(embedding.astype("<f4", copy=False).tobytes()) + b'"'
    return numbers(embedding)
