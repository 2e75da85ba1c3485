"""Printed forms of states: conversions, identity, and what meets a cache by its text."""

import json
import logging
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ebm_encode import EmbeddingCache, Encoder, _core, open_cache
from ebm_encode.errors import (
    ArgumentError,
    EncodingError,
    IdentityMismatchError,
    InputError,
    StateFormatError,
)
from ebm_encode.heads.options import HeadOptions
from ebm_encode.heads.trainer import train_head
from recorded_searches import embeddings, searches, write_rows
from support import FILES, PROVER, SAMPLES, make_identity

SEARCHES = SAMPLES / "reprover_search_log.parquet"
FEW = HeadOptions(epochs=2, patience=2, batch_states=64, architecture="linear")
MERGED = "a b : ℕ\nh : a = b\n⊢ b = a"
SPLIT = "a : ℕ\nb : ℕ\nh : a = b\n⊢ b = a"


def split(state):
    """Lean's text with one line for each variable, by a pattern of its own."""

    def lines(match):
        return "\n".join(f"{name} :{match[2]}" for name in match[1].split(" "))

    state = re.sub(r"^(case .*)\n\n", r"\1\n", state, flags=re.MULTILINE)
    variable = re.compile(r"^((?!⊢|case | ).*?) :(.*(?:\n .*)*)", re.MULTILINE)
    return variable.sub(lines, state)


def write_states(path, states):
    pq.write_table(pa.table({"state_pp": pa.array(states)}), path)
    return path


def converted(states, source, target):
    texts, refused = _core.convert_states(states, source, target)
    assert refused == []
    return texts


def prover(*arguments):
    command = [PROVER, *arguments, "--python", Path(sys.executable)]
    return subprocess.run(map(str, command), capture_output=True, text=True, check=False)


def test_real_states_are_converted_as_a_pattern_converts_them(states):
    pantograph = converted(states, "lean", "pantograph")
    assert pantograph == [split(state) for state in states]
    assert sum(map(str.__ne__, pantograph, states)) > 100
    assert [p.count("⊢") for p in pantograph] == [s.count("⊢") for s in states]
    burnqed = converted(states, "lean", "burnqed")
    assert burnqed == converted(pantograph, "pantograph", "burnqed")
    assert not any(re.search("^case ", text, re.MULTILINE) for text in burnqed)
    back = converted(pantograph, "pantograph", "lean")
    normal = [re.sub(r"^(case .*)\n\n", r"\1\n", s, flags=re.MULTILINE) for s in states]
    assert sum(map(str.__eq__, back, normal)) >= 0.98 * len(states)


def test_formats_have_names_with_versions():
    assert [_core.state_format_name(n) for n in ("as-given", "lean", "burnqed-1")] == [
        *("as-given", "lean-1", "burnqed-1")
    ]
    with pytest.raises(ArgumentError, match="expected as-given, lean, pantograph or burnqed"):
        _core.state_format_name("pantograph-2")
    assert _core.detect_state_formats(MERGED) == ["lean-1"]
    assert _core.detect_state_formats("case h\n" + SPLIT) == ["lean-1", "pantograph-1"]
    assert _core.detect_state_formats("no goals") == []
    _, refused = _core.convert_states([SPLIT, "no goals"], "burnqed", "lean")
    assert [index for index, _ in refused] == [0, 1]
    assert "holds neither names of goals nor values" in refused[0][1]


def test_texts_as_given_leave_the_identity_as_it_was(llama):
    plain, lean = Encoder.load(llama), Encoder.load(llama, state_format="lean")
    assert "state_format" not in json.loads(plain.identity.to_json())
    assert json.loads(lean.identity.to_json())["state_format"] == "lean-1"
    assert lean.identity.differences(plain.identity) == [("state_format", "lean-1", "unknown")]
    assert plain.convert(["any text"]) == ["any text"]


def test_an_encoder_takes_its_own_form_only(llama):
    encoder = Encoder.load(llama, state_format="pantograph")
    assert encoder.convert([MERGED]) == [SPLIT]
    with pytest.raises(EncodingError, match=r"1 of 2 .*share a type.*\nhint: .*Encoder\.convert"):
        encoder.encode([SPLIT, MERGED])
    reports = encoder.encode_into(["no goals", SPLIT], np.empty((2, encoder.dim), np.float32))
    assert [report.status for report in reports] == ["other_format", "ok"]
    assert "not a proof state" in reports[0].reason
    assert (encoder.encode([SPLIT]) == Encoder.load(llama).encode([SPLIT])).all()
    with pytest.raises(StateFormatError, match="cannot tell which form"):
        encoder.convert([SPLIT])
    assert encoder.convert([SPLIT], states_in="lean") == [SPLIT]
    with pytest.raises(ArgumentError, match="states_in 'given'"):
        encoder.convert([SPLIT], states_in="given")
    with pytest.raises(StateFormatError, match="1 of 1 states cannot be converted to pantograph-1"):
        encoder.convert([SPLIT], states_in="burnqed")


