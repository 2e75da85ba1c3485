"""Models that are no plain causal transformers: never wrong, only slower."""

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ebm_encode import Encoder
from ebm_encode.engines.reference import compare
from ebm_encode.errors import ModelError
from matrix import pairs

T5 = {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 3, "num_heads": 4}
BART = {"d_model": 64, "encoder_layers": 3, "decoder_layers": 2, "max_position_embeddings": 1024}
BART |= dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 4)
BART |= dict.fromkeys(["encoder_ffn_dim", "decoder_ffn_dim"], 128)
# Each half has its own configuration, and the decoder fewer layers.
HALF = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16}
HALF |= {"num_key_value_heads": 2, "query_pre_attn_scalar": 16, "sliding_window": 24}
HALF |= {"max_position_embeddings": 1024}
T5GEMMA = {
    "encoder": HALF | {"num_hidden_layers": 3},
    "decoder": HALF | {"num_hidden_layers": 2},
}
SHAPES = {"t5": T5, "mt5": T5, "umt5": T5, "bart": BART, "mbart": BART, "pegasus": BART}
SHAPES |= {"t5gemma": T5GEMMA}

OWN_CODE = '''
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput


class WalkConfig(PretrainedConfig):
    model_type = "walk"

    def __init__(self, vocab_size=64, hidden_size=32, num_hidden_layers=2, **rest):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.num_hidden_layers = num_hidden_layers
        super().__init__(**rest)


class WalkModel(PreTrainedModel):
    """Recurrent: takes no attention function, and pays no heed to masks and positions."""

    config_class = WalkConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.embed = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.steps = torch.nn.ModuleList(
            torch.nn.GRU(config.hidden_size, config.hidden_size, batch_first=True)
            for _ in range(config.num_hidden_layers)
        )
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, attention_mask=None, return_dict=True, **_):
        hidden = self.embed(input_ids)
        for step in self.steps:
            hidden = hidden + step(hidden)[0]
        return BaseModelOutput(last_hidden_state=hidden)


class WalkForCausalLM(PreTrainedModel):
    config_class = WalkConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = WalkModel(config)
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids, **rest):
        return CausalLMOutput(logits=self.lm_head(self.model(input_ids, **rest)[0]))
'''


@pytest.fixture(scope="module")
def mixed(states):
    """Neighbours that share much, one short, one long."""
    by_length = sorted(states, key=len)
    return [*sorted(states)[100:120], by_length[0], by_length[-1]]


@pytest.fixture(scope="module")
def encoder_decoder(tokenizer, tmp_path_factory):
    def make(kind):
        tokens = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1}
        tokens |= {"pad_token_id": 0, "decoder_start_token_id": 0}
        shape = {
            name: value | tokens if isinstance(value, dict) else value
            for name, value in SHAPES[kind].items()
        }
        config = transformers.AutoConfig.for_model(kind, **shape, **tokens)
        torch.manual_seed(0)
        model = transformers.AutoModelForSeq2SeqLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.1)
        folder = tmp_path_factory.mktemp(kind)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def encoded_alone(folder, texts, layer):
    """The encoder on one text at a time, by plain transformers."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval().get_encoder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :1024]
        with torch.no_grad():
            hidden = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True
            ).hidden_states
        rows.append(hidden[layer][0].mean(dim=0).numpy())
    return np.stack(rows)


@pytest.mark.parametrize(("kind", "layer"), pairs(SHAPES, [-1, 1, 3]))
def test_of_an_encoder_decoder_it_is_the_encoder(encoder_decoder, mixed, kind, layer):
    """Its tokens see those after them, so no prefix can be shared."""
    folder = encoder_decoder(kind)
    encoder = Encoder.load(str(folder), layer=layer)
    assert encoder.choice.engine.name == "padded", encoder.choice.reason
    assert compare(encoder.encode(mixed), encoded_alone(folder, mixed, layer))[0] <= 1e-5
    with pytest.raises(ModelError, match="`engine` shared-prefix: cannot be used"):
        Encoder.load(str(folder), engine="shared-prefix")


def test_an_encoder_without_its_weights_is_refused(encoder_decoder):
    folder = encoder_decoder("t5")
    weights = load_file(folder / "model.safetensors")
    kept = {name: w for name, w in weights.items() if "encoder.block.1" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="randomly initialised"):
        Encoder.load(str(folder))


@pytest.fixture
def own_code(tokenizer, tmp_path):
    """A model that brings its own code, made by that code."""
    folder = tmp_path / "walk"
    folder.mkdir()
    (folder / "modeling_walk.py").write_text(OWN_CODE)
    module: dict[str, object] = {"__name__": "modeling_walk"}
    exec(OWN_CODE, module)
    config = module["WalkConfig"](vocab_size=len(tokenizer))
    config.auto_map = {
        "AutoConfig": "modeling_walk.WalkConfig",
        "AutoModelForCausalLM": "modeling_walk.WalkForCausalLM",
    }
    torch.manual_seed(0)
    model = module["WalkForCausalLM"](config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model.model


def test_a_model_with_custom_code_gets_an_exact_engine(
    own_code, tokenizer, mixed, monkeypatch, tmp_path
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    folder, model = own_code
    with pytest.raises(ModelError, match="pass `trust_remote_code=True`"):
        Encoder.load(str(folder))
    encoder = Encoder.load(str(folder), trust_remote_code=True)
    assert encoder.choice.engine.name == "padded", encoder.choice.reason
    with torch.no_grad():
        right = [model(tokenizer(s, return_tensors="pt")["input_ids"])[0] for s in mixed]
    right = np.stack([hidden[0].mean(dim=0).numpy() for hidden in right])
    assert compare(encoder.encode(mixed), right)[0] <= 1e-5


def test_other_code_is_another_encoder(own_code, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    folder, _ = own_code
    before = Encoder.load(str(folder), trust_remote_code=True).identity
    (folder / "modeling_walk.py").write_text(OWN_CODE.replace("hidden + step", "hidden - step"))
    assert Encoder.load(str(folder), trust_remote_code=True).identity != before
