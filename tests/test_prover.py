"""The prover's commands as a user meets them: the real program, in its own process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ebm_encode import EmbeddingCache, Encoder, _core
from ebm_encode.cli import main
from matrix import first, thorough

ROOT = Path(__file__).parents[1]
PROVER = ROOT / "target/release/ebm-prover"
SAMPLES = ROOT / "samples"
SEARCHES = SAMPLES / "reprover_search_log.parquet"
ENVIRONMENT = Path(sys.prefix)


def prover(*arguments, program=PROVER, **changes):
    """Runs it with no hint of an environment but those given."""
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    hints = {"VIRTUAL_ENV": str(ENVIRONMENT)} | changes.pop("hints", {})
    environment |= {name: value for name, value in hints.items() if value is not None}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(
        [str(program), *map(str, arguments)],
        text=True,
        check=False,
        env=environment,
        **(pipes | changes),
    )


@pytest.fixture(scope="module")
def cache(llama, tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "states.parquet"
    arguments = ["--model-path", llama, "--output", str(path), "--quiet"]
    assert main(["encode", *arguments, "--trajectories", str(SEARCHES)]) == 0
    return path


def test_doctor_checks_a_set_up(llama):
    result = prover("doctor", "--model-path", llama)
    assert result.returncode == 0, result.stderr
    expected = ["(VIRTUAL_ENV)", f"prefix     {ENVIRONMENT}", "torch ", "dimension  64"]
    expected += [
        "engine     shared-prefix: matches the unbatched",
        "64 pass the checks",
        "all good",
    ]
    for text in expected:
        assert text in result.stdout
    assert all(f"request    of {count:>2} states" in result.stdout for count in (1, 8, 32, 64))


def test_what_cannot_be_printed_is_an_error_also_while_python_runs(llama):
    with Path("/dev/full").open("w") as full:
        result = prover("doctor", "--model-path", llama, stdout=full)
    assert result.returncode == 2
    assert "No space left" in result.stderr


def test_encode_gives_the_embeddings_that_python_gives(llama, states, tmp_path):
    file = tmp_path / "states.jsonl"
    some = states[:20]
    lines = [json.dumps(s) if i % 2 else json.dumps({"state_pp": s}) for i, s in enumerate(some)]
    file.write_text("\n".join(lines))
    result = prover("encode", "--model-path", llama, "--states", file, "--json")
    assert result.returncode == 0, result.stderr
    given = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["state_pp"] for row in given] == some
    rows = np.array([row["embedding"] for row in given], np.float32)
    right = Encoder.load(llama).encode(some)
    assert np.abs(rows - right).max() / np.abs(right).max() <= 1e-5


def test_encode_reports_what_has_no_embedding(llama, tmp_path):
    file = tmp_path / "one.txt"
    file.write_text("n : ℕ " * 100)
    arguments = ["encode", "--model-path", llama, "--states", file]
    result = prover(*arguments, "--max-length", "20", "--overlong", "skip")
    assert result.returncode == 1
    assert "tokens are too many" in result.stdout
    assert "0 of 1 states encoded" in result.stdout


TEXTS = ["n : ℕ\n⊢ n = n", "⊢ True", "p : Prop\n⊢ p → p"]


def columns_of_texts():
    plain = pa.array(TEXTS)
    return {
        "string": plain,
        "large": plain.cast(pa.large_string()),
        "view": plain.cast(pa.string_view()),
        "dictionary": plain.dictionary_encode(),
        "large-dictionary": plain.cast(pa.large_string()).dictionary_encode(),
        "with-nulls": pa.array([TEXTS[0], None, *TEXTS[1:], ""]),
        "json": pa.ExtensionArray.from_storage(pa.json_(pa.utf8()), plain),
    }


@pytest.mark.parametrize("kind", first(columns_of_texts(), 2))
def test_encode_and_replay_read_texts_of_all_types(llama, tmp_path, kind):
    texts = columns_of_texts()[kind]
    file = tmp_path / "t.parquet"
    count = len(texts)
    theorems = pa.array(["t"] * count).dictionary_encode()
    columns = {"theorem_name": theorems, "state_pp": texts}
    columns["parent_state_id"] = pa.array([None] + [0] * (count - 1), pa.uint64())
    pq.write_table(pa.table(columns), file, row_group_size=2)
    result = prover("encode", "--model-path", llama, "--states", file, "--json")
    assert result.returncode == 0, result.stderr
    assert [json.loads(line)["state_pp"] for line in result.stdout.splitlines()] == TEXTS
    assert ("2 rows without a state" in result.stderr) == (kind == "with-nulls")
    result = prover("replay", "--model-path", llama, "--trajectories", file, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["states"] == 3


def test_encode_reads_lines_with_a_byte_order_mark_and_nulls(llama, tmp_path):
    lines = [json.dumps({"state_pp": text}) for text in TEXTS]
    file = tmp_path / "t.jsonl"
    content = "\r\n".join([lines[0], "", '{"state_pp": null}', *lines[1:]])
    file.write_bytes(b"\xef\xbb\xbf" + content.encode())
    result = prover("encode", "--model-path", llama, "--states", file, "--json")
    assert result.returncode == 0, result.stderr
    assert [json.loads(line)["state_pp"] for line in result.stdout.splitlines()] == TEXTS


def not_utf8():
    values = pa.array([b"fine", b"\xff\xfe", b"fine"])
    return pa.Array.from_buffers(pa.utf8(), 3, values.buffers())


@pytest.mark.parametrize(
    ("names", "columns", "message"),
    [
        (["state_pp"] * 2, [pa.array(TEXTS)] * 2, 'has 2 columns "state_pp"\nhint: '),
        (["state_pp"], [not_utf8()], 'row 1: column "state_pp" is not UTF-8 text\nhint: '),
        (["state_pp"], [pa.array([1, 2])], 'column "state_pp" is Int64, expected text'),
        (["state_pp"], [pa.array([["a"]])], 'column "state_pp" is List'),
        (["state_pp"], [pa.array([{"a": "b"}])], 'column "state_pp" is Struct'),
        (["text"], [pa.array(TEXTS)], 'has no column "state_pp"; it has text'),
    ],
)
def test_a_column_that_cannot_be_read_is_reported(llama, tmp_path, names, columns, message):
    file = tmp_path / "t.parquet"
    count = len(columns[0])
    theorem, parent = pa.array(["t"] * count), pa.array([0] * count, pa.uint64())
    table = pa.table([*columns, theorem, parent], [*names, "theorem_name", "parent_state_id"])
    pq.write_table(table, file)
    for command in (["encode", "--states"], ["replay", "--trajectories"]):
        result = prover(command[0], "--model-path", llama, command[1], file)
        assert result.returncode == 2
        assert message.replace("; it has text", "") in result.stderr
        assert str(file) in result.stderr
        assert "panicked" not in result.stderr


def test_lines_that_are_not_utf8_are_reported(llama, tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_bytes(b'{"state_pp": "a"}\n{"state_pp": "\xe9"}\n')
    result = prover("encode", "--model-path", llama, "--states", file)
    assert result.returncode == 2
    assert f"{file}: line 2: is not UTF-8 text\nhint: " in result.stderr


@pytest.mark.parametrize("places", first([3, 24]))
def test_a_damaged_trajectory_is_an_error_and_no_panic(tmp_path, places):
    whole = SEARCHES.read_bytes()
    file = tmp_path / "t.parquet"
    for place in range(4, len(whole) - 8, len(whole) // places):
        file.write_bytes(whole[:place] + bytes(64) + whole[place + 64 :])
        result = prover("replay", "--model-path", "/no/such/model", "--trajectories", file)
        assert result.returncode == 2
        assert "panicked" not in result.stderr


@pytest.mark.parametrize("command", ["inspect", *thorough("encode", "replay")])
def test_a_reader_that_goes_away_is_141(llama, cache, states, tmp_path, command):
    file = tmp_path / "states.jsonl"
    file.write_text("\n".join(json.dumps(state) for state in states[:50]))
    arguments = {
        "inspect": [cache],
        "encode": ["--model-path", llama, "--states", file, "--json"],
        "replay": ["--model-path", llama, "--trajectories", SEARCHES, "--theorems", "1"],
    }[command]
    reading, writing = os.pipe()
    os.close(reading)
    result = prover(command, *arguments, stdout=writing)
    os.close(writing)
    assert result.returncode == 141, result.stderr


def test_replay_walks_recorded_searches(llama, cache):
    arguments = ["replay", "--trajectories", SEARCHES, "--model-path", llama, "--json"]
    cold = prover(*arguments, "--threads", "4")
    assert cold.returncode == 0, cold.stderr
    table = pq.read_table(SEARCHES).to_pylist()
    walked = [row["state_pp"] for row in table if row["state_pp"]]
    counted = json.loads(cold.stdout)
    assert counted["states"] == len(walked)
    assert counted["encoded"] == len(set(walked))
    assert counted["searches"] == len({row["theorem_name"] for row in table})
    assert 0 < counted["python_share"] <= 1
    assert counted["latency_ms"]["p50"] <= counted["latency_ms"]["p99"]
    warm = prover(*arguments, "--cache", cache)
    assert warm.returncode == 0, warm.stderr
    counted = json.loads(warm.stdout)
    assert counted["cache_hits"] == len(walked)
    assert counted["calls"] == 0


def test_replay_refuses_the_cache_of_another_encoder(llama, cache):
    arguments = ["replay", "--trajectories", SEARCHES, "--model-path", llama, "--cache", cache]
    result = prover(*arguments, "--pooling", "last")
    assert result.returncode == 2
    assert "pooling (mean here, last there)" in result.stderr
    allowed = prover(*arguments, "--pooling", "last", "--allow-other-identity")
    assert allowed.returncode == 0
    assert "as asked" in allowed.stderr


def test_what_replay_appends_is_a_cache(llama, tmp_path):
    path = tmp_path / "new.parquet"
    arguments = ["replay", "--trajectories", SEARCHES, "--model-path", llama, "--append-to", path]
    assert prover(*arguments, "--theorems", "6").returncode == 0
    few = len(EmbeddingCache.open(path))
    second = prover(*arguments)
    assert second.returncode == 0, second.stderr
    new = EmbeddingCache.open(path)
    assert len(new) > few
    assert f"now has {len(new)} rows" in second.stdout
    right = Encoder.load(llama)
    new.require_identity(right.identity, "the model")
    expected = right.encode(new.states())
    assert np.abs(new.matrix() - expected).max() / np.abs(expected).max() <= 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trajectories", "none.parquet"], "none.parquet"),
        (["--trajectories", str(ROOT / "README.md")], "not a readable Parquet file"),
        (["--trajectories", str(SEARCHES), "--threads", "0"], "0 is not in 1..=1024"),
        (["--trajectories", str(SEARCHES), "--cache", "none.parquet"], "none.parquet"),
        (["--trajectories", str(SEARCHES), "--model-path", "/no/such/model"], "/no/such/model"),
        (["--trajectories", str(SEARCHES), "--dtype", "int8"], "dtype 'int8'"),
        (["--trajectories", str(SEARCHES), "--template", "none.txt"], "none.txt"),
        ([], "--trajectories"),
    ],
)
def test_bad_usage_is_2_and_reported(llama, arguments, message):
    model = [] if "--model-path" in arguments else ["--model-path", llama]
    result = prover("replay", *model, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "panicked" not in result.stderr


# The environment is found, and one that cannot be used is refused with the way out.


def test_the_environment_is_found_by_name_by_variable_and_on_the_path(tmp_path):
    for hints, arguments, by in [
        ({}, [], "VIRTUAL_ENV"),
        ({"VIRTUAL_ENV": "/no/such"}, ["--python", ENVIRONMENT], "named"),
        ({}, ["--python", ENVIRONMENT / "bin/python"], "named"),
        ({"VIRTUAL_ENV": None, "PATH": f"{ENVIRONMENT}/bin:/usr/bin"}, [], "first python3 on PATH"),
    ]:
        result = prover("doctor", *arguments, hints=hints, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert f"prefix     {ENVIRONMENT}\n" in result.stdout
        assert f"({by})" in result.stdout


def test_a_folder_named_like_the_package_is_not_imported(tmp_path):
    (tmp_path / "ebm_encode").mkdir()
    (tmp_path / "ebm_encode/__init__.py").write_text("raise SystemExit('the wrong one')")
    result = prover("doctor", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def bare(tmp_path):
    """A virtual environment without packages."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    return tmp_path / "bare"


