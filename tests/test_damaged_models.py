"""Folders that are no usable model: each is refused by name, and no made-up number gets out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from ebm_encode import Encoder
from ebm_encode.engines.reference import compare
from ebm_encode.errors import ModelError, TemplateError


@pytest.fixture
def copy(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "copy")


def with_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 0},
        {"hidden_size": "wide"},
        {"hidden_size": -64},
        {"hidden_act": "nope"},
        {"dtype": "float99"},
        {"model_type": "nope"},
    ],
)
def test_a_config_without_meaning(copy, changes):
    with_config(copy, **changes)
    with pytest.raises(ModelError, match="copy: "):
        Encoder.load(str(copy))


def test_a_config_with_fewer_layers_than_the_weights(copy):
    with_config(copy, num_hidden_layers=2)
    with pytest.raises(ModelError, match=r"have no place in the model.*layers\.2"):
        Encoder.load(str(copy))


def test_a_config_with_more_layers_than_the_weights(copy):
    with_config(copy, num_hidden_layers=4)
    with pytest.raises(ModelError, match=r"are not in its files.*layers\.3"):
        Encoder.load(str(copy))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"["),
        ("config.json", b"[1]"),
        ("config.json", b"\xff\xfe"),
        ("tokenizer.json", b"{}"),
        ("tokenizer_config.json", b"[]"),
        ("model.safetensors", b"junk"),
        ("model.safetensors", b""),
    ],
)
def test_damaged_files(copy, file, content):
    (copy / file).write_bytes(content)
    with pytest.raises(ModelError, match="copy: cannot be loaded"):
        Encoder.load(str(copy))


@pytest.mark.parametrize("index", [{}, [], {"weight_map": {"a": "model-1.safetensors"}}])
def test_damaged_indices_of_weights(copy, index):
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json"):
        Encoder.load(str(copy))


def test_junk_in_the_old_weight_format(copy):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"junk")
    with pytest.raises(ModelError, match="copy: cannot be loaded"):
        Encoder.load(str(copy))


def test_no_tokenizer(copy):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (copy / file).unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        Encoder.load(str(copy))


def test_a_tokenizer_of_another_model(copy, states):
    weights = load_file(copy / "model.safetensors")
    few = {k: v[:300].copy() for k, v in weights.items() if "embed" in k or "lm_head" in k}
    save_file(weights | few, copy / "model.safetensors", metadata={"format": "pt"})
    with_config(copy, vocab_size=300)
    with pytest.raises(ModelError, match="different vocabulary sizes"):
        Encoder.load(str(copy)).encode(states)


def test_an_adapter_is_not_ignored(copy):
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="adapter"):
        Encoder.load(str(copy))


def test_a_device_that_computes_nothing(llama):
    with pytest.raises(ModelError, match="meta"):
        Encoder.load(llama, device="meta")


def test_a_template_that_leaves_no_room_for_the_state(llama, tmp_path):
    template = tmp_path / "long.txt"
    template.write_text("many words before it " * 20 + "{state}")
    with pytest.raises(TemplateError, match=r"tokens before the state.*have 16"):
        Encoder.load(llama, template=str(template), max_length=16)


def test_embeddings_as_wide_as_the_model_makes_them(tmp_path, tokenizer, states):
    """OPT may project its last hidden state to another width than `hidden_size`."""
    config = transformers.OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
    )
    transformers.OPTForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = Encoder.load(str(tmp_path))
    assert encoder.dim == 32
    assert encoder.encode(states[:3]).shape == (3, 32)


def test_inner_layers_where_the_model_counts_them_otherwise(tmp_path, tokenizer, states):
    """What enters a Mamba block is not what transformers calls its hidden state."""
    config = transformers.MambaConfig(
        vocab_size=len(tokenizer), hidden_size=32, state_size=4, num_hidden_layers=2
    )
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="only -1"):
        Encoder.load(str(tmp_path), layer=-2)
    encoder = Encoder.load(str(tmp_path))
    embeddings = encoder.encode(states[:8])
    expected = np.stack([encoder.encode([state])[0] for state in states[:8]])
    assert compare(embeddings, expected)[0] <= 1e-5


def test_a_name_that_is_no_path(tmp_path):
    for name in ("", "x" * 300, str(tmp_path / "a\0b")):
        with pytest.raises(ModelError):
            Encoder.load(name)
    with pytest.raises(ModelError, match="is a file"):
        Encoder.load(str(Path(__file__)))
