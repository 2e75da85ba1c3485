"""vLLM's pooling server, 0.32.0: `/v1/embeddings`, `/pooling` and what it says of itself."""

import base64
import json
import threading
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from servers.stand_in.model import Model
from servers.stand_in.replies import NOT_FOUND, Reply, Settings, as_json, as_text
from servers.stand_in.sglang_defects import due

if TYPE_CHECKING:
    from collections.abc import Callable

_DTYPES = {"float32": "f4", "float16": "f2"}


@dataclass
class Row:
    """One input's answer: its place, its vector [dim] and the tokens that were counted."""

    index: int
    vector: np.ndarray
    tokens: int


class Vllm:
    """One server's state: whether it sleeps."""

    def __init__(self, settings: Settings, model: Model, samples: dict[str, Any]) -> None:
        self.settings, self.model, self.samples = settings, model, samples
        self.asleep = settings.defect == "asleep"
        self.really_asleep = False
        self.asked = 0
        self.lock = threading.Lock()

    def answer(self, method: str, path: str, _query: dict[str, list[str]], body: Any) -> Reply:
        """The reply to a request; `body` is the parsed JSON or none."""
        if method == "POST" and path in {"/v1/embeddings", "/pooling"}:
            return self._embed(path, body)
        if method == "POST" and path == "/tokenize":
            ids = self.model.ids(body["prompt"])
            found = {"count": len(ids), "max_model_len": self.model.longest, "tokens": ids}
            return as_json(found | {"token_strs": None})
        told: dict[str, Callable[[], Reply]] = {
            "/health": Reply,
            "/version": lambda: as_json({"version": self.settings.info.get("version", "0.32.0")}),
            "/v1/models": lambda: as_json(self._models()),
            "/metrics": self._metrics,
        }
        if path in told:
            return told[path]()
        return self._developer(method, path) if self.settings.dev_mode else NOT_FOUND

    def _models(self) -> dict[str, Any]:
        found = json.loads(json.dumps(self.samples["models"]))
        changed = {"id": self.model.folder, "root": self.model.folder}
        found["data"][0] |= changed | {"max_model_len": self.model.longest}
        return found

    def _metrics(self) -> Reply:
        lines = [line.rsplit(" ", 1) for line in self.samples["metrics"]]
        values = {"vllm:num_requests_running": float(self.settings.running)}
        said = [f"{name} {values.get(name.split('{')[0], value)}" for name, value in lines]
        return as_text("\n".join(said) + "\n")

    # Developer mode

    def _developer(self, method: str, path: str) -> Reply:
        match method, path:
            case "GET", "/server_info":
                return as_json(self._server_info())
            case "GET", "/is_sleeping":
                return as_json({"is_sleeping": self.asleep})
            case "POST", "/sleep":
                self.asleep = True  # without --enable-sleep-mode it says so, and does nothing
                works = self.settings.memory_saver and self.settings.defect != "no_effect"
                self.really_asleep = works
                return Reply(200, b"")
            case "POST", "/wake_up":
                self.asleep = self.really_asleep = False
                return Reply(200, b"")
            case "POST", "/reset_prefix_cache":
                return Reply(200, b"")
            case _:
                return NOT_FOUND

    def _server_info(self) -> dict[str, Any]:
        s = self.settings
        found = json.loads(json.dumps(self.samples["server_info"]))
        config = found["vllm_config"]["model_config"]
        config |= {"model": self.model.folder, "enable_sleep_mode": s.memory_saver}
        config["pooler_config"] |= {"use_activation": s.normalize}
        config["pooler_config"]["seq_pooling_type"] = s.pooling.upper()
        config |= s.info
        return found

    def free_memory(self) -> int:
        """Bytes of the imagined GPU that are free."""
        return 1_000_000_000 * (1 + 12 * self.really_asleep)

    # Encoding

    def _embed(self, path: str, body: dict[str, Any]) -> Reply:
        end = time.monotonic() + self.settings.seconds
        while self.asleep and time.monotonic() < end:
            time.sleep(0.02)  # health says 200 all the while, whether memory was released or not
        refusal = self._refusal(path, body)
        if refusal is not None:
            return refusal
        inputs = self._inputs(body)
        longest = [len(ids) for ids in inputs if len(ids) > self.model.longest]
        if longest:
            message = (
                f"This model's maximum context length is {self.model.longest} tokens. However, "
                f"your prompt contains {longest[0]} input tokens, which exceeds this limit. "
                f"(parameter=input_tokens, value={longest[0]})"
            )
            return _error(message, "BadRequestError", 400)
        with self.lock:
            rows = [self._row(i, ids, body) for i, ids in enumerate(inputs)]
            self.asked += 1
            if due(self.settings, self.asked - 1):
                rows = self._spoilt(rows, inputs)
        return self._shaped(path, rows, body)

    def _refusal(self, path: str, body: dict[str, Any]) -> Reply | None:
        named = body.get("model")
        if named is not None and named != self._models()["data"][0]["id"]:
            return _error(f"The model `{named}` does not exist.", "NotFoundError", 404)
        if body.get("dimensions") is not None:
            message = "Model '<path>' does not support Matryoshka embeddings"
            return _error(message, "BadRequestError", 400)
        if path == "/pooling" and body.get("task", "embed") != "embed":
            return _error(f"Unsupported task: {body['task']!r}", "BadRequestError", 400)
        return None

    def _inputs(self, body: dict[str, Any]) -> list[list[int]]:
        given, special = body["input"], body.get("add_special_tokens", True)
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            given = [given]
        ids = [self.model.ids(x, special=special) if isinstance(x, str) else x for x in given]
        kept = body.get("truncate_prompt_tokens")
        return [x[:kept] for x in ids] if kept else ids

    def _row(self, index: int, ids: list[int], body: dict[str, Any]) -> Row:
        s = self.settings
        vector = self._pooled(ids)
        asked = body.get("use_activation")
        if s.normalize if asked is None else asked:
            vector = vector / np.linalg.norm(vector)
        return Row(index, vector, len(ids))

    def _pooled(self, ids: list[int]) -> np.ndarray:
        states = self.model.states(ids)
        return states[-1] if self.settings.pooling == "last" else states.mean(0)

    def _spoilt(self, rows: list[Row], inputs: list[list[int]]) -> list[Row]:
        s = self.settings
        if s.defect in WHOLE:
            return WHOLE[s.defect](rows)
        if s.defect not in EACH:
            return rows
        vectors = [row.vector for row in rows]
        for i, row in enumerate(rows):
            if s.items is None or i in s.items:
                others = [v for k, v in enumerate(vectors) if inputs[k] != inputs[i]]
                foreign = others[0] if others else self._pooled(inputs[i][::-1])
                EACH[s.defect](row, foreign, self._pooled(inputs[i][:8]))
        return rows

    # Shapes

    def _shaped(self, path: str, rows: list[Row], body: dict[str, Any]) -> Reply:
        form = body.get("encoding_format", "float")
        dtype = body.get("embed_dtype", "float32")
        order = ">" if body.get("endianness") == "big" else "<"
        packed = [row.vector.astype(order + _DTYPES[dtype]).tobytes() for row in rows]
        tokens = sum(row.tokens for row in rows)
        usage: dict[str, Any] = {"prompt_tokens": tokens, "total_tokens": tokens}
        if form in {"bytes", "bytes_only"}:
            data, start = [], 0
            for row, raw in zip(rows, packed, strict=True):
                place = {"index": row.index, "embed_dtype": dtype, "start": start}
                place |= {"endianness": body.get("endianness", "native")}
                data.append(place | {"end": start + len(raw), "shape": [len(row.vector)]})
                start += len(raw)
            meta = {"id": _id(path), "created": int(time.time()), "model": self.model.folder}
            meta |= {"data": data, "usage": usage}
            headers = {"metadata": json.dumps(meta)} if form == "bytes" else {}
            return Reply(200, b"".join(packed), "application/octet-stream", headers)
        values: list[Any] = [row.vector.tolist() for row in rows]
        if form == "base64":
            values = [base64.b64encode(raw).decode() for raw in packed]
        key, kind = ("data", "pooling") if path == "/pooling" else ("embedding", "embedding")
        usage |= dict.fromkeys(["prompt_tokens_details", "completion_tokens_details"])
        usage |= {"completion_tokens": 0}
        data = [
            {"index": row.index, "object": kind, key: value}
            for row, value in zip(rows, values, strict=True)
        ]
        reply = {"id": _id(path), "object": "list", "created": int(time.time())}
        return as_json(reply | {"model": self.model.folder, "data": data, "usage": usage})


