"""Killed at any moment, on a full disk, interrupted: nothing saved is lost, the end is the same."""

import random
import resource
import signal
import subprocess
import sys
import time
from subprocess import DEVNULL, PIPE

import numpy as np
import pytest

from ebm_encode import EmbeddingCache
from ebm_encode._core import CacheWriter
from ebm_encode.errors import OutputLockedError
from matrix import first
from support import FILES

# A writer without a model: fast, so that it can be killed often. It does an append for each line
# that it is sent, and tells when that is done, so that however fast it is, it is killed at work.
APPENDS = 300
WRITER = """
import sys, json, numpy as np
from ebm_encode._core import CacheWriter, Identity
output, identity = sys.argv[1:]
writer = CacheWriter(output)
writer.open(Identity.from_json(identity), 64, checkpoint_rows=20)
for i in range(0, 3000, 10):
    sys.stdin.readline()
    rows = np.stack([np.random.default_rng(k).standard_normal(64) for k in range(i, i + 10)])
    writer.append([f"state {k}" for k in range(i, i + 10)], rows.astype(np.float32))
    print(i, flush=True)
writer.finish({"model": "a model"})
"""


def command(model, output, *more, checkpoint_rows=30):
    return [
        sys.executable, "-m", "ebm_encode", "encode", "--model-path", model, "--trajectories",
        *map(str, FILES), "--output", str(output), "--batch-size", "8",
        "--checkpoint-rows", str(checkpoint_rows), *more,
    ]  # fmt: skip


def rows_of(path):
    cache = EmbeddingCache.open(path)
    return dict(zip(cache.states(), cache.matrix(), strict=True))


def assert_same(path, expected):
    found = rows_of(path)
    assert found.keys() == expected.keys()
    assert all((found[state] == row).all() for state, row in expected.items())


@pytest.fixture(scope="module")
def uninterrupted(llama, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "out.parquet"
    subprocess.run(command(llama, output), check=True, capture_output=True)
    return rows_of(output)


def test_a_writer_killed_again_and_again_ends_with_every_embedding(tmp_path, identity):
    output = tmp_path / "out.parquet"
    arguments = [sys.executable, "-c", WRITER, str(output), identity().to_json()]
    draw = random.Random(11)
    # Within an append or the checkpoint after it, and then within the last steps.
    for appends in [*(draw.randrange(APPENDS) for _ in range(20)), *[APPENDS] * 5]:
        with subprocess.Popen(arguments, stdin=PIPE, stdout=PIPE, stderr=DEVNULL) as process:
            process.stdin.write(b"\n" * appends)
            process.stdin.flush()
            for _ in range(appends - 1):
                process.stdout.readline()
            time.sleep(draw.uniform(0, 0.01))
            process.kill()
        if output.exists():
            break
        assert appends == APPENDS or process.returncode == -signal.SIGKILL
    subprocess.run(arguments, check=True, input=b"\n" * APPENDS, stdout=DEVNULL)
    found = rows_of(output)
    assert len(found) == 3000
    for k in range(0, 3000, 7):
        right = np.random.default_rng(k).standard_normal(64).astype(np.float32)
        assert (found[f"state {k}"] == right).all()
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("kills", first([2, 6]))
def test_a_run_killed_at_random_moments_ends_with_the_same_embeddings(
    llama, tmp_path, uninterrupted, kills
):
    output = tmp_path / "out.parquet"
    work = tmp_path / "out.parquet.partial"
    draw = random.Random(5)
    saved = []
    for _ in range(kills):
        process = subprocess.Popen(command(llama, output), stderr=subprocess.DEVNULL)
        before = len(list(work.glob("part-*")))
        deadline = time.monotonic() + 60
        target = before + draw.randrange(1, 3)
        while len(list(work.glob("part-*"))) < target and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.wait()
        saved.append(len(list(work.glob("part-*"))))
        if output.exists():
            break
    assert saved == sorted(saved), "no checkpoint is ever lost"
    result = subprocess.run(command(llama, output, "--json"), capture_output=True, check=True)
    assert b'"already_there": 0' not in result.stdout
    assert_same(output, uninterrupted)


@pytest.mark.parametrize("number", first([signal.SIGTERM, signal.SIGINT]))
def test_an_interrupted_run_saves_exits_130_and_goes_on(llama, tmp_path, uninterrupted, number):
    output = tmp_path / "out.parquet"
    process = subprocess.Popen(
        command(llama, output, checkpoint_rows=100_000), stderr=subprocess.PIPE, text=True
    )
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "engine shared-prefix" in line:
            break
    time.sleep(0.15)
    process.send_signal(number)
    lines.append(process.communicate(timeout=30)[1])
    assert process.returncode == 130
    assert "Run the same command again to resume" in " ".join("".join(lines).split())
    assert not output.exists()
    subprocess.run(command(llama, output), check=True, capture_output=True)
    assert_same(output, uninterrupted)


def test_a_full_disk_is_reported_and_loses_nothing(llama, tmp_path, uninterrupted):
    """A limit on the size of files stands in for a full disk: writes fail part of the way."""
    output = tmp_path / "out.parquet"

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    result = subprocess.run(
        command(llama, output), preexec_fn=limited, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "cannot write" in " ".join(result.stderr.split())
    assert not output.exists()
    shards = list((tmp_path / "out.parquet.partial").glob("part-*.parquet"))
    assert len(shards) > 10, "all checkpoints were saved, only the merged file is too large"
    assert not list((tmp_path / "out.parquet.partial").glob("*.tmp"))
    subprocess.run(command(llama, output), check=True, capture_output=True)
    assert_same(output, uninterrupted)


def test_the_former_output_stands_until_the_new_one_is_whole(llama, tmp_path, write_cache, rows):
    output = tmp_path / "out.parquet"
    write_cache(output, ["a"], rows(1, 64))
    before = output.read_bytes()

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    failed = subprocess.run(
        command(llama, output, "--overwrite"), preexec_fn=limited, capture_output=True, check=False
    )
    assert failed.returncode == 2
    assert output.read_bytes() == before


def test_two_writers_on_one_output_the_second_is_refused(tmp_path, run_cli, llama):
    output = tmp_path / "out.parquet"
    first = CacheWriter(output)
    with pytest.raises(OutputLockedError, match=r"out\.parquet"):
        CacheWriter(output)
    code, _, err = run_cli(
        "encode", "--model-path", llama, "--trajectories", FILES[0], "--output", output
    )
    assert code == 2
    assert "another process is writing" in " ".join(err.split())
    first.close()
    CacheWriter(output).close()
    assert not list(tmp_path.iterdir()), "an unused lock leaves nothing"