def test_the_program_may_lie_in_an_environment_that_is_not_on_the_path(bare):
    """Python would take the folder of the program for its own."""
    site = next((ENVIRONMENT / "lib").glob("python3*/site-packages"))
    (next((bare / "lib").glob("python3*/site-packages")) / "all.pth").write_text(
        f"import site; site.addsitedir({str(site)!r})"
    )
    program = shutil.copy(PROVER, bare / "bin/ebm-prover")
    hints = {"VIRTUAL_ENV": None, "PATH": "/usr/bin:/bin"}
    result = prover("doctor", "--python", bare, program=program, hints=hints, cwd="/")
    assert result.returncode == 0, result.stderr
    assert f"prefix     {bare}\n" in result.stdout


def test_an_environment_without_the_package_is_refused_with_the_way_out(bare):
    result = prover("doctor", hints={"VIRTUAL_ENV": str(bare)})
    assert result.returncode == 2
    assert f"{bare}/bin/python: has no package ebm-encode; install it there with" in result.stderr


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"version": "3.8.1"}, "is CPython 3.8.1, and this program was built for CPython 3."),
        ({"implementation": "PyPy"}, "is PyPy 3."),
        ({"packages": {"numpy": None}}, "has no package numpy; install it there"),
        ({"packages": {"ebm-encode": "9.9"}}, "has ebm-encode 9.9, and this program was built for"),
        (None, "does not run as a Python interpreter: Segmentation"),
    ],
)
def test_an_interpreter_that_does_not_fit_is_refused(tmp_path, answer, message):
    """As told by one that answers what real ones of other versions would."""
    fake = tmp_path / "python3"
    if answer is None:
        text = "echo Segmentation fault >&2; exit 139"
    else:
        info = sys.version_info
        packages = {"numpy": "2", "torch": "2", "transformers": "5", "ebm-encode": "0.1.0"}
        whole = {"executable": str(fake), "implementation": "CPython", "prefix": str(tmp_path)}
        whole |= {"version": f"{info.major}.{info.minor}.{info.micro}"}
        whole |= answer | {"packages": packages | answer.get("packages", {})}
        text = f"cat <<'END'\n{json.dumps(whole)}\nEND"
    fake.write_text(f"#!/bin/sh\n{text}\n")
    fake.chmod(0o755)
    result = prover("doctor", "--python", fake)
    assert result.returncode == 2
    assert message in result.stderr


