"""The main job from the command line, its summaries, refusals and faults."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ebm_encode import EmbeddingCache, Encoder
from ebm_encode.engines.reference import compare
from matrix import thorough
from support import FILES, first_copied, zero_tail


def test_the_main_job(encode, tmp_path, states, llama):
    code, summary, _ = encode()
    assert code == 0
    assert summary["rows"] == summary["encoded"] == len(states)
    assert summary["verification"]["drawn"] == 32
    assert summary["verification"]["max_relative_error"] <= 1e-5
    cache = EmbeddingCache.open(tmp_path / "out.parquet")
    assert set(cache.states()) == set(states)
    expected = Encoder.load(llama).encode(states)
    assert compare(np.stack(cache.get_many(states)), expected)[0] <= 1e-5
    assert cache.identity == Encoder.load(llama).identity
    provenance = cache.provenance[0]
    assert provenance["model"] == llama
    assert provenance["counts"]["encoded"] == len(states)
    assert [source["path"] for source in provenance["sources"]] == [str(file) for file in FILES]
    assert provenance["verification"]["min_cosine"] > 0.9999
    assert list(tmp_path.iterdir()) == [tmp_path / "out.parquet"], "nothing else is left"


def test_progress_is_told_in_plain_lines_where_there_is_no_terminal(encode):
    _, _, err = encode()
    line = " ".join(err.split())
    assert "430/430 states" in line
    assert "states/s" in line
    assert "tokens/s" in line
    assert "\x1b" not in err


def test_a_second_run_has_nothing_to_do(encode, tmp_path):
    encode()
    before = (tmp_path / "out.parquet").read_bytes()
    code, summary, _ = encode()
    assert (code, summary["encoded"], summary["written"]) == (0, 0, False)
    assert (tmp_path / "out.parquet").read_bytes() == before


def test_more_states_are_added(encode, states):
    assert encode(files=FILES[:1])[1]["rows"] == 250
    code, summary, _ = encode()
    assert (code, summary["rows"], summary["already_there"]) == (0, len(states), 250)


def test_embeddings_come_from_earlier_caches_of_the_same_encoder(encode, tmp_path, states):
    encode(output=tmp_path / "old.parquet", files=FILES[:1])
    code, summary, _ = encode("--cache", tmp_path / "old.parquet")
    assert (code, summary["from_caches"], summary["encoded"]) == (0, 250, len(states) - 250)
    old = EmbeddingCache.open(tmp_path / "old.parquet")
    new = EmbeddingCache.open(tmp_path / "out.parquet")
    assert all(
        (new[state] == row).all() for state, row in zip(old.states(), old.matrix(), strict=True)
    )
    code, _, err = encode(
        "--cache", tmp_path / "old.parquet", "--pooling", "last", output=tmp_path / "other.parquet"
    )
    assert code == 2
    assert "pooling" in err
    assert "old.parquet" in err


@pytest.mark.parametrize(
    ("option", "field"),
    [
        (("--dtype", "bfloat16"), "dtype"),
        (("--template", "deepseek-prover-v2"), "template"),
        (("--layer", "-2"), "layer"),
        (("--overlong", "truncate"), "max_length"),
    ],
)
def test_another_encoder_is_refused_by_field_unless_overwriting(encode, tmp_path, option, field):
    encode()
    before = (tmp_path / "out.parquet").read_bytes()
    code, summary, err = encode(*option)
    assert (code, summary) == (2, None)
    assert f"different: {field}" in " ".join(err.split())
    assert (tmp_path / "out.parquet").read_bytes() == before
    assert encode(*option, "--overwrite")[0] == 0
    assert EmbeddingCache.open(tmp_path / "out.parquet").identity is not None


def test_another_model_is_refused(encode, make_model):
    encode()
    code, _, err = encode(model=make_model(seed=1))
    assert code == 2
    assert "different: weights" in " ".join(err.split())


def test_overlong_states_are_counted_and_listed(encode, tmp_path, states, llama):
    lengths = Encoder.load(llama).prompts.tokenize(states).lengths
    longer = {state for state, length in zip(states, lengths, strict=True) if length > 200}
    side = tmp_path / "out.parquet.overlong.jsonl"
    cut = ("--max-length", 200, "--overlong", "truncate")
    code, summary, _ = encode(*cut)
    assert (code, summary["truncated"], summary["skipped"]) == (0, len(longer), 0)
    records = [json.loads(line) for line in side.read_text().splitlines()]
    assert {record["state"] for record in records} == longer
    assert all(record["tokens"] > 200 for record in records)

    code, summary, _ = encode("--max-length", 200, "--overwrite")
    assert (code, summary["truncated"], summary["skipped"]) == (0, 0, len(longer))
    assert summary["rows"] == len(states) - len(longer)

    code, _, err = encode(
        "--max-length", 200, "--overlong", "error", output=tmp_path / "none.parquet"
    )
    assert code == 2
    assert "more than --max-length 200" in " ".join(err.split())
    assert not (tmp_path / "none.parquet").exists()

    assert encode("--overwrite")[0] == 0
    assert not side.exists(), "the list of another run is not left to mislead"


def later(fault):
    """Neither the probes at load nor the first batch, which has the longest states: both are
    compared with each state unbatched, and the engine would not be used."""
    batches = itertools.count()

    def maybe(rows, _sequences):
        return fault(rows) if len(rows) > 16 and next(batches) else rows

    return maybe


def some_nan(rows):
    rows[3, 5] = np.nan
    return rows


@pytest.mark.parametrize("fault", [zero_tail, *thorough(first_copied, some_nan)])
def test_bad_embeddings_are_re_encoded_unbatched(encode, spoil, fault, tmp_path, states, llama):
    right = Encoder.load(llama).encode(states)
    spoil(later(fault))
    code, summary, err = encode("--engine", "padded")
    assert code == 0
    assert summary["retried_alone"] > 0
    assert "re-encoding it at batch size 1" in " ".join(err.split())
    cache = EmbeddingCache.open(tmp_path / "out.parquet")
    assert compare(np.stack(cache.get_many(states)), right)[0] <= 1e-5


def test_embeddings_swapped_in_a_batch_fail_the_run_for_good(encode, spoil, tmp_path, monkeypatch):
    spoil(later(lambda rows: np.roll(rows, 1, axis=0)))
    code, summary, err = encode("--engine", "padded")
    assert (code, summary) == (1, None)
    assert "sampled embeddings are not those of their states" in " ".join(err.split())
    assert not (tmp_path / "out.parquet").exists()
    monkeypatch.undo()
    code, _, err = encode()
    assert code == 1
    assert "failed verification" in " ".join(err.split())
    assert encode("--overwrite")[0] == 0
    assert EmbeddingCache.open(tmp_path / "out.parquet")


def test_an_embedding_that_stays_bad_goes_to_quarantine(encode, spoil, tmp_path, states, llama):
    lengths = Encoder.load(llama).prompts.tokenize(states).lengths
    limit = sorted(lengths)[-4]
    doomed = {state for state, length in zip(states, lengths, strict=True) if length > limit}

    def fault(rows, sequences):
        for row, sequence in zip(rows, sequences, strict=True):
            if len(sequence) > limit:
                row[0] = np.nan
        return rows

    spoil(fault)
    spoil(fault, unbatched=True)
    code, summary, _ = encode("--engine", "padded")
    assert code == 1
    listed = (tmp_path / "out.parquet.quarantine.jsonl").read_text().splitlines()
    quarantined = [json.loads(line) for line in listed]
    assert {record["state"] for record in quarantined} == doomed
    assert {record["kind"] for record in quarantined} == {"non_finite"}
    assert all(record["tokens"] > limit for record in quarantined)
    assert summary["rows"] == len(states) - len(doomed)
    cache = EmbeddingCache.open(tmp_path / "out.parquet")
    assert not doomed & set(cache.states())
    assert encode("--engine", "padded", "--allow-quarantine")[0] == 0


def test_states_with_the_same_tokens_may_have_equal_embeddings(encode, tmp_path, run_cli):
    long = "x " * 50
    lines = [{"state_pp": long + str(i)} for i in range(20)]
    file = tmp_path / "same.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    code, summary, _ = encode(
        *("--max-length", 30, "--overlong", "truncate", "--checkpoint-rows", 4), files=[file]
    )
    assert (code, summary["rows"], summary["truncated"]) == (0, 20, 20)
    assert summary["same_by_cutting"] == 19
    listed = (tmp_path / "out.parquet.overlong.jsonl").read_text().splitlines()
    same = [record for record in map(json.loads, listed) if "same_as" in record]
    assert len(same) == 19
    assert all(record["same_as"] != record["state"] for record in same)
    assert run_cli("audit", tmp_path / "out.parquet")[0] == 0
    assert EmbeddingCache.open(tmp_path / "out.parquet")


def test_a_whole_state_that_others_are_cut_to_is_not_counted_as_skipped(encode, llama, tmp_path):
    long = "x " * 50
    encoder = Encoder.load(llama, max_length=30, overlong="truncate")
    cut = encoder.prompts.tokenize([long])[0]
    starts = [long[:end] for end in range(len(long))]
    tokens = encoder.prompts.tokenize(starts)
    same = (i for i in range(len(starts)) if np.array_equal(tokens[i], cut))
    whole = next(i for i in same if tokens.full_lengths[i] == 30)
    file = tmp_path / "same.jsonl"
    for texts in [long], [starts[whole], long]:  # so that the whole one comes second
        file.write_text("".join(json.dumps({"state_pp": text}) + "\n" for text in texts))
        code, summary, _ = encode("--max-length", 30, "--overlong", "truncate", files=[file])
        assert (code, summary["rows"]) == (0, len(texts))
        assert (summary["truncated"], summary["skipped"]) == (1, 0)
    assert summary["same_by_cutting"] == 1


def test_audit_finds_the_faults_of_a_real_server(run_cli, tmp_path, rows):
    """As a batch server left them: the first row of each batch right, zeros after it; and more."""
    values = rows(320, 32)
    for i in range(320):
        if i % 32 and i < 64:
            values[i] = 0
    values[100:110] = values[100]
    values[200, 7] = np.nan
    values[210, 0] = np.inf
    values[220] *= 1e4
    states = [f"state {i}" for i in range(320)]
    file = tmp_path / "theirs.parquet"
    pq.write_table(pa.table({"s": states, "e": list(values)}), file)
    code, out, _ = run_cli("audit", file, "--json")
    assert code == 1
    assert json.loads(out)[0]["bad"] == {
        "zero_norm": 62,
        "duplicate": 9,
        "non_finite": 2,
        "norm_outlier": 1,
    }
    code, out, _ = run_cli("audit", file)
    assert code == 1
    assert "74 BAD ROWS" in out
    assert "row 101" in out
    good = tmp_path / "good.parquet"
    pq.write_table(pa.table({"s": states, "e": list(rows(320, 32))}), good)
    assert run_cli("audit", good)[0] == 0
    assert run_cli("audit", good, file)[0] == 1
    assert run_cli("audit")[0] == 2
    assert run_cli("audit", tmp_path / "none.parquet")[0] == 2


def test_an_output_that_is_an_input_or_no_cache_is_not_touched(encode, tmp_path):
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(FILES[0].read_bytes())
    code, _, err = encode("--overwrite", files=[copy], output=copy)
    assert (code, "is one of the --trajectories" in " ".join(err.split())) == (2, True)
    code, _, err = encode(output=copy)
    assert (code, "copy.parquet" in err) == (2, True)
    assert copy.read_bytes() == FILES[0].read_bytes()


def test_inspect_shows_what_the_footer_says(encode, run_cli, tmp_path, llama):
    encode()
    code, out, _ = run_cli("inspect", tmp_path / "out.parquet")
    assert code == 0
    for expected in ("state_pp", "430 of 64 values", "blake3:", "norms", llama, "float32"):
        assert expected in out
    code, out, _ = run_cli("inspect", tmp_path / "out.parquet", "--json")
    assert json.loads(out)["files"][0]["footer"]["identity"]["pooling"] == "mean"
    assert run_cli("inspect", tmp_path)[0] == 0, "a folder is a cache of shards"
    assert run_cli("inspect", FILES[0])[0] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["encode"],
        ["encode", "--output", "x.parquet"],
        ["nonsense"],
        ["inspect"],
        ["encode", "--model-path", "m", "--trajectories", "t", "--output", "o", "--dtype", "int8"],
        ["encode", "--model-path", "m", "--trajectories", "t", "--output", "o.csv"],
        [
            "encode",
            "--model-path",
            "m",
            "--trajectories",
            "t",
            "--output",
            "o.parquet",
            "--batch-size",
            "0",
        ],
        ["encode", "--model-path", "m", "--trajectories", "t", "--output", "no/where/o.parquet"],
        [
            "encode",
            "--model-path",
            "m",
            "--trajectories",
            "t",
            "--output",
            "o.parquet",
            "--template",
            "nothing",
        ],
        ["encode", "--model-path", "m", "--trajectories", "t", "--output", "o.parquet", "--what"],
    ],
)
def test_bad_usage_is_2_and_says_why(run_cli, arguments):
    code, out, err = run_cli(*arguments)
    assert (code, out) == (2, "")
    assert err.strip()


def test_help_names_every_option(run_cli):
    code, out, _ = run_cli("encode", "--help")
    assert code == 0
    for option in (
        "--model-path", "--trajectories", "--output", "--batch-size", "--max-batch-tokens",
        "--dtype", "--device", "--max-length", "--overlong", "--template", "--pooling", "--layer",
        "--cache", "--column", "--allow-quarantine", "--overwrite", "--trust-remote-code",
        "--invalid-rows", "--quiet", "--json",
    ):  # fmt: skip
        assert option in out


def test_a_reader_that_goes_away_is_no_traceback(tmp_path, write_cache, rows):
    cache = write_cache(tmp_path / "a.parquet", ["a", "b"], rows(2))
    process = subprocess.Popen(
        [sys.executable, "-m", "ebm_encode", "inspect", str(cache)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
    process.stderr.close()


def test_quiet_says_nothing(run_cli, llama, tmp_path):
    code, out, err = run_cli(
        "encode",
        "--model-path",
        llama,
        "--trajectories",
        FILES[1],
        "--output",
        tmp_path / "q.parquet",
        "--quiet",
    )
    assert (code, out, err) == (0, "", "")
