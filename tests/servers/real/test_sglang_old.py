"""A real SGLang 0.4.9, which answers wrongly: each defect, what cures it, and what ends it.

The tests run in the order of the file: the last ones end the server.
"""

import json
import shutil
import time
from pathlib import Path

import httpx2
import numpy as np
import pytest

from ebm_encode import Encoder
from ebm_encode.errors import ServerError, UnsafeServerError
from servers.real.launch import FLOAT32, SGLANG
from servers.real.proxy import changed, without_cure
from servers.real.reference import near, prefill

pytestmark = pytest.mark.timeout(1500)  # a server takes minutes to start on a busy machine
ONE = {"temperature": 0, "max_new_tokens": 1}
LOGPROBS = {"return_logprob": True, "logprob_start_len": 0}
SHORT = list(range(6))


@pytest.fixture(scope="session")
def served_model(llama, tmp_path_factory):
    """A copy with a tokenizer class that transformers 4 knows."""
    folder = tmp_path_factory.mktemp("older") / "llama"
    shutil.copytree(llama, folder)
    config = Path(folder) / "tokenizer_config.json"
    told = json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.write_text(json.dumps(told))
    return str(folder)


@pytest.fixture(scope="module")
def server(start, served_model):
    with start("sglang-old", served_model, *SGLANG, *FLOAT32) as found:
        yield found


@pytest.fixture
def flushed(server):
    """The server with an empty prefix cache."""
    for _ in range(50):
        if server.post("/flush_cache", {}).status_code == 200:
            time.sleep(0.5)
            return server
        time.sleep(0.2)
    pytest.fail("the cache cannot be flushed")


@pytest.fixture
def asked(server, reference):
    """A function that asks for states of texts by index: verdicts, and the reply's items."""

    def ask(which, **more):
        body = {"input_ids": [reference.ids[i] for i in which], "sampling_params": ONE}
        reply = server.post("/generate", body | {"return_hidden_states": True} | more)
        assert reply.status_code == 200, reply.text
        items = reply.json()
        rows = [prefill(item) for item in items]
        return [reference.verdict(i, r) for i, r in zip(which, rows, strict=True)], items

    return ask


@pytest.fixture
def told(reference, note):
    """A function that notes what came for each text."""

    def tell(title, which, items):
        for i, item in zip(which, items, strict=True):
            rows, whole = prefill(item), len(reference.ids[i])
            described = reference.described(i, rows)
            note(f"SGLang 0.4.9, {title}: {len(rows)} rows of {whole}: {described}")

    return tell


# What the server itself does, through plain requests


def test_it_says_its_version_and_has_no_newer_endpoints(server, note):
    said = server.get("/get_server_info").json()
    assert (said["version"], said["dtype"]) == ("0.4.9", "float32")
    absent = ["/model_info", "/server_info", "/v1/loads", "/version"]
    assert [server.get(path).status_code for path in absent] == [404] * len(absent)
    note(f"SGLang {said['version']}: /get_server_info says dtype {said['dtype']}")


@pytest.mark.usefixtures("flushed")
def test_a_warm_cache_cuts_a_prompt(asked, told):
    assert asked([0])[0] == ["right"]
    for title, which in [("the same prompt again", [0]), ("another prompt, warm", [1])]:
        verdicts, items = asked(which)
        assert verdicts == ["cut"]
        told(title, which, items)


@pytest.mark.usefixtures("flushed")
def test_a_batch_has_rows_of_other_prompts_at_the_right_count(asked, told, reference, note):
    asked([7])  # so that the first token is cached: with an empty cache it depends on timing
    verdicts, items = asked(SHORT)
    told("six prompts, warm", SHORT, items)
    rows = [prefill(item) for item in items]
    wrong = [i for i in SHORT if verdicts[i] == "foreign" and len(rows[i]) == len(reference.ids[i])]
    assert wrong
    for i in wrong:
        ours, theirs = reference.mean(i), rows[i].mean(0)
        cosine = float(ours @ theirs) / float((ours @ ours) * (theirs @ theirs)) ** 0.5
        note(f"  of the right count, wrong: cosine of the mean with the right one {cosine:.5f}")
    verdicts, items = asked(SHORT)
    told("the same six again", SHORT, items)
    assert "empty" in verdicts
    assert "right" not in verdicts


@pytest.mark.usefixtures("flushed")
def test_logprobs_from_0_give_whole_states_and_the_ids(asked, reference, note):
    for which in [[0], SHORT, [0, 0, 6, 7], list(range(9))]:
        for _ in range(2):
            verdicts, items = asked(which, **LOGPROBS)
            assert verdicts == ["right"] * len(which)
            for i, item in zip(which, items, strict=True):
                triples = item["meta_info"]["input_token_logprobs"]
                assert [token for _, token, _ in triples] == reference.ids[i]
    note("SGLang 0.4.9, idle, logprob_start_len 0: right, batches of 1 to 9")


