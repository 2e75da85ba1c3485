"""A library that changes a model's numbers is noticed when something is added to a cache."""

import json
import shutil

import numpy as np
import pytest
import transformers

from ebm_encode import EmbeddingCache, Encoder
from ebm_encode.bulk.progress import EncodingProgress
from ebm_encode.bulk.reference_embeddings import KEY, difference, reference_of
from ebm_encode.bulk.run import BulkRun

MLP = transformers.models.llama.modeling_llama.LlamaMLP


@pytest.fixture
def files(states, tmp_path):
    """Two files of states; the second has those of the first as well."""
    made = []
    for count in (10, 20):
        made.append(tmp_path / f"{count}.jsonl")
        made[-1].write_text("\n".join(json.dumps({"state_pp": s}) for s in states[:count]))
    return made


@pytest.fixture
def other_release(monkeypatch):
    """A function that makes this another release of transformers, with another MLP."""

    def upgrade(factor=0.9):
        forward = MLP.forward
        monkeypatch.setattr(MLP, "forward", lambda self, x: forward(self, x) * factor)

    return upgrade


def refused(result):
    code, _, err = result
    assert code == 2, err
    text = " ".join(err.split())
    assert "gave other embeddings when it was made" in text
    assert f'"transformers": "{transformers.__version__}"' in text
    assert "hint: use the former versions" in text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_adding_to_a_file_after_an_upgrade(encode, files, tmp_path, other_release, dtype):
    options = ("--dtype", dtype)
    assert encode(*options, files=files[:1])[0] == 0
    before = (tmp_path / "out.parquet").read_bytes()
    other_release()
    refused(encode(*options, files=files[1:]))
    assert (tmp_path / "out.parquet").read_bytes() == before
    code, summary, _ = encode(*options, "--overwrite", files=files[1:])
    assert (code, summary["encoded"], summary["already_there"]) == (0, 20, 0)


def test_adding_to_a_folder_after_an_upgrade(encode, files, tmp_path, other_release):
    folder = tmp_path / "parts"
    folder.mkdir()
    assert encode(files=files[:1], output=folder)[0] == 0
    other_release()
    refused(encode(files=files[1:], output=folder))
    assert len(EmbeddingCache.open(folder)) == 10


def test_taking_from_another_cache_after_an_upgrade(encode, files, tmp_path, other_release):
    assert encode(files=files[:1])[0] == 0
    other_release()
    other = tmp_path / "other.parquet"
    refused(encode("--cache", tmp_path / "out.parquet", files=files[1:], output=other))
    assert not other.exists()


@pytest.fixture
def interrupt(encode, files, monkeypatch):
    """A function that makes a run and stops it once some of its embeddings were saved."""

    def run(*options, after):
        advance = EncodingProgress.advance
        seen = []

        def stop(self, *arguments):
            advance(self, *arguments)
            seen.append(arguments)
            if sum(states for states, *_ in seen) >= after:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(EncodingProgress, "advance", stop)
            code, _, err = encode("--max-batch-tokens", 300, *options, files=files[1:])
        assert code == 130, err

    return run


@pytest.fixture
def _interrupted(interrupt):
    interrupt(after=10)


@pytest.mark.usefixtures("_interrupted")
def test_resuming_after_an_upgrade(encode, files, other_release, llama, states):
    other_release()
    refused(encode("--max-batch-tokens", 300, files=files[1:]))
    code, summary, _ = encode("--max-batch-tokens", 300, "--overwrite", files=files[1:])
    assert (code, summary["encoded"], summary["already_there"]) == (0, 20, 0)
    cache = EmbeddingCache.open(summary["output"])
    right = Encoder.load(llama).encode(states[:20])
    assert np.allclose(cache.gather(states[:20]), right, rtol=0, atol=1e-4)


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_no_embedding_of_former_code_comes_back_after_an_overwriting_run_was(
    encode, interrupt, files, other_release, llama, states, tmp_path, how, monkeypatch
):
    interrupt(after=15)
    other_release()
    run = BulkRun.encode
    at_once = tmp_path / "at once"

    def as_it_stands_before_anything_is_encoded(self, *arguments):
        shutil.copytree(tmp_path, at_once)
        return run(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(BulkRun, "encode", as_it_stands_before_anything_is_encoded)
        interrupt("--overwrite", after=1)
    if how == "killed":  # nothing but the files of that moment is left
        shutil.rmtree(tmp_path / "out.parquet.partial")
        (at_once / "out.parquet.partial").rename(tmp_path / "out.parquet.partial")
    code, summary, err = encode("--max-batch-tokens", 300, files=files[1:])
    assert code == 0, err
    assert (1 if how == "stopped" else 0) <= summary["already_there"] < 15
    right = Encoder.load(llama).encode(states[:20])
    stored = EmbeddingCache.open(tmp_path / "out.parquet").gather(states[:20])
    assert np.allclose(stored, right, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("_interrupted")
def test_resuming_by_the_same_code(encode, files):
    code, summary, _ = encode("--max-batch-tokens", 300, files=files[1:])
    assert code == 0
    assert 10 <= summary["already_there"] < 20


def test_what_only_rounds_otherwise_is_no_other_code(encode, files, llama, other_release):
    assert encode(files=files[:1])[0] == 0
    other_release(1 + 1e-6)
    code, summary, _ = encode("--engine", "unbatched", files=files[1:])
    assert (code, summary["already_there"]) == (0, 10)
    first, second = (Encoder.load(llama, batch_size=size) for size in (1, 64))
    assert difference(reference_of(first), reference_of(second)) < 1e-5


def test_what_is_kept_is_small_and_there(encode, files, tmp_path):
    assert encode(files=files[:1])[0] == 0
    provenance = json.dumps(EmbeddingCache.open(tmp_path / "out.parquet").provenance)
    assert provenance.count(KEY) == 1
    found = json.loads(provenance[provenance.index(KEY) + len(KEY) + 3 :].split("}], ")[0] + "}]")
    assert [len(record["sums"]) for record in found] == [8] * 4