def test_no_python_at_all_is_said(tmp_path):
    result = prover("doctor", hints={"VIRTUAL_ENV": None, "PATH": str(tmp_path)})
    assert result.returncode == 2
    assert "no Python found" in result.stderr


def test_a_library_of_another_installation_is_noticed(tmp_path):
    """As told by an interpreter that says of itself that it is installed elsewhere."""
    fake = tmp_path / "python3"
    whole = {"executable": sys.executable, "implementation": "CPython", "prefix": "/elsewhere"}
    whole |= {"version": ".".join(map(str, sys.version_info[:3]))}
    whole["packages"] = {"numpy": "2", "torch": "2", "transformers": "5", "ebm-encode": "0.1.0"}
    fake.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(whole)}\nEND\n")
    fake.chmod(0o755)
    result = prover("doctor", "--python", fake)
    assert result.returncode == 2
    assert (
        f"in /elsewhere, and the library loaded by this program is Python {whole['version']} in"
        in (result.stderr)
    )


def test_what_python_prints_is_not_lost(tmp_path):
    """Into a pipe Python buffers, and a host process ends without Python's own clean-up."""
    (tmp_path / "sitecustomize.py").write_text("print('printed by Python', end='')")
    result = prover("doctor", hints={"PYTHONPATH": str(tmp_path), "PYTHONUNBUFFERED": None})
    assert result.returncode == 0, result.stderr
    assert "printed by Python" in result.stdout


