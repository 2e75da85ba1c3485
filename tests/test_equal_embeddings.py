"""Equal embeddings of different texts are kept only where a model makes no difference."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tiny_model
from ebm_encode import EmbeddingCache, Encoder
from ebm_encode._core import CachedEncoder
from ebm_encode.errors import BadRowsError


@pytest.fixture(scope="module")
def make_bare(tmp_path_factory):
    """A function that makes a model of characters whose tokenizer adds no token."""
    vocabulary = {character: i for i, character in enumerate("0123456789abcdef ?")}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", pad_token=" ")

    def make(architecture):
        folder = tmp_path_factory.mktemp(f"bare-{architecture}")
        return str(tiny_model.make_model(folder, tokenizer, architecture, seed=0))

    return make


@pytest.fixture(scope="module")
def no_begin_token(make_bare):
    return make_bare("llama")


def run(run_cli, model, texts, tmp_path, *more):
    inputs = tmp_path / "texts.jsonl"
    inputs.write_text("".join(json.dumps({"state_pp": text}) + "\n" for text in texts))
    output = tmp_path / "out.parquet"
    code, out, err = run_cli(
        "encode", "--model-path", model, "--trajectories", inputs, "--output", output,
        "--verify-sample", 4, "--json", *more,
    )  # fmt: skip
    return code, json.loads(out) if out else None, err, output


CASES = {
    "one token repeated": (["0", "00", "0000", "1", "01"], ()),
    "words in another order": (["ab c", "c ba", "abc ", "de"], ("--layer", "0")),
    "the same last token": (
        [f"{left}{right}" for left in "0123456" for right in "abc"],
        ("--layer", "0", "--pooling", "last"),
    ),
    "words twice": (["ab", "abab", "ba", "abc"], ("--layer", "0")),
}


@pytest.mark.parametrize("case", CASES)
def test_embeddings_that_are_rightly_equal_are_all_kept(run_cli, no_begin_token, tmp_path, case):
    texts, options = CASES[case]
    code, summary, err, output = run(run_cli, no_begin_token, texts, tmp_path, *options)
    assert code == 0, err
    assert summary["rows"] == len(texts)
    cache = EmbeddingCache.open(output)
    layer = {"layer": 0} if options else {}
    pooling = {"pooling": "last"} if "last" in options else {}
    embeddings = Encoder.load(no_begin_token, **layer, **pooling).encode(texts)
    assert np.allclose(embeddings, cache.gather(texts), rtol=1e-5, atol=1e-6)
    assert len(np.unique(np.round(embeddings, 4), axis=0)) < len(texts), "some are equal"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_a_search_keeps_them_too(no_begin_token, tmp_path, case, dtype):
    texts, options = CASES[case]
    layer = {"layer": 0} if options else {}
    pooling = {"pooling": "last"} if "last" in options else {}
    encoder = Encoder.load(no_begin_token, dtype=dtype, **layer, **pooling)
    output = tmp_path / "search.parquet"
    search = CachedEncoder(encoder, append_to=output)
    for text in texts[: len(texts) // 2]:
        search.encode([text])
    search.encode(texts)
    search.finish({})
    cache = EmbeddingCache.open(output)
    assert sorted(cache.states()) == sorted(texts)
    # In front of another search, which meets one more of each class.
    again = CachedEncoder(encoder, cache)
    again.encode([texts[0] * 4 if "repeated" in case else texts[0][::-1]])


def test_learned_positions_tell_a_repeated_token_from_one(make_bare):
    encoder = Encoder.load(make_bare("gpt2"))
    tokens = encoder.prompts.tokenize(["0", "00", "0000", "ab", "ba"])
    assert not encoder.classes.same(tokens[0], tokens[1])
    assert not encoder.classes.same(tokens[3], tokens[4])
    embeddings = encoder.encode(["0", "00", "0000"])
    assert np.linalg.norm(embeddings[0] - embeddings[1]) > 0.05 * np.linalg.norm(embeddings[0])
    first = Encoder.load(make_bare("gpt2"), layer=0)
    assert first.classes.same(tokens[3], tokens[4]), "the mean of the same tokens and places"
    assert not first.classes.same(tokens[0], tokens[1])


def test_a_negative_layer_that_is_the_first_is_known_as_such(no_begin_token):
    encoder = Encoder.load(no_begin_token)
    layers = encoder.model.config.num_hidden_layers
    first = Encoder.load(no_begin_token, layer=-layers - 1)
    embeddings = first.encode(["ab c", "c ba"])
    assert np.allclose(embeddings[0], embeddings[1], rtol=1e-5, atol=1e-6)


def test_a_copied_embedding_of_other_tokens_is_refused_also_at_layer_0(no_begin_token, monkeypatch):
    encoder = Encoder.load(no_begin_token, layer=0, engine="unbatched")
    right = encoder.run_unbatched
    first = right(encoder.prompts.tokenize(["ab"])[0])
    monkeypatch.setattr(encoder.selection.unbatched, "embedding", lambda _: first.copy())
    good = encoder.encode_into(["ab", "ba"], np.empty((2, encoder.dim), np.float32))
    assert [report.status for report in good] == ["ok", "ok"]

    def copies(_, slots):
        slots.array[slots.places] = first
        return iter(())

    monkeypatch.setattr(encoder.runner, "run", copies)
    with pytest.raises(BadRowsError, match="equal, up to rounding"):
        encoder.encode(["ab", "cd"])
