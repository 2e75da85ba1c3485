"""Caches in an object store: a real S3 server, which moto runs on this machine."""

import io
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from ebm_encode import EmbeddingCache, MappedCache, _core, open_cache
from ebm_encode._core import CacheWriter
from ebm_encode.data.trajectories import read_states
from ebm_encode.errors import (
    ArgumentError,
    CacheFormatError,
    CacheIOError,
    CacheNotFoundError,
    InputError,
    OutputLockedError,
)
from support import FILES, PROVER


@pytest.fixture(scope="module")
def server():
    """An S3 server, and the environment in which programs find it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "key")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        environment.setenv("AWS_REGION", "us-east-1")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield
    server.stop()


@pytest.fixture
def store(server):  # noqa: ARG001  (its environment)
    """An independent client of the server: pyarrow's."""
    return fs.S3FileSystem(
        endpoint_override=os.environ["AWS_ENDPOINT_URL"],
        region="us-east-1",
        allow_bucket_creation=True,
    )


@pytest.fixture
def bucket(store, request):
    """The URL of an empty bucket."""
    name = "b" + str(abs(hash(request.node.nodeid)))
    store.create_dir(name)
    return f"s3://{name}"


def objects(store, bucket):
    found = store.get_file_info(fs.FileSelector(bucket.removeprefix("s3://"), recursive=True))
    return {info.path.split("/", 1)[1] for info in found if info.type is fs.FileType.File}


# Uses a store, forks, and uses it in both processes: with what was open before, and opened again.
FORKER = """
import os, sys, warnings
import numpy as np
from ebm_encode import EmbeddingCache, _core
warnings.simplefilter("ignore")
url, identity = sys.argv[1], _core.Identity.from_json(sys.argv[2])
writer = _core.CacheWriter(url)
writer.open(identity, 64)
def work(name):
    assert len(EmbeddingCache.open(url)) == 3000
    assert writer.read([5])[0] == ["state 5"]
    other = _core.CacheWriter(url.replace(".parquet", f"-{name}.parquet"))
    other.open(identity, 64)
    assert other.append(["x"], np.ones((1, 64), np.float32)) == [None]
    other.finish({})
work("before")
child = os.fork()
if child == 0:
    try:
        work("child")
        grandchild = os.fork()
        if grandchild == 0:
            work("grandchild")
            os._exit(0)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
work("parent")
sys.exit(code)
"""


def upload(store, url, content):
    with store.open_output_stream(url.removeprefix("s3://")) as file:
        file.write(content)


def download(store, url):
    with store.open_input_file(url.removeprefix("s3://")) as file:
        return file.read()


def test_a_file_written_to_a_store_is_the_one_written_here(
    tmp_path, bucket, store, write_cache, rows
):
    made = rows(2500, dim=24)
    states = [f"state {i}" for i in range(len(made))]
    here, there = tmp_path / "a.parquet", f"{bucket}/deep/down/a.parquet"
    write_cache(here, states, made)
    write_cache(there, states, made)
    assert objects(store, bucket) == {"deep/down/a.parquet"}
    assert download(store, there) == here.read_bytes()
    cache = open_cache(there)
    assert isinstance(cache, EmbeddingCache)
    assert cache.path == there
    assert cache.states() == states
    assert np.array_equal(cache.matrix(), made)
    assert _core.audit(there) == _core.audit(here) | {"path": there}
    assert _core.describe(there)[0] == _core.describe(here)[0] | {"path": there}


def test_other_readers_take_it_from_there(bucket, store, write_cache, rows):
    made = rows(1500)
    states = [f"state {i}" for i in range(len(made))]
    write_cache(f"{bucket}/a.parquet", states, made)
    table = pq.read_table(f"{bucket.removeprefix('s3://')}/a.parquet", filesystem=store)
    assert table["state_pp"].to_pylist() == states
    frame = pl.read_parquet(
        f"{bucket}/a.parquet",
        storage_options={
            "aws_endpoint_url": os.environ["AWS_ENDPOINT_URL"],
            "aws_allow_http": "true",
            "aws_region": "us-east-1",
            "aws_access_key_id": "key",
            "aws_secret_access_key": "secret",
        },
    )
    assert np.array_equal(np.stack(frame["embedding"].to_list()), made)


