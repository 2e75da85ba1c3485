"""The stand-in against replies recorded from real servers; each defect seen from outside."""

import base64
import functools
import json
import subprocess
import sys
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
import transformers

from servers.stand_in import TESTS, replies, sglang_defects, vllm

RECORDED = {
    kind: json.loads((TESTS / f"data/servers/{kind}.json").read_text())
    for kind in ["sglang", "sglang-old", "vllm"]
}
ASK = {"return_hidden_states": True, "sampling_params": {"temperature": 0, "max_new_tokens": 1}}
CURE = {"return_logprob": True, "logprob_start_len": 0}
IDS = [[0, 79, 258, 1282, 76, 258], [0, 76, 258, 1282], [0, 79, 258, 1282, 90, 91, 92]]


@pytest.fixture(scope="module")
def llama64(make_model):
    return make_model("llama", head_dim=64)  # vLLM's CPU attention has no head of 16


@pytest.fixture
def get(stand_in):
    return stand_in.http.get


@pytest.fixture
def post(stand_in):
    def send(url, path, body, timeout=60):
        return stand_in.http.post(url + path, json=body, timeout=timeout)

    return send


@functools.cache
def loaded(folder):
    return transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)


def right_states(folder, ids):
    with torch.no_grad():
        return loaded(folder)(torch.tensor([ids])).last_hidden_state[0].numpy()