def test_an_extra_key_is_ignored_without_a_word(asked):
    asked([0])
    verdicts, items = asked([0], extra_key=["a key that nobody used"])
    assert verdicts == ["cut"]
    assert items[0]["meta_info"]["cached_tokens"] > 0


def test_release_says_200_and_releases_nothing(server, asked):
    assert not server.get("/get_server_info").json()["enable_memory_saver"]
    assert server.post("/release_memory_occupation", {}).status_code == 200
    assert asked([0], **LOGPROBS)[0] == ["right"]


# This package's client


def test_it_is_refused_where_others_may_use_it(server, served_model, note):
    with pytest.raises(UnsafeServerError, match="other people's prompts") as error:
        Encoder.load(served_model, backend="sglang", server=server.url, dtype="float32")
    note(f"ebm-encode with SGLang 0.4.9: {error.value}")


def test_nobody_else_uses_it_and_its_embeddings_are_those_of_plain_transformers(
    server, served_model, many, means, note
):
    encoder = Encoder.load(
        served_model,
        backend="sglang",
        server=server.url,
        server_exclusive=True,
        dtype="float32",
    )
    got = encoder.encode(many)
    worst = float(np.abs(got - means).max())
    note(f"ebm-encode with SGLang 0.4.9, exclusive: 100 states within {worst:.1e}")
    assert worst < 2e-5


@pytest.mark.usefixtures("flushed")
def test_the_doctor_finds_it_bad(server, served_model, doctor):
    code, found = doctor(server.url)
    assert code == 1
    assert "rows of other people's prompts" in found["its version and settings"]["answer"]
    model = ["--model-path", served_model, "--dtype", "float32"]
    code, found = doctor(server.url, "--server-exclusive", *model)
    assert code == 0, "right for whoever has it to himself, and asks as this package does"
    assert not found["a batch of six, as most clients ask"]["right"]


@pytest.mark.parametrize("version", ["0.4.9", "0.5.23"])
def test_its_wrong_replies_are_caught(server, served_model, note, version):
    """The cure is taken out of the requests; as 0.5.23, it is also sent batches."""

    def said(path, told):
        return told | {"version": version} if path == "/get_server_info" else told

    with (
        changed(server.url, request=without_cure, reply=said) as url,
        pytest.raises((ServerError, UnsafeServerError)) as error,
    ):
        Encoder.load(
            served_model,
            backend="sglang",
            server=url,
            server_exclusive=version == "0.4.9",
            dtype="float32",
        )
    note(f"ebm-encode with SGLang 0.4.9 as {version}, without the cure: {error.value}")


# What ends the server: keep these last


def test_other_peoples_states_pass_every_check_of_the_reply(server, reference, note):
    """Behind prompts that ask for no states, the rows are those of one of these prompts."""
    seen = {"right": 0, "foreign": 0, "other": 0}
    own = reference.ids[0]
    others = [reference.ids[8] + reference.ids[8][1:600], *(reference.ids[i] for i in (5, 4, 3, 2))]
    for _ in range(60):
        body = {"input_ids": [*others, own], "return_hidden_states": [False] * 5 + [True]}
        # The one with states ends first and alone: if it did not, the server would end.
        body["sampling_params"] = [ONE | {"max_new_tokens": 12}] * 5 + [ONE]
        reply = server.post("/generate", body | LOGPROBS)
        meta = reply.json()[-1]["meta_info"]
        assert (meta["cached_tokens"], meta["prompt_tokens"]) == (0, len(own))
        rows = prefill(reply.json()[-1])
        verdict = reference.verdict(0, rows)
        passes = len(rows) == len(own) and near(rows[0], reference.states[0][0])
        seen[verdict if verdict == "right" or (verdict == "foreign" and passes) else "other"] += 1
        if seen["foreign"] == 3:
            break
    note(f"SGLang 0.4.9, behind prompts without states, with the cure: {seen}")
    note("  foreign: right count, cached_tokens 0, right row 0, and another prompt's rows")
    assert seen["foreign"]


def test_states_for_some_prompts_of_a_request_end_the_server(server, reference, note):
    body = {"input_ids": reference.ids[:3], "return_hidden_states": [True, False, True]}
    with pytest.raises(httpx2.TransportError) as error:
        server.post("/generate", body | {"sampling_params": ONE})
    note(f"SGLang 0.4.9, return_hidden_states [true, false, true]: {error.typename}, and it ends")
    end = time.monotonic() + 60
    while server.alive() and time.monotonic() < end:
        time.sleep(0.5)
    with pytest.raises(httpx2.TransportError):
        server.get("/get_model_info")