def test_a_bulk_run_holds_the_converted_states(encode, llama, states, tmp_path):
    code, summary, _ = encode("--state-format", "pantograph")
    assert code == 0
    cache = EmbeddingCache.open(tmp_path / "out.parquet")
    wanted = [*dict.fromkeys(converted(states, "lean", "pantograph"))]
    assert {*cache.keys()} == {*wanted}
    assert json.loads(cache.identity.to_json())["state_format"] == "pantograph-1"
    changed = sum(map(str.__ne__, converted(states, "lean", "pantograph"), states))
    counts = summary["conversion"]
    assert (counts["states"], counts["changed"]) == (len(states), changed)
    assert counts["equal"] == len(states) - len(wanted)
    assert cache.provenance[0]["conversion"] == counts
    own = Encoder.load(llama).encode(wanted[:20])
    assert np.abs(cache.gather(wanted[:20]) - own).max() <= 1e-5 * np.abs(own).max()


def test_equal_states_become_one(encode, tmp_path):
    file = write_states(tmp_path / "t.parquet", [MERGED, SPLIT, "a : ℕ\n⊢ a = a"])
    code, summary, _ = encode("--state-format", "pantograph", files=[file])
    assert (code, summary["rows"], summary["conversion"]["equal"]) == (0, 2, 1)


def test_forms_are_not_mixed(encode, tmp_path):
    assert encode()[0] == 0
    code, _, err = encode("--state-format", "pantograph")
    assert (code, "state_format" in err) == (2, True)
    lean = tmp_path / "lean.parquet"
    assert encode("--state-format", "lean", "--states-in", "lean", output=lean)[0] == 0
    code, _, err = encode(
        *("--state-format", "pantograph", "--cache", lean), output=tmp_path / "new.parquet"
    )
    assert (code, "state_format (" in err) == (2, True)


def test_a_cache_of_texts_as_given_is_reused_for_what_is_in_the_form(encode, states, tmp_path):
    printed = converted(states, "lean", "pantograph")[:200]
    old = tmp_path / "old.parquet"
    assert encode(files=[write_states(tmp_path / "p.parquet", printed)], output=old)[0] == 0
    code, summary, _ = encode("--state-format", "pantograph", "--cache", old)
    assert (code, summary["from_caches"]) == (0, len({*printed}))
    new, before = open_cache(tmp_path / "out.parquet"), open_cache(old)
    assert (new.gather(printed) == before.gather(printed)).all()


def test_states_that_cannot_be_converted_stop_a_run_or_are_listed(encode, tmp_path):
    file = write_states(tmp_path / "t.parquet", [MERGED, "no goals"])
    options = ("--state-format", "pantograph")
    code, _, err = encode(*options, files=[file])
    err = " ".join(err.split())
    assert (code, "1 of 2 states cannot be converted to pantograph-1" in err) == (2, True)
    assert "--invalid-rows skip" in err
    code, summary, err = encode(*options, "--invalid-rows", "skip", files=[file])
    assert (code, summary["rows"], summary["conversion"]["refused"]) == (0, 1, 1)
    listed = (tmp_path / "out.parquet.invalid.jsonl").read_text().splitlines()
    assert json.loads(listed[0])["state"] == "no goals"
    only = write_states(tmp_path / "only.parquet", ["no goals"])
    code, _, err = encode(*options, "--invalid-rows", "skip", files=[only])
    assert (code, "no state can be converted" in " ".join(err.split())) == (2, True)


def test_the_form_is_asked_for_where_it_makes_a_difference(encode, tmp_path):
    bare = write_states(tmp_path / "t.parquet", [SPLIT])
    code, _, err = encode("--state-format", "pantograph", files=[bare])
    err = " ".join(err.split())
    assert (code, "cannot tell which form" in err, "--states-in" in err) == (2, True, True)
    options = ("--state-format", "lean", "--states-in")
    code, _, err = encode(*options, "burnqed", files=[bare])
    assert (code, "holds neither names" in " ".join(err.split())) == (2, True)
    assert encode(*options, "pantograph", files=[bare])[0] == 0
    assert [*open_cache(tmp_path / "out.parquet").keys()] == [MERGED]
    code, _, err = encode("--states-in", "lean", files=[bare])
    assert (code, "no meaning without --state-format" in " ".join(err.split())) == (2, True)