def test_what_others_put_there_is_read(bucket, store, rows):
    made = rows(300)
    frame = pl.DataFrame({"text": [f"s{i}" for i in range(300)], "vector": made})
    for number, part in enumerate((frame[:100], frame[100:])):
        part.write_parquet(file := io.BytesIO())
        upload(store, f"{bucket}/folder/{number}.parquet", file.getvalue())
    cache = EmbeddingCache.open(f"{bucket}/folder/")
    assert np.array_equal(cache.matrix(), made)


def test_runs_add_parts_and_compact_makes_one(bucket, store, write_cache, rows):
    folder = f"{bucket}/cache"
    made = rows(40)
    for start in (0, 10, 20, 30):
        names = [f"state {i}" for i in range(start, start + 10)]
        write_cache(folder, names, made[start : start + 10])
    assert len([name for name in objects(store, bucket) if name.endswith(".parquet")]) == 4
    assert np.array_equal(EmbeddingCache.open(folder).matrix(), made)
    assert _core.compact(folder)[0] == 40
    kept = objects(store, bucket)
    assert len([name for name in kept if name.endswith(".parquet")]) == 1
    assert not [name for name in kept if "partial" in name]
    assert np.array_equal(EmbeddingCache.open(folder).matrix(), made)
    assert _core.audit(folder)["bad"] == {}


def test_of_two_writers_at_once_one_gives_up_and_nothing_is_lost(bucket, identity, rows):
    made = rows(3)
    for output in (f"{bucket}/a.parquet", f"{bucket}/folder"):
        first, second, third = (_core.CacheWriter(output) for _ in range(3))
        for number, writer in enumerate((first, second, third)):
            writer.open(identity(), 16)
            writer.append([f"state {number}"], made[number : number + 1])
        first.checkpoint()
        with pytest.raises(OutputLockedError, match="another process"):
            second.checkpoint()  # its number is taken
        first.finish({})
        with pytest.raises(OutputLockedError, match="another process"):
            third.finish({})  # the output is no longer what it opened
        again = _core.CacheWriter(output)
        again.open(identity(), 16)
        assert again.contains_many(["state 0", "state 1", "state 2"]) == [True, False, True]
        again.append(["state 1"], made[1:2])
        again.finish({})
        assert sorted(EmbeddingCache.open(output).states()) == [f"state {i}" for i in range(3)]


def test_a_writer_that_ends_leaves_the_shards_of_another(bucket, store, identity, rows):
    """The second took up the first's shard and saved another before the first was done."""
    made = rows(2)
    for output in (f"{bucket}/a.parquet", f"{bucket}/folder"):
        first = _core.CacheWriter(output)
        first.open(identity(), 16)
        first.append(["first"], made[:1])
        first.checkpoint()
        second = _core.CacheWriter(output)
        second.open(identity(), 16)
        second.append(["second"], made[1:])
        second.checkpoint()
        first.finish({})
        assert EmbeddingCache.open(output).states() == ["first"]
        name = output.removeprefix(f"{bucket}/")
        assert f"{name}.partial/part-000000001.parquet" in objects(store, bucket)
        with pytest.raises(OutputLockedError, match="another process"):
            second.finish({})
        third = _core.CacheWriter(output)
        third.open(identity(), 16)
        assert third.contains_many(["first", "second"]) == [True, True]
        third.finish({})
        assert np.array_equal(EmbeddingCache.open(output).gather(["first", "second"]), made)