def _id(path: str) -> str:
    return f"{'pooling' if path == '/pooling' else 'embd'}-{uuid.uuid4().hex[:16]}"


def _error(message: str, kind: str, status: int) -> Reply:
    return as_json(
        {"error": {"message": message, "type": kind, "param": None, "code": status}}, status
    )


def _zeros(row: Row, _foreign: np.ndarray, _prefix: np.ndarray) -> None:
    row.vector = np.zeros_like(row.vector)


def _nan(row: Row, _foreign: np.ndarray, _prefix: np.ndarray) -> None:
    row.vector = row.vector.copy()
    row.vector[-1] = np.nan


def _foreign_row(row: Row, foreign: np.ndarray, _prefix: np.ndarray) -> None:
    row.vector = foreign


def _truncated(row: Row, _foreign: np.ndarray, prefix: np.ndarray) -> None:
    row.vector = prefix


def _truncated_and_said(row: Row, _foreign: np.ndarray, prefix: np.ndarray) -> None:
    row.vector, row.tokens = prefix, min(8, row.tokens)


def _float16(row: Row, _foreign: np.ndarray, _prefix: np.ndarray) -> None:
    row.vector = row.vector.astype(np.float16).astype(np.float32)


def _wrong_dimension(row: Row, _foreign: np.ndarray, _prefix: np.ndarray) -> None:
    row.vector = row.vector[: len(row.vector) // 2]


def _unit(row: Row, _foreign: np.ndarray, _prefix: np.ndarray) -> None:
    row.vector = row.vector / np.linalg.norm(row.vector)


def _one_token_more(row: Row, _foreign: np.ndarray, _prefix: np.ndarray) -> None:
    row.tokens += 1


def _swapped(rows: list[Row]) -> list[Row]:
    vectors = [row.vector for row in rows][::-1]
    for row, vector in zip(rows, vectors, strict=True):
        row.vector = vector
    return rows


def _same_index(rows: list[Row]) -> list[Row]:
    for row in rows:
        row.index = 0
    return rows


EACH = {
    "zeros": _zeros,
    "nan": _nan,
    "foreign": _foreign_row,
    "truncated": _truncated,  # the first 8 tokens, and the usage of all of them
    "truncated_and_said": _truncated_and_said,
    "float16": _float16,
    "wrong_dimension": _wrong_dimension,
    "unit": _unit,  # normalised in spite of `use_activation: false`
    "other_tokenizer": _one_token_more,
}
WHOLE = {
    "wrong_order": lambda rows: rows[::-1],  # with their indices, as the API allows
    "swapped": _swapped,
    "same_index": _same_index,
    "missing_item": lambda rows: rows[:-1],
    "more_items": lambda rows: [*rows, rows[-1]],
}
DEFECTS = {*EACH, *WHOLE, "asleep", "no_effect"}