# Ctrl-C.


@pytest.fixture
def slow(make_model):
    """A model that takes many seconds for the long batch below."""
    return make_model(
        "llama", seed=5, hidden_size=512, intermediate_size=1536, num_hidden_layers=16,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=8192,
    )  # fmt: skip


@pytest.mark.parametrize("number", first([signal.SIGINT, signal.SIGTERM]))
def test_ctrl_c_in_a_long_batch_ends_the_process_at_once(slow, tmp_path, number):
    file = tmp_path / "long.parquet"
    texts = [f"h{i} : {'x + ' * 1500}{i}\n⊢ True" for i in range(64)]
    pq.write_table(pa.table({"state_pp": texts}), file)
    arguments = ["encode", "--model-path", slow, "--states", file]
    environment = os.environ | {"VIRTUAL_ENV": str(ENVIRONMENT), "RUST_LOG": "info"}
    with subprocess.Popen(
        [PROVER, *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
    ) as process:
        cpu = 0.0
        deadline = time.monotonic() + 120
        while cpu < 25 and time.monotonic() < deadline:  # well into the batch
            time.sleep(0.2)
            ticks = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            cpu = (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")
        assert process.poll() is None, "the batch was not long enough"
        began = time.monotonic()
        process.send_signal(number)
        code = process.wait(timeout=30)
        took = time.monotonic() - began
        errors = process.stderr.read().decode()
    assert code == 128 + number, errors
    assert "interrupted" in errors
    assert took < 10, "at once; the long wait is for a busy machine"


def test_what_was_encoded_before_ctrl_c_is_saved(slow, tmp_path):
    path = tmp_path / "new.parquet"
    arguments = ["replay", "--trajectories", SEARCHES, "--model-path", slow, "--append-to", path]
    environment = os.environ | {"VIRTUAL_ENV": str(ENVIRONMENT), "RUST_LOG": "ebm_encode=debug"}
    with subprocess.Popen(
        [PROVER, *arguments, "--max-batch", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        batches = (line for line in process.stderr if " batch " in line)
        for _ in range(10):
            next(batches)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    encoder = Encoder.load(slow)
    writer = _core.CacheWriter(path)
    writer.open(encoder.identity, encoder.dim)
    assert len(writer) >= 9, "all but the batch in hand"
    text, row = writer.read([3])[0][0], writer.read([3])[1][0]
    right = encoder.encode([text])[0]
    assert np.abs(row - right).max() / np.abs(right).max() <= 1e-5