def test_training_converts_states_to_the_form_of_the_cache(tmp_path, write_cache, heard):
    heard.set_level(logging.INFO)
    rows = searches(30)
    states, made = embeddings(rows)

    def printed(state, binder):
        name, _, goal = state.partition("\n")
        return f"case {name.replace(' ', '_')}\n{binder}\n{goal}" if state else ""

    merged = [r | {"state_pp": printed(r["state_pp"], "x y : ℕ")} for r in rows]
    keys = [printed(state, "x : ℕ\ny : ℕ") for state in states]
    path = write_cache(tmp_path / "c.parquet", keys, made, state_format="pantograph-1")
    cache, files = open_cache(path), [str(write_rows(tmp_path / "t.parquet", merged))]
    report = train_head(cache, files, tmp_path / "h.safetensors", FEW)
    assert report.missing == []
    assert "states converted to pantograph-1" in heard.text
    plain = make_identity()
    with pytest.raises(IdentityMismatchError, match="state_format"):
        report.head.require_identity(plain, "an encoder of texts as given")
    as_given = open_cache(write_cache(tmp_path / "g.parquet", keys, made))
    with pytest.raises(InputError, match="the cache lacks"):
        train_head(as_given, files, tmp_path / "g.safetensors", FEW)
    with pytest.raises(ArgumentError, match="has no meaning for a cache"):
        train_head(as_given, files, tmp_path / "g.safetensors", FEW, states_in="lean")
    # What cannot be converted is missing, and counts as that.
    merged[5] |= {"state_pp": "no goals"}
    files = [str(write_rows(tmp_path / "u.parquet", merged))]
    options = replace(FEW, max_missing=0.5)
    assert train_head(cache, files, tmp_path / "u.safetensors", options).missing == ["no goals"]


@pytest.fixture
def pantograph_cache(encode, tmp_path):
    """A cache in PyPantograph's form of the states of recorded searches, which Lean printed."""
    path = tmp_path / "pantograph.parquet"
    assert encode("--state-format", "pantograph", files=[SEARCHES], output=path)[0] == 0
    return path


def test_plan_tells_what_converting_would_find(run_cli, llama, states, tmp_path, pantograph_cache):
    arguments = ("plan", "--model-path", llama, "--trajectories", SEARCHES)
    code, out, _ = run_cli(*arguments, "--cache", pantograph_cache)
    printed = _core.state_overlap(pantograph_cache, converted(states, "lean", "pantograph"))
    assert code == 0
    assert "in the cache as printed; 180 would be, converted to pantograph form" in out
    assert "hint: --state-format pantograph" in out
    assert printed["found"] == 180
    code, out, _ = run_cli(*arguments, "--state-format", "pantograph", "--json")
    assert json.loads(out)["conversion"]["target"] == "pantograph-1"
    given = tmp_path / "given.parquet"
    texts = converted(EmbeddingCache.open(pantograph_cache).keys(), "pantograph", "pantograph")
    file = write_states(tmp_path / "p.parquet", texts)
    run_cli("encode", "--model-path", llama, "--trajectories", file, "--output", given, "--quiet")
    code, out, _ = run_cli(*arguments, "--cache", given, "--json")
    overlap = json.loads(out)["overlaps"][str(given)]
    assert (code, overlap["format"], overlap["converted_to"]) == (0, "as-given", "pantograph-1")
    assert f"`ebm-encode encode --cache {given} --state-format pantograph`" in overlap["hint"]
    code, out, _ = run_cli("plan", "--model-path", llama, "--trajectories", *FILES)
    assert (code, "in the cache" in out) == (0, False)


@pytest.mark.thorough
def test_a_search_finds_converted_states_in_the_cache(llama, pantograph_cache):
    replay = ("replay", "--trajectories", SEARCHES, "--model-path", llama, "--json")
    given = prover(*replay, "--cache", pantograph_cache)
    assert given.returncode == 2
    assert "180 would be, converted to pantograph form" in given.stderr
    assert "hint: --state-format pantograph" in given.stderr
    assert "state_format" in given.stderr
    done = prover(*replay, "--cache", pantograph_cache, "--state-format", "pantograph")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["encoded"], report["overlap"]["found_converted"]) == (0, 180)
    assert report["overlap"]["found"] < 180
    wrong = prover(*replay, "--state-format", "pantograph", "--states-in", "burnqed")
    assert wrong.returncode == 1
    assert "cannot be converted from burnqed-1 to pantograph-1" in wrong.stderr


def test_doctor_counts_the_states_that_a_cache_holds(pantograph_cache):
    done = prover("doctor", "--cache", pantograph_cache, "--states", SEARCHES)
    assert done.returncode == 0, done.stderr
    assert "180 would be, converted to pantograph form" in done.stdout
    assert "hint: --state-format pantograph" in done.stdout


def test_encode_and_score_of_the_prover_convert(llama, tmp_path):
    file = tmp_path / "states.jsonl"
    file.write_text(json.dumps({"state_pp": MERGED}))
    model = ("--model-path", llama, "--state-format")
    done = prover("encode", "--states", file, "--json", *model, "pantograph")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state_pp"] == SPLIT
    done = prover("encode", "--states", file, *model, "nonsense")
    assert (done.returncode, "expected as-given, lean" in done.stderr) == (2, True)
    done = prover("score", "--head", tmp_path / "none", *model, "lean")
    assert (done.returncode, "--states-in lean, pantograph" in done.stderr) == (2, True)
