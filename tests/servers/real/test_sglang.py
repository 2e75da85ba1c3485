"""A real SGLang 0.5.23: right with a cure, batches too; cut on a warm cache without one."""

import json

import numpy as np
import pyarrow.parquet as pq
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


@pytest.fixture(scope="module")
def server(start, served_model):
    with start("sglang", served_model, *SGLANG, *FLOAT32) as found:
        yield found


@pytest.fixture(scope="module")
def small_chunks(start, served_model):
    """One that was given no dtype, and prefills 512 tokens at a time."""
    with start("sglang", served_model, *SGLANG, "--chunked-prefill-size", "512") as found:
        yield found


@pytest.fixture
def asked(server, reference):
    """A function that asks for states of texts by index: verdicts, and the reply's items."""

    def ask(which, at=server, **more):
        body = {"input_ids": [reference.ids[i] for i in which], "sampling_params": ONE}
        reply = at.post("/generate", body | {"return_hidden_states": True} | more)
        assert reply.status_code == 200, reply.text
        items = reply.json()
        rows = [prefill(item) for item in items]
        return [reference.verdict(i, r) for i, r in zip(which, rows, strict=True)], items

    return ask


def keys(count):
    """Keys of the prefix cache that nobody used before."""
    keys.made = getattr(keys, "made", 0) + count
    return [f"k{keys.made - i}" for i in range(count)]


# What the server itself does, through plain requests


def test_it_says_its_version_and_options(server, note):
    told = server.get("/server_info").json()
    assert (told["version"], told["dtype"]) == ("0.5.23", "float32")
    assert told["enable_return_hidden_states"]
    assert server.get("/model_info").json()["is_generation"]
    note(f"SGLang {told['version']}: /server_info says dtype {told['dtype']}")


def test_a_warm_cache_cuts_every_prompt_without_a_cure(asked, reference, note):
    asked(SHORT)
    for which in [[0], [1], SHORT]:
        verdicts, items = asked(which)
        assert verdicts == ["cut"] * len(which)
        rows = [len(prefill(item)) for item in items]
        whole = [len(reference.ids[i]) for i in which]
        assert all(
            r == w - item["meta_info"]["cached_tokens"]
            for r, w, item in zip(rows, whole, items, strict=True)
        )
        note(f"SGLang 0.5.23, warm, no cure: {rows} rows for prompts of {whole} tokens")


def test_an_extra_key_gives_whole_states(asked, reference, note):
    for which in [[0], SHORT, [0, 0, 6, 7], list(range(9))]:
        for turn in range(2):
            verdicts, items = asked(which, extra_key=keys(len(which)))
            assert verdicts == ["right"] * len(which), turn
            assert [item["meta_info"]["cached_tokens"] for item in items] == [0] * len(which)
    note(f"SGLang 0.5.23, extra_key: right, batches of 1 to 9, {len(reference.ids[8])} tokens")


def test_logprobs_from_0_give_whole_states_and_the_ids(asked, reference, note):
    for which in [[0], SHORT, [0, 0, 6, 7]]:
        for _ in range(2):
            verdicts, items = asked(which, **LOGPROBS)
            assert verdicts == ["right"] * len(which)
            for i, item in zip(which, items, strict=True):
                triples = item["meta_info"]["input_token_logprobs"]
                assert [token for _, token, _ in triples] == reference.ids[i]
    note("SGLang 0.5.23, logprob_start_len 0: right, batches too")


def test_one_key_for_two_requests_cuts_again(asked):
    same = keys(6)
    assert asked(SHORT, extra_key=same)[0] == ["right"] * 6
    assert asked(SHORT, extra_key=same)[0] == ["cut"] * 6


def test_no_new_token_gives_no_states(server, reference):
    body = {"input_ids": reference.ids[0], "return_hidden_states": True}
    reply = server.post("/generate", body | {"sampling_params": ONE | {"max_new_tokens": 0}})
    assert reply.json()["meta_info"]["hidden_states"] == []


def test_dtype_is_auto_where_none_was_given(small_chunks, note):
    told = small_chunks.get("/server_info").json()
    note(f"SGLang 0.5.23 without --dtype: /server_info says dtype {told['dtype']}")
    assert told["dtype"] == "auto"


