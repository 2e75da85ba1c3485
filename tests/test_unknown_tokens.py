"""A text with a token that the model does not know is refused and reported; others are encoded."""

import json

import numpy as np
import pytest
import transformers

from ebm_encode import EmbeddingCache, Encoder
from ebm_encode.errors import EncodingError

ADDED = "ℤ_unheard"


@pytest.fixture
def lacking(make_model, tmp_path):
    """Tokens were added to the tokenizer, and the embeddings not resized."""
    source = make_model("llama")
    folder = tmp_path / "lacking"
    transformers.AutoModelForCausalLM.from_pretrained(source).save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens([ADDED])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_text_is_quarantined_and_the_run_goes_on(encode, lacking, states, tmp_path):
    source = tmp_path / "s.jsonl"
    texts = [*states[:12], f"x : {ADDED}\n⊢ x = x"]
    source.write_text("\n".join(json.dumps({"state_pp": text}) for text in texts))
    for _ in range(2):  # run again, it is no other
        code, summary, err = encode(model=lacking, files=[source])
        assert (code, summary["rows"]) == (1, 12), err
        (record,) = summary["quarantined"]
        assert (record["state"], record["kind"]) == (texts[-1], "unknown_token")
        assert f"'{ADDED}'" in record["reason"]
        assert "no embedding: the model knows" in record["reason"]
    listed = (tmp_path / "out.parquet.quarantine.jsonl").read_text()
    assert json.loads(listed)["state"] == texts[-1]
    assert len(EmbeddingCache.open(tmp_path / "out.parquet")) == 12
    assert encode("--allow-quarantine", model=lacking, files=[source])[0] == 0


def test_encode_names_the_text(lacking):
    encoder = Encoder.load(lacking)
    with pytest.raises(EncodingError, match=rf"1 of 2 states.*state 1 .*{ADDED}.*no embedding"):
        encoder.encode(["⊢ a", f"⊢ {ADDED}"])
    out = np.empty((2, 64), np.float32)
    reports = encoder.encode_into([f"⊢ {ADDED}", "⊢ a"], out)
    assert [report.status for report in reports] == ["unknown_token", "ok"]
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1]).all()


def test_a_special_token_of_a_text_is_text_and_has_embeddings(lacking, llama):
    texts = ["x : [PAD]\n⊢ x = x"]
    assert np.allclose(Encoder.load(lacking).encode(texts), Encoder.load(llama).encode(texts))
