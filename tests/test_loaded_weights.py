"""Published forms of models: what they leave out on purpose is no fault, what they lack is one."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ebm_encode import Encoder
from ebm_encode.engines.reference import compare
from ebm_encode.errors import ModelError
from test_parity import unbatched


@pytest.fixture
def edited(make_model, tmp_path):
    """A function that makes a copy of a model with other weights in its file."""

    def make(architecture, edit, *, pickled=False, **changes):
        source = make_model(architecture)
        folder = tmp_path / "edited"
        transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
        config = json.loads(Path(source, "config.json").read_bytes())
        (folder / "config.json").write_text(json.dumps(config | changes))
        weights = edit(load_file(f"{source}/model.safetensors"))
        if pickled:
            torch.save(weights, folder / "pytorch_model.bin")
        else:
            weights = {name: tensor.clone() for name, tensor in weights.items()}
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def masks(names, length=2048):
    """Causal masks and the number for what is not seen, as old releases saved them."""
    mask = torch.ones(length, length).tril().bool().view(1, 1, length, length)
    return {name: torch.tensor(-1e4) if "masked" in name else mask for name in names}


OLD_BUFFERS = {
    "gpt2": ["transformer.h.{}.attn.masked_bias", "transformer.h.{}.attn.bias"],
    "gptj": ["transformer.h.{}.attn.masked_bias", "transformer.h.{}.attn.bias"],
    "gpt_neox": [
        *("gpt_neox.layers.{}.attention.bias", "gpt_neox.layers.{}.attention.masked_bias"),
        "gpt_neox.layers.{}.attention.rotary_emb.inv_freq",
    ],
    "llama": ["model.layers.{}.self_attn.rotary_emb.inv_freq"],
}


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("architecture", OLD_BUFFERS)
def test_buffers_of_older_releases(edited, states, architecture, pickled):
    names = [name.format(i) for name in OLD_BUFFERS[architecture] for i in range(3)]
    folder = edited(architecture, lambda weights: weights | masks(names, 32), pickled=pickled)
    embeddings = Encoder.load(str(folder)).encode(states[:6])
    assert compare(embeddings, unbatched(folder, states[:6]))[0] <= 1e-5


def test_buffers_of_a_gpt2_that_was_saved_without_its_head(edited, states):
    def edit(weights):
        bare = {name.removeprefix("transformer."): w for name, w in weights.items()}
        return bare | masks([f"h.{i}.attn.{n}" for i in range(3) for n in ("bias", "masked_bias")])

    folder = edited("gpt2", edit)
    embeddings = Encoder.load(str(folder)).encode(states[:6])
    assert compare(embeddings, unbatched(folder, states[:6]))[0] <= 1e-5


@pytest.mark.parametrize("name", ["attn.bias", "attn.masked_bias"])
def test_a_weight_with_the_name_of_a_mask_is_not_skipped(edited, name):
    more = {f"transformer.h.{i}.{name}": torch.ones(64) for i in range(3)}
    with pytest.raises(ModelError, match="have no place in the model"):
        Encoder.load(str(edited("gptj", lambda weights: weights | more)))


def speculating(weights, layer=3):
    """Adds what DeepSeek-V3 has behind its last layer."""
    like = {
        name.replace("layers.2.", f"layers.{layer}."): tensor.clone()
        for name, tensor in weights.items()
        if "layers.2." in name
    }
    extra = ("eh_proj.weight", "enorm.weight", "hnorm.weight", "shared_head.norm.weight")
    return weights | like | {f"model.layers.{layer}.{name}": torch.ones(8) for name in extra}


def test_layers_that_only_guess_further_tokens(edited, states):
    folder = edited("deepseek_v3", speculating, num_nextn_predict_layers=1)
    embeddings = Encoder.load(str(folder)).encode(states[:6])
    assert compare(embeddings, unbatched(folder, states[:6]))[0] <= 1e-5


@pytest.mark.parametrize(
    ("edit", "changes"),
    [
        (speculating, {"num_nextn_predict_layers": 0}),
        (lambda weights: speculating(weights, 4), {"num_nextn_predict_layers": 1}),
        (lambda weights: weights, {"num_nextn_predict_layers": 1, "num_hidden_layers": 2}),
        (
            lambda weights: weights | {"model.layers.1.mlp.gate.lora_A.weight": torch.ones(4, 4)},
            {},
        ),
    ],
)
def test_other_weights_without_a_place_are_refused(edited, edit, changes):
    with pytest.raises(ModelError, match="have no place in the model"):
        Encoder.load(str(edited("deepseek_v3", edit, **changes)))


def test_a_buffer_that_the_files_lack_is_an_error(edited):
    """A router's bias decides which experts a token goes to."""

    def edit(weights):
        return {name: w for name, w in weights.items() if "e_score_correction_bias" not in name}

    with pytest.raises(ModelError, match=r"e_score_correction_bias.*randomly initialised"):
        Encoder.load(str(edited("deepseek_v3", edit)))
