"""The identity of an encoder: it changes when numbers can change, and only then."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from ebm_encode import Encoder
from ebm_encode.engines.reference import compare
from ebm_encode.errors import ModelError
from test_parity import unbatched
from tokenizers_of_all_kinds import byt5


def fields_that_differ(left, right):
    return [name for name, *_ in left.differences(right)]


def with_settings(folder, file, **changes):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def scaled(source, target, factor):
    weights = load_file(source)
    save_file(
        {name: (values * factor).astype(values.dtype) for name, values in weights.items()},
        target,
        metadata={"format": "pt"},
    )


@pytest.fixture
def copy(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "copy")


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("beside", [False, True])
def test_weights_that_config_json_names_are_those_that_count(copy, states, beside, sharded):
    scaled(copy / "model.safetensors", copy / "trained.safetensors", 1.1)
    named = "trained.safetensors"
    if sharded:
        names = load_file(copy / "trained.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, named)}
        (copy / "trained.safetensors.index.json").write_text(json.dumps(index))
        named = "trained.safetensors.index.json"
    with_settings(copy, "config.json", transformers_weights=named)
    if not beside:
        (copy / "model.safetensors").unlink()
    encoder = Encoder.load(str(copy))
    assert compare(encoder.encode(states[:9]), unbatched(copy, states[:9]))[0] <= 1e-5
    scaled(copy / "trained.safetensors", copy / "trained.safetensors", 1.1)
    changed = Encoder.load(str(copy))
    assert fields_that_differ(encoder.identity, changed.identity) == ["weights"]


@pytest.mark.parametrize("named", ["../model.safetensors", "missing.safetensors", "w.bin", 7])
def test_weights_that_cannot_be_what_config_json_names(copy, named):
    with_settings(copy, "config.json", transformers_weights=named)
    with pytest.raises(ModelError, match="transformers_weights"):
        Encoder.load(str(copy))


def test_settings_of_a_tokenizer_outside_of_its_json(llama, copy):
    before = Encoder.load(llama)
    with_settings(copy, "tokenizer_config.json", split_special_tokens=True)
    after = Encoder.load(str(copy))
    assert fields_that_differ(before.identity, after.identity) == ["tokenizer_ids"]


def test_settings_of_a_tokenizer_that_change_no_id(llama, copy):
    with_settings(
        copy,
        "tokenizer_config.json",
        padding_side="left",
        truncation_side="left",
        model_max_length=4096,
        chat_template="{{ messages }}",
    )
    assert Encoder.load(str(copy)).identity == Encoder.load(llama).identity


@pytest.fixture
def of_bytes(make_model, tmp_path):
    """A model with a tokenizer in Python."""
    source = make_model("llama", vocab_size=384)
    folder = tmp_path / "of-bytes"
    transformers.AutoModelForCausalLM.from_pretrained(source).save_pretrained(folder)
    byt5(tmp_path).save_pretrained(folder)
    return folder


def test_a_tokenizer_in_python_is_the_same_in_another_folder(of_bytes, tmp_path):
    before = Encoder.load(str(of_bytes)).identity
    elsewhere = shutil.copytree(of_bytes, tmp_path / "deep" / "another name")
    assert Encoder.load(str(elsewhere)).identity == before
    with_settings(of_bytes, "tokenizer_config.json", extra_ids=0, additional_special_tokens=[])
    changed = json.loads((of_bytes / "tokenizer_config.json").read_text())
    changed.pop("added_tokens_decoder", None)
    changed.pop("extra_special_tokens", None)
    (of_bytes / "tokenizer_config.json").write_text(json.dumps(changed))
    assert "tokenizer" in fields_that_differ(before, Encoder.load(str(of_bytes)).identity)


def test_a_vocabulary_file_of_a_tokenizer_in_python_counts(of_bytes):
    """A sentencepiece model has scores and a normaliser that no vocabulary shows."""
    (of_bytes / "spiece.model").write_bytes(b"scores")
    before = Encoder.load(str(of_bytes)).identity
    (of_bytes / "spiece.model").write_bytes(b"other scores")
    assert fields_that_differ(before, Encoder.load(str(of_bytes)).identity) == ["tokenizer"]


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_files_that_change_while_the_model_is_loaded(copy, monkeypatch, file):
    """As where a trainer saves into the folder: loaded is one checkpoint, digested another."""
    load = transformers.AutoModelForCausalLM.from_pretrained

    def load_and_save(*arguments, **options):
        loaded = load(*arguments, **options)
        if file == "model.safetensors":
            scaled(copy / file, copy / "new", 1.1)
            (copy / "new").replace(copy / file)
        else:
            (copy / file).write_bytes((copy / file).read_bytes())
        return loaded

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load_and_save)
    with pytest.raises(ModelError, match=rf"{file} changed while[\s\S]*hint: "):
        Encoder.load(str(copy))


def test_what_the_loader_made_of_quantised_weights_counts(llama, monkeypatch):
    """FP8 is dequantised where the hardware has none, whatever config.json says."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    decided = {}

    def load_as_decided(*arguments, **options):
        whole, info = load(*arguments, **options)
        whole.config.quantization_config = transformers.FineGrainedFP8Config(**decided)
        return whole, info

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load_as_decided)
    kept = Encoder.load(llama).identity
    decided["dequantize"] = True
    assert fields_that_differ(kept, Encoder.load(llama).identity) == ["quantization"]
    monkeypatch.undo()
    assert fields_that_differ(kept, Encoder.load(llama).identity) == ["quantization"]