def shape(value):
    """The keys and the types of a JSON value; numbers are alike."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return "number" if isinstance(value, int | float) else type(value).__name__


def items(reply):
    found = reply if isinstance(reply, list) else [reply]
    return [item["meta_info"] for item in found]


def rows(meta):
    return [np.asarray(entry, np.float32) for entry in meta["hidden_states"]]


@pytest.mark.parametrize("kind", ["sglang", "sglang-old"])
def test_generate_answers_what_the_real_server_answered(stand_in, post, llama, kind):
    recorded = RECORDED[kind]["replies"]
    for first_alone in [True, False]:
        url = stand_in.play(kind, llama, first_alone=first_alone)
        equal = []
        for title, seen in recorded.items():
            reply = post(url, seen["path"], seen["request"])
            assert reply.status_code == seen["status"], title
            if seen["status"] != 200:
                continue
            same = shape(reply.json()) == shape(seen["reply"])
            equal.append(same)
            if not same:
                assert kind == "sglang-old", title
                continue
            for got, was in zip(items(reply.json()), items(seen["reply"]), strict=True):
                counts = ["prompt_tokens", "cached_tokens", "completion_tokens", "finish_reason"]
                assert {k: got[k] for k in counts} == {k: was[k] for k in counts}, title
                for ours, theirs in zip(rows(got), rows(was), strict=True):
                    np.testing.assert_allclose(ours, theirs, atol=2e-5, err_msg=title)
                if "input_token_logprobs" in was:
                    ours, theirs = got["input_token_logprobs"], was["input_token_logprobs"]
                    assert [t[1:] for t in ours] == [t[1:] for t in theirs]
                    np.testing.assert_allclose(
                        [t[0] for t in ours[1:]], [t[0] for t in theirs[1:]], atol=1e-4
                    )
        if first_alone is (kind == "sglang"):
            # When these were recorded, the prompts of a request were prefilled together.
            assert all(equal)


@pytest.mark.parametrize(
    ("kind", "paths"),
    [
        ("sglang", ["/model_info", "/get_model_info", "/server_info", "/get_server_info"]),
        ("sglang", ["/v1/models", "/v1/loads"]),
        ("sglang-old", ["/get_model_info", "/get_server_info", "/v1/models", "/get_load"]),
        ("vllm", ["/version", "/v1/models", "/server_info?config_format=json", "/is_sleeping"]),
    ],
)
def test_what_servers_say_of_themselves(stand_in, get, llama, kind, paths):
    more = {"dev_mode": True} if kind == "vllm" else {}
    url = stand_in.play(kind, llama, **more)
    names = {"v1/models": "models", "v1/loads": "loads", "get_load": "loads"}
    for path in paths:
        name = path.strip("/").split("?")[0]
        name = names.get(name, name.removeprefix("get_"))
        reply = get(url + path)
        assert reply.status_code == 200
        told, was = reply.json(), RECORDED[kind]["info"][name]
        assert shape(told) == shape(was)
        text = json.dumps(told).replace(llama, "/models/llama")
        ours = json.loads(text)
        if name == "server_info" and kind != "vllm":
            changed = {k for k in was if ours[k] != was[k]}
            assert changed <= {"chunked_prefill_size"}


@pytest.mark.parametrize(
    ("kind", "absent"),
    [
        ("sglang", ["/version", "/get_load", "/info", "/is_sleeping"]),
        ("sglang-old", ["/model_info", "/server_info", "/v1/loads", "/version", "/info"]),
        ("vllm", ["/model_info", "/get_model_info", "/server_info", "/is_sleeping", "/info"]),
    ],
)
def test_what_servers_do_not_know(stand_in, get, llama, kind, absent):
    url = stand_in.play(kind, llama)
    assert [get(url + path).status_code for path in absent] == [404] * len(absent)


def test_embeddings_are_what_the_real_server_answered(stand_in, post, llama64):
    url = stand_in.play("vllm", llama64)
    for title, seen in RECORDED["vllm"]["replies"].items():
        body = seen["request"]
        if body["model"] == "/models/llama":
            body = body | {"model": llama64}
        reply = post(url, seen["path"], body)
        assert reply.status_code == seen["status"], title
        if seen["status"] != 200:
            assert reply.json()["error"].keys() == seen["reply"]["error"].keys(), title
            continue
        assert reply.headers["content-type"] == seen["headers"]["content-type"], title
        if isinstance(seen["reply"], str):
            half = body.get("embed_dtype") == "float16"
            dtype = "<f2" if half else "<f4"
            was = np.frombuffer(bytes.fromhex(seen["reply"]), dtype).astype(np.float32)
            got = np.frombuffer(reply.content, dtype).astype(np.float32)
            np.testing.assert_allclose(got, was, atol=2e-3 if half else 2e-5, err_msg=title)
            metas = [x.get("metadata", "null") for x in [reply.headers, seen["headers"]]]
            assert shape(json.loads(metas[0])) == shape(json.loads(metas[1])), title
            continue
        assert shape(reply.json()) == shape(seen["reply"]), title
        assert reply.json()["usage"] == seen["reply"]["usage"], title
        key = "data" if seen["path"] == "/pooling" else "embedding"
        for ours, theirs in zip(reply.json()["data"], seen["reply"]["data"], strict=True):
            both = [x[key] for x in [ours, theirs]]
            if isinstance(both[0], str):
                both = [np.frombuffer(base64.b64decode(x), "<f4") for x in both]
            np.testing.assert_allclose(*both, atol=2e-5, err_msg=title)


def states_of(reply):
    return [meta["hidden_states"] for meta in items(reply.json())]


@pytest.mark.parametrize("defect", sorted({*sglang_defects.EACH, *sglang_defects.WHOLE}))
def test_each_defect_of_states_changes_the_reply(stand_in, post, llama, defect):
    body = ASK | CURE | {"input_ids": IDS, "rid": ["a", "b", "c"]}
    right = post(stand_in.play("sglang", llama), "/generate", body)
    for meta, ids in zip(items(right.json()), IDS, strict=True):
        np.testing.assert_allclose(rows(meta)[0], right_states(llama, ids), atol=1e-6)
    url = stand_in.play("sglang", llama, defect=defect, after=1, times=1)
    seen = [json.loads(post(url, "/generate", body).content) for _ in range(3)]

    def told(reply):
        times = {"e2e_latency", "response_sent_to_client_ts"}
        return json.dumps(
            [{k: v for k, v in meta.items() if k not in times} for meta in items(reply)]
        )

    assert told(seen[0]) == told(seen[2]) == told(right.json())
    assert told(seen[1]) != told(seen[0])


def test_defects_that_counting_cannot_see(stand_in, post, llama):
    body = ASK | CURE | {"input_ids": IDS}
    for defect, right_rows in [("foreign_tail", 0), ("foreign_states", 1), ("scaled", 0)]:
        url = stand_in.play("sglang", llama, defect=defect)
        for meta, ids in zip(items(post(url, "/generate", body).json()), IDS, strict=True):
            assert meta["prompt_tokens"] == len(ids)
            assert meta["cached_tokens"] == 0
            own, came = right_states(llama, ids), rows(meta)[0]
            assert came.shape == own.shape
            equal = np.abs(came - own).max(1) < 1e-4
            assert equal.sum() == right_rows
            assert equal[:1].all() == bool(right_rows)


def test_an_item_alone_can_have_the_defect(stand_in, post, llama):
    url = stand_in.play("sglang", llama, defect="zeros", items=[1])
    came = states_of(post(url, "/generate", ASK | CURE | {"input_ids": IDS}))
    assert [bool(np.any(states)) for (states,) in came] == [True, False, True]


def test_a_warm_cache_cuts_prompts_and_each_cure_helps(stand_in, post, llama):
    for kind, cures in [("sglang", [CURE, {"extra_key": "a"}]), ("sglang-old", [CURE])]:
        url = stand_in.play(kind, llama, warm=[IDS[0]])
        (cut,) = items(post(url, "/generate", ASK | {"input_ids": IDS[0]}).json())
        assert (cut["cached_tokens"], len(cut["hidden_states"][0])) == (5, 1)
        for cure in cures:
            (whole,) = items(post(url, "/generate", ASK | cure | {"input_ids": IDS[0]}).json())
            np.testing.assert_allclose(rows(whole)[0], right_states(llama, IDS[0]), atol=1e-6)


def test_a_chunked_prompt_comes_without_its_first_chunks(stand_in, post, llama):
    url = stand_in.play("sglang", llama, chunk=8)
    (meta,) = items(post(url, "/generate", ASK | CURE | {"input_ids": IDS[0] * 2}).json())
    assert (meta["prompt_tokens"], meta["cached_tokens"]) == (12, 0)
    whole = right_states(llama, IDS[0] * 2)
    np.testing.assert_allclose(rows(meta)[0], whole[8:], atol=1e-6)


def vectors(reply):
    return [item["embedding"] for item in json.loads(reply.content)["data"]]


@pytest.mark.parametrize("defect", sorted({*vllm.EACH, *vllm.WHOLE}))
def test_each_defect_of_embeddings_changes_the_reply(stand_in, post, llama, defect):
    longer = [ids * 3 for ids in IDS]
    url = stand_in.play("vllm", llama, defect=defect, after=1, times=1)
    seen = [json.loads(post(url, "/v1/embeddings", {"input": longer}).content) for _ in range(3)]
    told = [json.dumps([reply["data"], reply["usage"]]) for reply in seen]
    assert told[0] == told[2] != told[1]
    wanted = [right_states(llama, ids).mean(0) for ids in longer]
    np.testing.assert_allclose([d["embedding"] for d in seen[0]["data"]], wanted, atol=1e-6)


def test_the_defaults_of_vllm_are_the_last_token_of_norm_1(stand_in, post, llama):
    url = stand_in.play("vllm", llama, pooling="last", normalize=True)
    (came,) = vectors(post(url, "/v1/embeddings", {"input": [IDS[0]]}))
    last = right_states(llama, IDS[0])[-1]
    np.testing.assert_allclose(came, last / np.linalg.norm(last), atol=1e-6)


def test_defects_of_connections(stand_in, get, post, llama):
    body = ASK | {"input_ids": IDS[0]}
    for defect, status in [("error_500", 500), ("error_503", 503), ("not_json", 200)]:
        url = stand_in.play("sglang", llama, defect=defect, times=1)
        assert post(url, "/generate", body).status_code == status
        assert "meta_info" in post(url, "/generate", body).json()
    for defect in ["death", "gone"]:
        url = stand_in.play("sglang", llama, defect=defect)
        for path in ["/generate", "/model_info"]:
            with pytest.raises(httpx2.RemoteProtocolError):
                post(url, path, body)
        assert stand_in.status()["dead"]
    url = stand_in.play("sglang", llama, defect="hang", seconds=30)
    with pytest.raises(httpx2.ReadTimeout):
        post(url, "/generate", body, timeout=0.5)
    assert get(url + "/health").status_code == 200
    url = stand_in.play("sglang", llama, defect="slow", seconds=0.1)
    assert "meta_info" in post(url, "/generate", body).json()
    assert {*replies.OF_CONNECTIONS} == {
        *["hang", "slow", "death", "gone", "cut_reply", "error_500", "error_503", "not_json"]
    }


def test_requests_that_end_a_real_server_end_this_one(stand_in, post, llama):
    ending = [
        ("sglang", {"model_info": {"is_generation": False}}, "/generate", ASK),
        ("sglang-old", {}, "/generate", ASK | {"return_hidden_states": [True, False, True]}),
        ("sglang", {}, "/weights_checker", {"action": "reset_tensors"}),
        ("sglang", {"memory_saver": True}, "/resume_memory_occupation", {}),
        ("sglang", {"running": 1}, "/release_memory_occupation", {}),
    ]
    for kind, settings, path, body in ending:
        url = stand_in.play(kind, llama, **settings)
        with pytest.raises(httpx2.RemoteProtocolError):
            post(url, path, body | {"input_ids": IDS})
        assert stand_in.status()["dead"]


@pytest.mark.parametrize(
    ("kind", "saver", "defect", "freed"),
    [
        ("sglang", True, "", True),
        ("sglang", False, "", False),
        ("sglang", True, "no_effect", False),
        ("vllm", True, "", True),
        ("vllm", False, "", False),
        ("vllm", True, "no_effect", False),
    ],
)
def test_memory_is_released_or_only_said_to_be(
    stand_in, get, post, llama, kind, saver, defect, freed
):
    url = stand_in.play(kind, llama, memory_saver=saver, defect=defect, dev_mode=kind == "vllm")
    before = stand_in.status()["free_memory"]
    pair = ["/sleep", "/wake_up"]
    if kind == "sglang":
        pair = ["/release_memory_occupation", "/resume_memory_occupation"]
    assert post(url, pair[0], {}).status_code == 200
    assert (stand_in.status()["free_memory"] > before) is freed
    if kind == "vllm":
        assert get(url + "/is_sleeping").json() == {"is_sleeping": True}
        with pytest.raises(httpx2.ReadTimeout):
            post(url, "/v1/embeddings", {"input": [IDS[0]]}, timeout=0.5)
    assert post(url, pair[1], {}).status_code == 200
    assert stand_in.status()["free_memory"] == before


def test_a_sleeping_vllm_is_healthy_and_hangs(stand_in, get, post, llama):
    url = stand_in.play("vllm", llama, defect="asleep", seconds=5)
    assert get(url + "/health").status_code == 200
    with pytest.raises(httpx2.ReadTimeout):
        post(url, "/v1/embeddings", {"input": [IDS[0]]}, timeout=0.5)


def test_the_record_of_requests_begins_with_each_play(stand_in, get, post, llama):
    url = stand_in.play("sglang", llama)
    get(url + "/model_info")
    post(url, "/generate", ASK | {"input_ids": IDS[0]})
    seen = stand_in.requests()
    assert [(r["method"], r["path"]) for r in seen] == [
        ("GET", "/model_info"),
        ("POST", "/generate"),
    ]
    assert seen[1]["body"]["input_ids"] == IDS[0]
    stand_in.play("sglang", llama)
    assert stand_in.requests() == []


@pytest.mark.parametrize(
    ("kind", "path", "title"),
    [
        ("sglang-old", "/generate", "batch of three, warm"),
        ("sglang", "/generate", "too long"),
        ("vllm", "/v1/embeddings", "bytes"),
    ],
)
def test_a_recorded_reply_is_given_as_it_was(stand_in, post, llama, kind, path, title):
    url, seen = stand_in.play(kind, llama, replay=title), RECORDED[kind]["replies"][title]
    reply = post(url, path, {"input": "anything"})
    assert reply.status_code == seen["status"]
    was = reply.content.hex() if isinstance(seen["reply"], str) else reply.json()
    assert was == seen["reply"]
    assert reply.headers.get("metadata") == seen["headers"].get("metadata")


def test_a_misspelt_defect_is_refused(stand_in, llama):
    for bad in [{"defect": "zeroes"}, {"warmth": 1}]:
        with pytest.raises(ValueError, match=r"zeroes|warmth"):
            stand_in.play("sglang", llama, **bad)


def test_the_process_ends_with_the_one_that_started_it():
    code = "import os, servers.stand_in as s; c = s.started(); print(c.__enter__().url, flush=True)"
    code += "; os._exit(0)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(TESTS), "PATH": str(Path(sys.executable).parent)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    url = done.stdout.strip()
    for _ in range(100):
        try:
            httpx2.get(url + "/_stand_in", timeout=5)
        except httpx2.TransportError:
            return
    pytest.fail("the stand-in outlives its starter")
