"""SGLang's native API: 0.5.23, whose batches are right, and 0.4.9, which slices them wrongly.

The prefix cache, the chunks and the slicing are those of the real servers, so that what a real one
answers wrongly without any switch is answered wrongly here as well.
"""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from servers.stand_in.model import Model
from servers.stand_in.replies import NOT_FOUND, Died, Reply, Settings, as_json, as_text
from servers.stand_in.sglang_defects import Item, spoil

_OLD_PATHS = {"/get_load"}
_NEW_PATHS = {"/model_info", "/server_info", "/v1/loads", "/weights_checker", "/tokenize"}


class Sglang:
    """One server's state: its prefix cache and its memory."""

    def __init__(self, settings: Settings, model: Model, samples: dict[str, Any]) -> None:
        self.settings, self.model, self.samples = settings, model, samples
        self.old = settings.kind == "sglang-old"
        self.cached: dict[str, list[list[int]]] = {"": [list(ids) for ids in settings.warm]}
        self.released: set[str] = set()
        self.asked = 0
        self.unsettled = 0
        self.lock = threading.Lock()

    def answer(self, method: str, path: str, _query: dict[str, list[str]], body: Any) -> Reply:
        """The reply to a request; `body` is the parsed JSON or none."""
        if path in (_NEW_PATHS if self.old else _OLD_PATHS):
            return NOT_FOUND
        told: dict[str, Callable[[], Any]] = {
            "/model_info": self._model_info,
            "/get_model_info": self._model_info,
            "/server_info": self._server_info,
            "/get_server_info": self._server_info,
            "/v1/models": self._models,
            "/get_load": self._load,
            "/v1/loads": self._loads,
        }
        if path in told:
            return as_json(told[path]())
        if path in {"/health", "/health_generate"}:
            return Reply()
        done: dict[str, Callable[[Any], Reply]] = {
            "/tokenize": self._tokenize,
            "/weights_checker": self._checksum,
            "/flush_cache": self._flush,
            "/release_memory_occupation": self._release,
            "/resume_memory_occupation": self._resume,
            "/generate": self._generate,
        }
        return done[path](body) if method == "POST" and path in done else NOT_FOUND

    def _tokenize(self, body: Any) -> Reply:
        ids = self.model.ids(body["prompt"])
        return as_json({"tokens": ids, "count": len(ids), "max_model_len": self.longest()})

    def _flush(self, _body: Any) -> Reply:
        self.cached = {}
        return as_text("Cache flushed.\n")

    def longest(self) -> int:
        return self.model.longest

    def _model_info(self) -> dict[str, Any]:
        said = self.samples["model_info"] | {
            "model_path": self.model.folder,
            "tokenizer_path": self.model.folder,
        }
        return said | self.settings.model_info

    def _server_info(self) -> dict[str, Any]:
        s = self.settings
        said = self.samples["server_info"] | {
            "model_path": self.model.folder,
            "tokenizer_path": self.model.folder,
            "enable_return_hidden_states": s.states_enabled,
            "enable_memory_saver": s.memory_saver,
            "chunked_prefill_size": s.chunk or -1,
        }
        if not self.old:
            said["enable_weights_cpu_backup"] = s.cpu_backup
        return said | s.info

    def _models(self) -> dict[str, Any]:
        found = json.loads(json.dumps(self.samples["models"]))
        found["data"][0] |= {"id": self.model.folder, "root": self.model.folder}
        found["data"][0]["max_model_len"] = self.longest()
        return found

    def _load(self) -> dict[str, Any]:
        counted = self.unsettled > 0
        self.unsettled = max(0, self.unsettled - 1)
        return {"load": self.settings.running + counted}

    def _loads(self) -> dict[str, Any]:
        found = json.loads(json.dumps(self.samples["loads"]))
        found["loads"][0] |= {"num_running_reqs": self.settings.running, "num_waiting_reqs": 0}
        return found

    def _checksum(self, body: Any) -> Reply:
        if body.get("action") != "checksum":
            raise Died  # the other actions overwrite the weights: a client must never send one
        return as_json(self.samples["weights_checker"])

    def _released_by(self, body: Any) -> set[str]:
        """The tags of a request that have an effect here."""
        tags = set((body or {}).get("tags") or ["kv_cache", "weights"])
        works = self.settings.memory_saver and self.settings.defect != "no_effect"
        return tags if works else set()

    def _release(self, body: Any) -> Reply:
        if self.settings.running:
            raise Died  # the scheduler asserts that it is idle
        self.released |= self._released_by(body)
        return as_json(None)

    def _resume(self, body: Any) -> Reply:
        tags = self._released_by(body)
        if not tags <= self.released:
            raise Died  # a KeyError in the scheduler
        self.released -= tags
        return as_json(None)

    def free_memory(self) -> int:
        """Bytes of the imagined GPU that are free."""
        return 1_000_000_000 * (
            1 + 8 * ("kv_cache" in self.released) + 4 * ("weights" in self.released)
        )

    # Encoding

    def _generate(self, body: dict[str, Any]) -> Reply:
        s = self.settings
        wants = body.get("return_hidden_states", False)
        if not self._model_info().get("is_generation", True) and wants:
            raise Died  # an AttributeError in the scheduler
        if wants and not s.states_enabled:
            message = (
                "The server is not configured to return the hidden states. "
                "Please set `--enable-return-hidden-states` to enable this feature."
            )
            return as_json({"object": "error", "message": message, "code": 400}, 400)
        if isinstance(wants, str):
            return as_json({"error": {"message": 'invalid type: string "last"'}}, 400)
        prompts, single = self._prompts(body)
        too_long = [len(ids) for ids in prompts if len(ids) >= self.longest()]
        if too_long:
            message = (
                f"The input ({too_long[0]} tokens) is longer than the model's "
                f"context length ({self.longest()} tokens)."
            )
            return as_json({"error": {"message": message}}, 400)
        with self.lock:
            items = self._compute(prompts, body, single=single)
            self.asked += 1
            self.unsettled = s.settling
            items = spoil(items, s, self.model, self.asked - 1)
        made = [self._object(item, body) for item in items]
        return as_json(made[0] if single else made)

    def _prompts(self, body: dict[str, Any]) -> tuple[list[list[int]], bool]:
        if "input_ids" in body:
            given = body["input_ids"]
            single = not given or not isinstance(given[0], list)
            return ([given] if single else given), single
        given = body["text"]
        single = isinstance(given, str)
        return [self.model.ids(text) for text in ([given] if single else given)], single

    def _per_item(self, body: dict[str, Any], key: str, default: Any, count: int) -> list[Any]:
        value = body.get(key, default)
        return list(value) if isinstance(value, list) else [value] * count

    def _compute(self, prompts: list[list[int]], body: Any, *, single: bool) -> list[Item]:
        count = len(prompts)
        sampling = self._per_item(body, "sampling_params", {}, count)
        keys = self._per_item(body, "extra_key", None, count)
        wants = self._per_item(body, "return_hidden_states", None, count)
        rids = self._per_item(body, "rid", None, count)
        if self.old and len(set(map(bool, wants))) > 1:
            raise Died  # an IndexError in the process that answers
        start = body.get("logprob_start_len", -1) if body.get("return_logprob") else -1
        items = []
        for ids, options, key, wanted, rid in zip(
            prompts, sampling, keys, wants, rids, strict=True
        ):
            new = int(options.get("max_new_tokens", 128))
            item = Item(ids, rid or uuid.uuid4().hex, self.model.greedy(ids, max(1, new)))
            item.wanted, item.new = bool(wanted), new
            item.key = "" if self.old else key or ""  # 0.4.9 does not know it, and says nothing
            item.start = start
            items.append(item)
        split = 1 if self.old and self.settings.first_alone and not single else count
        for group in [items[:split], items[split:]]:
            self._prefill(group)
        return items

    def _prefill(self, group: list[Item]) -> None:
        for item in group:  # looked up before any of the group is inserted
            item.cached = self._longest_prefix(item)
            item.rows = self.model.states(item.ids)[item.cached :]
            item.rows = item.rows[self._in_earlier_chunks(group, item) :]
        if self.old:
            _slice_by_prompt_length(group)
        for item in group:
            self.cached.setdefault(item.key, []).append(item.ids + item.made[:-1])

    def _longest_prefix(self, item: Item) -> int:
        limit = len(item.ids) - 1
        if item.start >= 0:
            limit = min(limit, item.start)
        known = self.cached.get(item.key, [])
        return min(limit, max((_shared(item.ids, other) for other in known), default=0))

    def _in_earlier_chunks(self, group: list[Item], item: Item) -> int:
        size = self.settings.chunk
        if size is None:
            return 0
        before = 0
        for other in group:
            if other is item:
                break
            before += len(other.ids) - other.cached
        end = before + len(item.ids) - item.cached
        last_start = (end - 1) // size * size
        return max(0, last_start - before)

    # Shapes

    def _object(self, item: Item, body: dict[str, Any]) -> dict[str, Any]:
        made = item.made[: item.new] if item.new or not self.old else item.made[:1]
        count = len(item.made) if self.old else len(made)
        meta: dict[str, Any] = {
            "id": item.rid,
            "finish_reason": {"type": "length", "length": item.new},
            "prompt_tokens": len(item.ids) if item.said_tokens is None else item.said_tokens,
        }
        if not self.old:
            meta["weight_version"] = "default"
            meta["num_retractions"] = item.retractions
        if body.get("return_logprob"):
            said = [*item.said_ids, *made] if item.said_ids else [*item.ids, *made]
            triples = self.model.logprobs(said[: len(said) - len(made)], made)
            meta["input_token_logprobs"] = triples[: len(triples) - len(made)]
            meta["output_token_logprobs"] = triples[len(triples) - len(made) :]
            if not self.old:
                meta["output_token_logprobs_length"] = len(made)
        if not self.old:
            meta["reasoning_tokens"] = 0
        meta |= {"completion_tokens": count, "cached_tokens": item.said_cached()}
        if not self.old:
            meta["weight_versions"] = [{"version": "default", "start": 0, "end": count}]
            details = {"device": item.said_cached(), "host": 0}
            meta |= {"cached_tokens_details": details if item.said_cached() else None}
            meta |= {"dp_rank": None}
        meta["e2e_latency"] = 0.01
        if item.wanted and not item.no_key:
            meta["hidden_states"] = self._hidden(item)
        if not self.old:
            meta["response_sent_to_client_ts"] = time.time()
        made_text = self.model.text(made)
        return (
            {"text": made_text} | ({} if self.old else {"output_ids": made}) | {"meta_info": meta}
        )

    def _hidden(self, item: Item) -> list[Any]:
        if item.nothing or (not self.old and item.new == 0):
            return []
        later = [self.model.states(item.ids + item.made[: k + 1])[-1] for k in range(item.new - 1)]
        return [_listed(item.rows, null=item.null), *(row.tolist() for row in later)]


def _listed(rows: np.ndarray, *, null: bool) -> list[list[float | None]]:
    listed = rows.tolist()
    if null:  # what SGLang's JSON writer makes of NaN and infinity
        return [[x if np.isfinite(x) else None for x in row] for row in listed]
    return listed


def _shared(left: list[int], right: list[int]) -> int:
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count


def _slice_by_prompt_length(group: Iterable[Item]) -> None:
    """The defect before 0.5.17: offsets of whole prompts into rows of computed tokens."""
    items = list(group)
    if not items:
        return
    together = np.concatenate([item.rows for item in items])
    offset = 0
    for item in items:
        item.rows = together[offset : offset + len(item.ids)]
        offset += len(item.ids)
