"""What the stand-in answers with, and the defects that need no knowledge of the server's kind."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Reply:
    """One HTTP answer."""

    status: int = 200
    body: bytes = b""
    kind: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


def as_json(value: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value, ensure_ascii=False).encode())


def as_text(text: str, status: int = 200) -> Reply:
    return Reply(status, text.encode(), "text/plain; charset=utf-8")


NOT_FOUND = as_json({"detail": "Not Found"}, 404)


@dataclass
class Settings:
    """What a test can set; every `POST /_stand_in` begins from the defaults again.

    Attributes:
        kind: "sglang" (0.5.23), "sglang-old" (0.4.9) or "vllm" (0.32.0).
        model: Folder of a Hugging Face causal LM.
        defect: Name of a defect of this kind of server; empty for right replies.
        after: Right replies to encoding requests before the defect begins.
        times: Replies with the defect, then right ones again; none for all.
        items: Indices within a request that have the defect; none for all.
        seconds: How long `slow` waits, and `hang` and `asleep` at most.
        info: Merged over what the server says of its own options.
        model_info: Merged over `/model_info` (SGLang).
        warm: Prompts, as token ids, that are in the prefix cache from the start (SGLang).
        chunk: `chunked_prefill_size` (SGLang); none for unlimited.
        first_alone: Whether the first prompt of a request is prefilled before the others come.
        states_enabled: Whether `--enable-return-hidden-states` was given (SGLang).
        memory_saver: `--enable-memory-saver` or `--enable-sleep-mode`: memory can be released.
        cpu_backup: `--enable-weights-cpu-backup` (SGLang).
        running: What the server says of its running requests.
        settling: Replies of `/get_load` after a request that still count it (0.4.9).
        pooling: "mean" or "last" (vLLM).
        normalize: Whether vectors have norm 1 where the request does not say.
        dev_mode: `VLLM_SERVER_DEV_MODE=1` (vLLM).
        replay: Title of a recorded reply (tests/data/servers), given to every encoding request.
    """

    kind: str = "sglang"
    model: str = ""
    defect: str = ""
    after: int = 0
    times: int | None = None
    items: list[int] | None = None
    seconds: float = 600.0
    info: dict[str, Any] = field(default_factory=dict)
    model_info: dict[str, Any] = field(default_factory=dict)
    warm: list[list[int]] = field(default_factory=list)
    chunk: int | None = None
    first_alone: bool = True
    states_enabled: bool = True
    memory_saver: bool = False
    cpu_backup: bool = False
    running: int = 0
    settling: int = 0
    pooling: str = "mean"
    normalize: bool = False
    dev_mode: bool = False
    replay: str = ""


class Died(Exception):  # noqa: N818 - it is an event, not an error of the stand-in
    """The server ends: no answer to this request, and none to later ones."""


@dataclass
class Cut(Exception):  # noqa: N818
    """The connection ends in the middle of a reply."""

    reply: Reply


# Name: what the user of the server sees.
OF_CONNECTIONS = {
    "hang": "no answer before `seconds` have passed, then none at all",
    "slow": "right, after `seconds`",
    "death": "half of the reply's body, then the server is gone",
    "gone": "the server is gone without an answer",
    "cut_reply": "half of the reply's body; the server lives",
    "error_500": "status 500",
    "error_503": "status 503",
    "not_json": "status 200 and a page that is not JSON",
}