HELPER = "STEP = 1.0\n"
CODE = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from .helper import STEP


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaModel):
    config_class = OwnConfig

    def forward(self, *arguments, **options):
        output = super().forward(*arguments, **options)
        output.last_hidden_state = output.last_hidden_state * STEP
        return output


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = OwnModel(config)
        self.post_init()
"""


@pytest.fixture
def own_code(copy, monkeypatch, tmp_path):
    """A model with custom code, part of it in a sub-folder."""
    # Modules that other tests imported from elsewhere are in the way of relative imports.
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path / "m"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    (copy / "parts").mkdir()
    (copy / "parts" / "modeling_own.py").write_text(CODE)
    (copy / "parts" / "helper.py").write_text(HELPER)
    auto_map = {
        "AutoConfig": "parts/modeling_own.OwnConfig",
        "AutoModelForCausalLM": "parts/modeling_own.OwnForCausalLM",
    }
    with_settings(copy, "config.json", model_type="own", auto_map=auto_map)
    return copy


def test_code_in_a_sub_folder_counts_wherever_the_model_is(own_code, tmp_path):
    before = Encoder.load(str(own_code), trust_remote_code=True).identity
    elsewhere = shutil.copytree(own_code, tmp_path / "elsewhere")
    assert Encoder.load(str(elsewhere), trust_remote_code=True).identity == before
    (elsewhere / "parts" / "helper.py").write_text("STEP = 2.0\n")
    after = Encoder.load(str(elsewhere), trust_remote_code=True).identity
    assert fields_that_differ(before, after) == ["code"]


def test_code_beside_the_model_that_is_not_run_does_not_count(llama, copy):
    (copy / "train.py").write_text("print('hello')")
    trusted = Encoder.load(str(copy), trust_remote_code=True).identity
    assert trusted == Encoder.load(llama).identity


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_another_repository_needs_a_commit(own_code, file):
    auto_map = {"AutoModelForCausalLM": "somebody/code--modeling_own.OwnForCausalLM"}
    if file == "tokenizer_config.json":
        auto_map = {"AutoTokenizer": ["somebody/code--tokens.Own", None]}
    with_settings(own_code, file, auto_map=auto_map)
    with pytest.raises(ModelError, match=r"another repository \(somebody/code\)[\s\S]*hint: "):
        Encoder.load(str(own_code), trust_remote_code=True)
    with pytest.raises(ModelError, match="`code_revision` main: expected a commit"):
        Encoder.load(str(own_code), trust_remote_code=True, code_revision="main")
    with pytest.raises(ModelError, match="cannot be loaded"):  # no network: it would be fetched
        Encoder.load(str(own_code), trust_remote_code=True, code_revision="0" * 40)


def test_code_that_does_not_say_what_it_has_embeddings_for(own_code):
    code = CODE + "\n    def get_input_embeddings(self):\n        raise NotImplementedError\n"
    code = code.replace(
        "    def forward",
        "    def get_input_embeddings(self):\n        raise NotImplementedError\n\n    def forward",
        1,
    )
    (own_code / "parts" / "modeling_own.py").write_text(code)
    with pytest.raises(ModelError, match=r"copy: .*get_input_embeddings[\s\S]*hint: "):
        Encoder.load(str(own_code), trust_remote_code=True)


def test_a_distributed_checkpoint_is_not_overlooked(copy):
    shutil.copy(copy / "model.safetensors", copy / "shard-00000-model-00001-of-00001.safetensors")
    with pytest.raises(ModelError, match=r"distributed checkpoint[\s\S]*hint: "):
        Encoder.load(str(copy))


def test_what_auto_means_for_the_dtype(copy):
    assert Encoder.load(str(copy)).model.dtype == "float32"
    with_settings(copy, "config.json", dtype="bfloat16")  # the weights are stored in float32
    assert Encoder.load(str(copy)).model.dtype == "bfloat16"
    config = json.loads((copy / "config.json").read_text())
    del config["dtype"]
    (copy / "config.json").write_text(json.dumps(config))
    assert Encoder.load(str(copy)).model.dtype == "float32"


def test_a_length_that_a_tokenizer_holds_as_text(copy, states):
    with_settings(copy, "tokenizer_config.json", model_max_length="100")
    encoder = Encoder.load(str(copy), overlong="skip")
    assert encoder.prompts.max_length == 100
    out = np.empty((2, 64), np.float32)
    statuses = [r.status for r in encoder.encode_into([max(states, key=len), "⊢ a"], out)]
    assert statuses == ["overlong", "ok"]


def test_pickled_weights_are_still_read(copy, states):
    weights = {n: torch.from_numpy(v) for n, v in load_file(copy / "model.safetensors").items()}
    right = Encoder.load(str(copy)).encode(states[:5])
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    assert np.array_equal(Encoder.load(str(copy)).encode(states[:5]), right)


def test_a_file_that_is_overwritten_changes_no_loaded_model(copy, states):
    """On a CPU transformers maps the file; `cp` and trainers write into it."""
    encoder = Encoder.load(str(copy))
    before = encoder.encode(states[:5])
    file = copy / "model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2 :] = bytes(len(whole) - len(whole) // 2)
    with file.open("r+b") as opened:
        opened.write(whole)
    assert np.array_equal(encoder.encode(states[:5]), before)
