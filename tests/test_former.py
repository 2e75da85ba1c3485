"""Caches of earlier versions: read as ever, and taken over wherever that is provably the same."""

import json

import numpy as np
import pytest

from ebm_encode import EmbeddingCache, Encoder, Identity
from ebm_encode._core import CacheWriter

SPECIAL = ["<s>⊢ True", "x </s> y"]


def in_the_former_form(identity, *, longest=2048):
    """As version 1 of the identity said it: prompts were cut by default."""
    fields = json.loads(identity.to_json())
    del fields["tokenizer_ids"]
    fields |= {"special_tokens": "tokenizer-default-once", "max_length": longest}
    return Identity.from_json(json.dumps(fields | {"truncation": "right" if longest else "none"}))


@pytest.fixture
def former(llama, states, tmp_path):
    """A function that writes a cache as an earlier version did; its embeddings are easily told."""

    def write(longest=2048, name="former.parquet", **changes):
        identity = in_the_former_form(Encoder.load(llama).identity, longest=longest)
        identity = Identity.from_json(json.dumps(json.loads(identity.to_json()) | changes))
        embeddings = np.random.default_rng(0).standard_normal((42, 64)).astype(np.float32)
        writer = CacheWriter(tmp_path / name)
        writer.open(identity, 64)
        assert not any(writer.append([*states[:40], *SPECIAL], embeddings))
        writer.finish({"model": "a model"})
        return tmp_path / name, embeddings

    return write


@pytest.fixture
def file(states, tmp_path):
    source = tmp_path / "states.jsonl"
    lines = [json.dumps({"state_pp": s}) for s in [*states[:40], *SPECIAL]]
    source.write_text("\n".join(lines))
    return source


@pytest.mark.parametrize("longest", [2048, None, 100])
def test_embeddings_of_the_same_tokens_are_taken_over(
    encode, former, file, llama, states, tmp_path, longest
):
    path, embeddings = former(longest)
    before = path.read_bytes()
    lengths = Encoder.load(llama).prompts.tokenize(states[:40]).lengths
    whole = lengths <= (longest or 2048)
    code, summary, err = encode("--cache", path, "--verify-sample", 0, files=[file])
    assert code == 0, err
    assert (summary["from_caches"], summary["encoded"]) == (whole.sum(), 42 - whole.sum())
    cache = EmbeddingCache.open(tmp_path / "out.parquet")
    taken = [state for state, kept in zip(states[:40], whole, strict=True) if kept]
    assert np.array_equal(cache.gather(taken), embeddings[:40][whole])
    assert cache.identity == Encoder.load(llama).identity
    assert path.read_bytes() == before
    assert EmbeddingCache.open(path).gather(SPECIAL).shape == (2, 64)


def test_an_output_of_an_earlier_version_names_the_way_out(encode, former, file):
    path, _ = former(name="out.parquet")
    before = path.read_bytes()
    code, _, err = encode(files=[file])
    text = " ".join(err.split())
    assert (code, path.read_bytes()) == (2, before)
    assert "special_tokens" in text
    assert "hint: an earlier version made it with the same model and options" in text
    assert f"add --cache {path}" in text


@pytest.mark.parametrize("changes", [{"weights": "blake3:other"}, {"template": "x {state}"}])
def test_another_encoder_of_an_earlier_version_is_another_encoder(
    encode, former, file, changes, tmp_path
):
    path, _ = former(**changes)
    code, _, err = encode("--cache", path, files=[file])
    assert (code, next(iter(changes)) in err, "hint: an earlier" in err) == (2, True, False)
    assert not (tmp_path / "out.parquet").exists()
