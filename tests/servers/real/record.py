"""Records small real replies of a server as JSON, for the stand-in to be checked against.

    python tests/servers/real/record.py sglang|sglang-old|vllm URL VERSION

Run it on a server that serves nobody else and has just started: it flushes the prefix cache.
The file goes to tests/data/servers; paths of the server's machine are replaced.
"""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import httpx2

DATA = Path(__file__).parents[2] / "data/servers"
SHORT, OTHER, LONGER = "n : Nat", "k : Int\nm : Int", "x y : Real\nh : x < y"
CURE = {"return_logprob": True, "logprob_start_len": 0}
IDS = [[0, 79, 258, 1282], [0, 76, 258, 1282], [0, 76, 258, 1282, 79, 258]]
ONE = {"sampling_params": {"temperature": 0, "max_new_tokens": 1}, "return_hidden_states": True}
GENERATE: dict[str, dict[str, Any]] = {
    "alone, empty cache": ONE | {"text": SHORT},
    "alone, again": ONE | {"text": SHORT},
    "batch of three, warm": ONE | {"text": [SHORT, OTHER, LONGER]},
    "batch of three, logprobs from 0": ONE | {"text": [SHORT, OTHER, LONGER]} | CURE,
    "ids, own rids, logprobs from 0": ONE | {"input_ids": IDS, "rid": ["a", "b", "c"]} | CURE,
    "ids, extra keys": ONE | {"input_ids": IDS, "extra_key": ["ka", "kb", "kc"]},
    "no new token": ONE | {"text": LONGER, "sampling_params": {"max_new_tokens": 0}},
    "two new tokens": ONE
    | {"text": OTHER, "sampling_params": {"temperature": 0, "max_new_tokens": 2}}
    | CURE,
    "too long": ONE | {"input_ids": [0] * 2100},
    "states of the last token": ONE | {"text": SHORT, "return_hidden_states": "last"},
}
EMBED: dict[str, dict[str, Any]] = {
    "float": {"input": [SHORT, OTHER]},
    "ids, float": {"input": IDS},
    "base64": {"input": [SHORT, OTHER], "encoding_format": "base64"},
    "bytes": {"input": IDS, "encoding_format": "bytes", "endianness": "little"},
    "bytes_only": {"input": IDS, "encoding_format": "bytes_only", "endianness": "little"},
    "float16 bytes": {"input": IDS, "encoding_format": "bytes", "embed_dtype": "float16"},
    "normalised": {"input": [SHORT], "use_activation": True},
    "truncated": {"input": [LONGER], "truncate_prompt_tokens": 8},
    "dimensions": {"input": [SHORT], "dimensions": 8},
    "too long": {"input": [0] * 2100},
    "other model": {"input": [SHORT], "model": "other"},
}


def _parsed(reply: httpx2.Response) -> Any:
    kind = reply.headers.get("content-type", "")
    if kind.startswith("application/json"):
        return reply.json()
    return reply.content.hex() if "octet-stream" in kind else reply.text


def _ask(url: str, path: str, body: Any = None) -> dict[str, Any]:
    if body is None:
        reply = httpx2.get(url + path, timeout=60)
    else:
        reply = httpx2.post(url + path, json=body, timeout=300)
    kept = {k: v for k, v in reply.headers.items() if k in {"content-type", "metadata"}}
    saved = {"path": path, "status": reply.status_code, "headers": kept, "reply": _parsed(reply)}
    return saved if body is None else saved | {"request": body}


def _sglang(url: str, *, old: bool) -> dict[str, Any]:
    paths = {"model_info": "/model_info", "server_info": "/server_info", "loads": "/v1/loads"}
    if old:
        paths = {"model_info": "/get_model_info", "server_info": "/get_server_info"}
        paths |= {"loads": "/get_load"}
    info = {name: _ask(url, path)["reply"] for name, path in paths.items()}
    for long in ["internal_states", "cuda_graph_config"]:
        info["server_info"].pop(long, None)
    info["models"] = _ask(url, "/v1/models")["reply"]
    if not old:
        info["weights_checker"] = _ask(url, "/weights_checker", {"action": "checksum"})["reply"]
        info["tokenize"] = _ask(url, "/tokenize", {"prompt": SHORT})["reply"]
    for _ in range(50):
        if httpx2.post(url + "/flush_cache", timeout=60).status_code == 200:
            break
        time.sleep(0.2)
    replies = {}
    for title, body in GENERATE.items():
        replies[title] = _ask(url, "/generate", body)
        time.sleep(0.5)  # so that the cache has what came before
    return {"info": info, "replies": replies}


def _vllm(url: str) -> dict[str, Any]:
    info = {"models": _ask(url, "/v1/models")["reply"], "version": _ask(url, "/version")["reply"]}
    info["server_info"] = _ask(url, "/server_info?config_format=json")["reply"]
    for private in ["vllm_env", "system_env"]:
        info["server_info"].pop(private, None)
    info["is_sleeping"] = _ask(url, "/is_sleeping")["reply"]
    name = info["models"]["data"][0]["id"]
    info["tokenize"] = _ask(url, "/tokenize", {"model": name, "prompt": SHORT})["reply"]
    lines = _ask(url, "/metrics")["reply"].splitlines()
    wanted = ("vllm:num_requests_running", "vllm:cache_config_info")
    info["metrics"] = [line for line in lines if line.startswith(wanted)]
    replies = {}
    for title, body in EMBED.items():
        replies[title] = _ask(url, "/v1/embeddings", {"model": name} | body)
    for title in ["float", "bytes"]:
        body = {"model": name, "task": "embed"} | EMBED[title]
        replies[f"pooling, {title}"] = _ask(url, "/pooling", body)
    replies["pooling, token_embed"] = _ask(
        url, "/pooling", {"model": name, "input": [SHORT], "task": "token_embed"}
    )
    return {"info": info, "replies": replies}


def main() -> None:
    name, url, version = sys.argv[1:4]
    found = _vllm(url) if name == "vllm" else _sglang(url, old=name == "sglang-old")
    model = found["info"]["models"]["data"][0]["root"]
    source = f"a real {name} server, version {version}, on a CPU; tests/servers/real/record.py"
    text = json.dumps({"source": source} | found, ensure_ascii=False)
    text = re.sub(
        r"/[^\s\"\\]*/site-packages", "site-packages", text.replace(model, "/models/llama")
    )
    (DATA / f"{name}.json").write_text(text + "\n")
    sys.stdout.write(f"{len(text)} characters in {DATA / name}.json\n")


if __name__ == "__main__":
    main()