def test_a_prompt_longer_than_the_chunk_comes_without_its_first_chunks(
    small_chunks, asked, reference, note
):
    long = 8
    _, items = asked([long], at=small_chunks, **LOGPROBS)
    (rows,) = [prefill(item) for item in items]
    whole = len(reference.ids[long])
    assert len(rows) == whole % 512
    assert items[0]["meta_info"]["cached_tokens"] == 0
    note(f"SGLang 0.5.23, --chunked-prefill-size 512: {len(rows)} rows of {whole}, cached_tokens 0")


def test_a_float32_model_without_dtype_runs_in_float16(small_chunks, asked, reference, note):
    _, items = asked([0], at=small_chunks, **LOGPROBS)
    (rows,) = [prefill(item) for item in items]
    apart = float(np.abs(rows - reference.states[0]).max())
    assert np.array_equal(rows, rows.astype(np.float16).astype(np.float32))
    assert not near(rows, reference.states[0])
    note(f"  float32 model: its states are values of float16, up to {apart:.0e} from float32")


# This package's client


def test_an_encoder_gives_the_embeddings_of_plain_transformers(
    server, served_model, many, means, note
):
    encoder = Encoder.load(
        served_model, backend="sglang", server=server.url, dtype="float32", batch_size=32
    )
    assert encoder.choice.engine.name == "sglang"
    worst = 0.0
    for _ in range(2):  # the second time its prefix cache is full of these states
        worst = max(worst, float(np.abs(encoder.encode(many) - means).max()))
    note(f"ebm-encode with SGLang 0.5.23: 100 states within {worst:.1e} of plain transformers")
    assert worst < 2e-5


def test_a_cache_made_with_it_has_the_embeddings_of_plain_transformers(
    server, served_model, run_cli, reference, tmp_path
):
    source, output = tmp_path / "states.jsonl", tmp_path / "out.parquet"
    source.write_text("".join(json.dumps({"state_pp": t}) + "\n" for t in reference.texts))
    code, out, err = run_cli(
        "encode",
        *("--model-path", served_model, "--trajectories", source, "--output", output),
        *("--backend", "sglang", "--server", server.url, "--dtype", "float32", "--json"),
    )
    assert code == 0, err
    assert json.loads(out)
    table = pq.read_table(output).to_pydict()
    found = dict(zip(table["state_pp"], table["embedding"], strict=True))
    for i, text in enumerate(reference.texts):
        np.testing.assert_allclose(found[text], reference.mean(i), atol=2e-5)


def test_without_the_cure_no_embedding_comes(server, served_model, many, note):
    with (
        changed(server.url, request=without_cure) as url,
        pytest.raises(ServerError, match="only a part") as error,
    ):
        Encoder.load(served_model, backend="sglang", server=url, dtype="float32").encode(many)
    note(f"ebm-encode with SGLang 0.5.23, its cure taken out of requests: {error.value}")


def test_a_server_in_float16_is_refused_to_an_encoder_in_float32(small_chunks, served_model, note):
    with pytest.raises(UnsafeServerError) as error:
        Encoder.load(served_model, backend="sglang", server=small_chunks.url, dtype="float32")
    note(f"ebm-encode in float32, SGLang 0.5.23 in float16 that says auto: {error.value}")


def test_prompts_beyond_the_chunk_are_right_all_the_same(
    small_chunks, served_model, reference, note
):
    """Its dtype is float16, though it says auto; longer prompts go to the encoder's own model."""
    assert max(map(len, reference.ids)) > 512
    encoder = Encoder.load(served_model, backend="sglang", server=small_chunks.url, dtype="float16")
    got = encoder.encode(reference.texts)
    wanted = np.stack([reference.mean(i) for i in range(len(reference.texts))])
    apart = np.linalg.norm(got - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    note(f"ebm-encode in float16, SGLang 0.5.23 in chunks of 512: within {apart.max():.1e} (L2)")
    assert apart.max() < 5e-3


def test_the_doctor_finds_it_good_and_says_what_others_get(server, served_model, doctor):
    for more in ([], ["--model-path", served_model, "--dtype", "float32"]):
        code, found = doctor(server.url, *more)
        assert code == 0
        assert found["a batch of six, as ebm-encode asks again"]["right"]
        assert "cut" in found["the same prompt again"]["answer"]


def test_the_doctor_tells_of_small_chunks(small_chunks, doctor):
    code, found = doctor(small_chunks.url)
    assert code == 0
    (long,) = [own for question, own in found.items() if "chunked-prefill-size" in question]
    assert not long["right"]