def test_a_reader_notices_that_the_object_was_replaced(bucket, write_cache, rows, identity):
    """Half of each would be neither: so the rest of the former object is not taken from the new."""
    output = f"{bucket}/a.parquet"
    write_cache(output, [f"state {i}" for i in range(3000)], rows(3000, dim=64))
    writer = _core.CacheWriter(output)
    writer.open(identity(), 64)
    other = _core.CacheWriter(output)
    other.open(identity(), 64, overwrite=True)
    other.append(["new"], rows(1, dim=64, seed=9))
    other.finish({})
    with pytest.raises(CacheIOError, match="another process replaced it"):
        writer.read([5])


def test_a_forked_process_can_use_a_store(bucket, store, write_cache, rows, identity):
    """Its parent's threads and connections stayed with the parent."""
    write_cache(f"{bucket}/a.parquet", [f"state {i}" for i in range(3000)], rows(3000, dim=64))
    done = subprocess.run(
        [sys.executable, "-c", FORKER, f"{bucket}/a.parquet", identity().to_json()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = {f"a-{name}.parquet" for name in ("before", "child", "grandchild", "parent")}
    assert objects(store, bucket) == {"a.parquet", *made}


def test_damaged_objects_are_refused_by_name(bucket, store, write_cache, rows):
    write_cache(f"{bucket}/a.parquet", [f"state {i}" for i in range(1200)], rows(1200))
    content = bytearray(download(store, f"{bucket}/a.parquet"))
    upload(store, f"{bucket}/cut.parquet", bytes(content[:-100]))
    content[60_000] ^= 1
    upload(store, f"{bucket}/flipped.parquet", bytes(content))
    upload(store, f"{bucket}/empty.parquet", b"")
    for name in ("cut", "flipped", "empty"):
        with pytest.raises(CacheFormatError, match=f"{bucket}/{name}.parquet: "):
            EmbeddingCache.open(f"{bucket}/{name}.parquet")


def test_what_is_not_there_or_makes_no_sense_is_said(bucket):
    with pytest.raises(CacheNotFoundError, match=f"{bucket}/a.parquet"):
        EmbeddingCache.open(f"{bucket}/a.parquet")
    with pytest.raises(
        CacheNotFoundError, match=r"s3://no-such-bucket/a\.parquet: there is no such bucket"
    ):
        EmbeddingCache.open("s3://no-such-bucket/a.parquet")
    with pytest.raises(ArgumentError, match=r"https://x/a\.parquet: expected a path, or a URL"):
        EmbeddingCache.open("https://x/a.parquet")
    with pytest.raises(ArgumentError, match="give it as a str, not as a Path"):
        EmbeddingCache.open(Path(f"{bucket}/a.parquet"))
    with pytest.raises(InputError, match=f"{bucket}/in: no such file"):
        read_states([f"{bucket}/in"])
    with pytest.raises(InputError, match=r"\*\* is for files of this machine"):
        read_states([f"{bucket}/**/*.parquet"])
    with pytest.raises(InputError, match="s3://no-such-bucket/in"):
        read_states(["s3://no-such-bucket/in"])


def test_names_are_taken_as_they_are(bucket, store, write_cache, rows):
    """As by the stores' own tools: nothing in a key is an escape, a query or a fragment."""
    made = rows(3)
    for name in ("a b.parquet", "ℕ#1.parquet", "runs/a%2Fb+c&d=e.parquet"):
        write_cache(f"{bucket}/{name}", ["x", "y", "z"], made)
        assert name in objects(store, bucket)
        assert np.array_equal(EmbeddingCache.open(f"{bucket}/{name}").matrix(), made)
    upload(store, f"{bucket}/in/a #1%.jsonl", b'{"state_pp": "x"}')
    assert read_states([f"{bucket}/in/"]).texts == ["x"]


@pytest.mark.parametrize("pattern", ["", "/", "/s*", "/split=t*", "/*=*/"])
def test_partitioned_folders_of_a_store_are_read_whole(bucket, store, pattern):
    for name in ("split=train/0.parquet", "split=test/deep/1.parquet", "split=train/_SUCCESS"):
        with store.open_output_stream(f"{bucket.removeprefix('s3://')}/in/{name}") as file:
            if name.endswith("parquet"):
                pq.write_table(pa.table({"state_pp": [name]}), file)
    upload(store, f"{bucket}/in/_old/2.jsonl", b'{"state_pp": "old"}')
    found = read_states([f"{bucket}/in{pattern}"])
    assert found.texts == ["split=test/deep/1.parquet", "split=train/0.parquet"]
    if pattern in ("", "/"):
        assert any("_SUCCESS" in note for note in found.notes)
        assert any("_old: skipped 1" in warning for warning in found.warnings)


def test_a_bucket_is_read_as_a_folder_but_is_no_output(bucket, write_cache, rows):
    made = rows(2)
    write_cache(f"{bucket}/a.parquet", ["x", "y"], made)
    assert np.array_equal(EmbeddingCache.open(bucket).matrix(), made)
    for url in (bucket, f"{bucket}/"):
        with pytest.raises(ArgumentError, match="is a bucket; name a file or a folder in it"):
            _core.CacheWriter(url)


def test_an_object_cannot_be_mapped(bucket, write_cache, rows):
    write_cache(f"{bucket}/a.parquet", ["x", "y"], rows(2))
    with pytest.raises(CacheFormatError, match="in an object store, so it cannot be mapped"):
        MappedCache.open(f"{bucket}/a.parquet")


def test_file_urls_are_paths(tmp_path, write_cache, rows, run_cli, llama):
    made = rows(5)
    write_cache(f"file://{tmp_path}/a.parquet", [f"s{i}" for i in range(5)], made)
    assert np.array_equal(MappedCache.open(tmp_path / "a.parquet").gather(["s3"])[0], made[3])
    assert np.array_equal(EmbeddingCache.open(f"file://{tmp_path}/a.parquet").matrix(), made)
    assert not (tmp_path / "a.parquet.partial").exists()
    code, _, _ = run_cli(
        "encode", "--model-path", llama, "--trajectories", f"file://{FILES[0]}",
        "--output", f"file://{tmp_path}/b.parquet", "--verify-sample", 2,
    )  # fmt: skip
    assert code == 0
    assert len(EmbeddingCache.open(tmp_path / "b.parquet")) > 0


def test_file_urls_are_paths_in_workers_in_patterns_and_in_folders_of_odd_names(
    tmp_path, write_cache, rows, run_cli, llama, identity
):
    made = rows(5)
    write_cache(tmp_path / "a.parquet", [f"s{i}" for i in range(5)], made)
    for cache in (EmbeddingCache, MappedCache):
        opened = cache.open(f"file://{tmp_path}/a.parquet")
        assert np.array_equal(pickle.loads(pickle.dumps(opened)).gather(["s3"])[0], made[3])
    inputs = tmp_path / "in"
    inputs.mkdir()
    (inputs / FILES[0].name).write_bytes(FILES[0].read_bytes())
    code, out, err = run_cli(
        "plan", "--model-path", llama, "--trajectories", f"file://{inputs}/*.parquet", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["states"] > 0
    # A part whose name would be another one in a URL.
    folder = tmp_path / "parts"
    folder.mkdir()
    write_cache(folder / "a%20b.parquet", ["x", "y"], rows(2))
    writer = CacheWriter(folder)
    writer.open(identity(), 16)
    writer.append(["z"], rows(1, seed=9))
    writer.finish({})
    by_path, by_url = (EmbeddingCache.open(name) for name in (folder, f"file://{folder}"))
    assert by_path.states() == by_url.states() == ["x", "y", "z"]


def test_the_main_job_from_store_to_store(tmp_path, bucket, store, run_cli, llama):
    """Inputs as an object, a folder and a pattern; the embeddings equal those of a local run."""
    for file in FILES:
        upload(store, f"{bucket}/runs/{file.name}", file.read_bytes())
    upload(store, f"{bucket}/runs/notes.txt", b"nothing")
    lines = [json.dumps({"state_pp": f"x : Nat ⊢ x = {i}" + " " * 900}) for i in range(3)]
    upload(store, f"{bucket}/more/one.jsonl", "\n".join(lines).encode())
    inputs = [f"{bucket}/runs/", f"{bucket}/mo*/*.jsonl", f"{bucket}/runs/{FILES[0].name}"]
    options = [
        "--model-path",
        llama,
        "--max-length",
        400,
        "--overlong",
        "truncate",
        "--verify-sample",
        4,
        "--json",
    ]
    output = f"{bucket}/out/states.parquet"
    code, out, err = run_cli("encode", "--trajectories", *inputs, "--output", output, *options)
    assert code == 0, err
    summary = json.loads(out)
    assert summary["output"] == output
    assert summary["truncated"] > 0
    left = {name for name in objects(store, bucket) if name.startswith("out/")}
    assert left == {"out/states.parquet", "out/states.parquet.overlong.jsonl"}
    (tmp_path / "one.jsonl").write_text("\n".join(lines))
    here = tmp_path / "states.parquet"
    files = [*FILES, tmp_path / "one.jsonl"]
    assert run_cli("encode", "--trajectories", *files, "--output", here, *options)[0] == 0
    there, local = EmbeddingCache.open(output), EmbeddingCache.open(here)
    assert there.states() == local.states()
    assert np.array_equal(there.matrix(), local.matrix())
    sources = [source["path"] for source in there.provenance[0]["sources"]]
    assert sources == [
        *(f"{bucket}/runs/{file.name}" for file in FILES),
        f"{bucket}/more/one.jsonl",
    ]
    digests = {source["digest"] for source in there.provenance[0]["sources"]}
    assert digests == {source["digest"] for source in local.provenance[0]["sources"]}
    code, out, _ = run_cli(
        "encode", "--trajectories", *files, "--output", f"{bucket}/again.parquet",
        "--cache", output, *options,
    )  # fmt: skip
    assert (code, json.loads(out)["encoded"]) == (0, 0)
    for command in ("audit", "inspect"):
        assert run_cli(command, output)[0] == 0
    shown = subprocess.run([PROVER, "inspect", output], capture_output=True, text=True, check=True)
    assert f"{len(there)}" in shown.stdout


def test_a_killed_run_goes_on_where_it_stopped_though_this_machine_forgot_it(
    bucket, store, llama, tmp_path
):
    output = f"{bucket}/states.parquet"
    command = [
        sys.executable, "-m", "ebm_encode", "encode", "--model-path", llama,
        "--trajectories", *map(str, FILES), "--verify-sample", "4", "--json",
        "--checkpoint-rows", "20", "--max-batch-tokens", "600",
    ]  # fmt: skip
    kills = 0
    while kills < 2:
        run = subprocess.Popen([*command, "--output", output], stdout=subprocess.PIPE)
        before = len(objects(store, bucket))
        while run.poll() is None and len(objects(store, bucket)) < before + 2:
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        assert run.returncode == -signal.SIGKILL
        kills += 1
    assert "states.parquet" not in objects(store, bucket)
    done = subprocess.run([*command, "--output", output], check=True, capture_output=True)
    assert json.loads(done.stdout)["already_there"] > 0
    assert objects(store, bucket) == {"states.parquet"}
    here = tmp_path / "here.parquet"
    subprocess.run([*command, "--output", here], check=True, capture_output=True)
    there = EmbeddingCache.open(output)
    assert there.states() == EmbeddingCache.open(here).states()
    assert np.array_equal(there.matrix(), EmbeddingCache.open(here).matrix())
