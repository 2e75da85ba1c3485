"""Long bodies are parsed and checked beside the event loop, with the same answers."""

import asyncio
import threading

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, field_validator

from ebm_encode.serve.bodies import EncodeTexts, EncodeTokens
from ebm_encode.serve.failures import add_handlers
from ebm_encode.serve.parsing import Route

CHECKED_IN = []


class Body(BaseModel):
    texts: list[str]

    @field_validator("texts")
    @classmethod
    def note(cls, given):
        CHECKED_IN.append(threading.current_thread())
        return given


def make_app():
    app = FastAPI()
    app.router.route_class = Route
    add_handlers(app)

    @app.post("/checked")
    async def checked(body: Body) -> int:
        return len(body.texts)

    @app.post("/encode")
    async def encode(body: EncodeTexts | EncodeTokens) -> list[int]:
        return [len(ids) for ids in (body.tokens if isinstance(body, EncodeTokens) else body.texts)]

    return app


def post(path, content):
    async def ask():
        transport = httpx2.ASGITransport(app=make_app(), raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://x") as client:
            json_ = {"content-type": "application/json"}
            return await client.post(path, content=content, headers=json_)

    return asyncio.run(ask())


def test_only_long_bodies_are_checked_in_a_thread_and_once():
    CHECKED_IN.clear()
    assert post("/checked", b'{"texts": ["a"]}').json() == 1
    assert post("/checked", b'{"texts": ["a", "%s"]}' % (b"b" * 300_000)).json() == 2
    here, there = CHECKED_IN
    assert here is threading.main_thread()
    assert there is not here


@pytest.mark.parametrize(
    "start",
    [
        b'{"texts": ["a"]',
        b'{"tokens": [[1, 2.0], [3]]',
        b'{"tokens": [[1], [-1]]',
        b'{"tokens": [[1, "2"]]',
        b'{"tokens": [[]]',
        b'{"texts": [1]',
        b'{"texts": ["a"], "other": 1',
        b"{x",
        b"\xff",
    ],
)
def test_long_bodies_get_the_answers_of_short_ones(start):
    short, long = (post("/encode", start + b" " * n + b"}") for n in (0, 300_000))
    assert short.status_code == long.status_code
    assert short.json() == long.json()


def test_one_wrong_id_behind_many_right_ones_is_found():
    ids = [*range(200_000)]
    right = post("/encode", str({"tokens": [ids]}).replace("'", '"').encode())
    assert right.json() == [200_000]
    ids[150_000] = 2**31
    wrong = post("/encode", str({"tokens": [ids]}).replace("'", '"').encode())
    assert "tokens.0.150000" in wrong.json()["error"]["message"]
