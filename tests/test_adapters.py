"""Adapters: what plain peft and transformers give, an identity of their own, and refusals."""

import json
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import adapters
from ebm_encode import EmbeddingCache, Encoder, MappedCache, RemoteEncoder
from ebm_encode._core import CachedEncoder
from ebm_encode.engines.reference import compare
from ebm_encode.errors import (
    AdapterError,
    IdentityMismatchError,
    LibraryError,
    ModelError,
)
from ebm_encode.policy.tactics import TacticPolicy
from matrix import pairs
from served import served
from test_parity import unbatched

TARGETS = {
    "llama": adapters.LINEAR,
    "qwen2": adapters.LINEAR,
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gemma2": adapters.LINEAR,
}


@pytest.fixture(scope="module")
def peft():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft  # noqa: PLC0415  (slow)

        return peft


@pytest.fixture(scope="module")
def lora(llama, tmp_path_factory):
    """The usual adapter: LoRA of rank 16 over all projections of a llama."""
    return adapters.train(llama, tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def other(llama, tmp_path_factory):
    return adapters.train(llama, tmp_path_factory.mktemp("other"), seed=2)


@pytest.fixture(scope="module")
def exported(llama, lora, tmp_path_factory):
    """The llama with `lora`, merged and saved by plain peft."""
    return adapters.export(llama, lora, tmp_path_factory.mktemp("exported"))


@pytest.fixture
def copy(lora, tmp_path):
    return shutil.copytree(lora, tmp_path / "adapter")


def with_settings(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def with_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def hidden_states(model, folder, prompts):
    """Mean hidden states at batch size 1, by a model of plain transformers or peft."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        rows.append(hidden.float().mean(dim=0))
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_embeddings_are_those_of_a_model_that_was_merged_by_peft(
    llama, lora, exported, states, dtype
):
    encoder = Encoder.load(llama, adapter=lora, dtype=dtype, engine="unbatched")
    found = encoder.encode(states[:12])
    wanted = unbatched(exported, states[:12], dtype=getattr(torch, dtype))
    assert compare(found, wanted)[0] <= 1e-5
    assert compare(found, Encoder.load(llama, dtype=dtype).encode(states[:12]))[0] > 0.05
    of_exported = Encoder.load(exported, dtype=dtype, engine="unbatched").encode(states[:12])
    assert (found == of_exported).all(), "the same weights, bit by bit"


def test_merging_in_bfloat16_is_told_apart(llama, lora, exported, states):
    """What the test above would see if the merge were done in the compute dtype."""
    import peft  # noqa: PLC0415  (slow)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = adapters.plain_model(llama, torch.bfloat16)
        merged = peft.PeftModel.from_pretrained(base, lora).merge_and_unload()
    wanted = unbatched(exported, states[:4], dtype=torch.bfloat16)
    assert compare(hidden_states(merged, llama, states[:4]), wanted)[0] > 1e-3


@pytest.mark.parametrize(
    ("engine", "architecture"), pairs(["auto", "shared-prefix", "packed", "padded"], TARGETS)
)
def test_all_engines_and_architectures_tied_ones_too(
    make_model, peft, states, tmp_path, architecture, engine
):
    base = make_model(architecture, tie_word_embeddings=True)
    settings = {"fan_in_fan_out": True} if architecture == "gpt2" else {}
    config = peft.LoraConfig(r=8, target_modules=TARGETS[architecture], **settings)
    adapter = adapters.train(base, tmp_path / "adapter", config)
    wanted = hidden_states(adapters.unmerged(base, adapter), base, states[:9])
    found = Encoder.load(base, adapter=adapter, engine=engine).encode(states[:9])
    assert compare(found, wanted)[0] <= 1e-5


def forms(peft):
    """Adapters of all kinds that are merged, and of all forms of LoRA."""
    lora, linear = peft.LoraConfig, adapters.LINEAR
    ranks = {"rank_pattern": {"q_proj": 8, "down_proj": 2}, "alpha_pattern": {"k_proj": 3}}
    return {
        "dora": lora(r=4, target_modules=linear, use_dora=True),
        "rank-stabilised": lora(r=4, target_modules=linear, use_rslora=True, **ranks),
        "by pattern": lora(r=4, target_modules=r".*\.layers\.[12]\.mlp\.(up|down)_proj"),
        "some layers": lora(r=4, target_modules=linear, layers_to_transform=[1]),
        "whole modules": lora(r=4, target_modules=linear, modules_to_save=["embed_tokens", "norm"]),
        "embeddings too": lora(r=4, target_modules=[*linear, "embed_tokens", "lm_head"]),
        "some tokens": lora(r=4, target_modules=linear, trainable_token_indices=[5, 6, 300]),
        "parameters": lora(r=4, target_modules=[], target_parameters=["mlp.up_proj.weight"]),
        "adalora": peft.AdaLoraConfig(target_modules=linear, total_step=10),
        "ia3": peft.IA3Config(target_modules=linear, feedforward_modules=["down_proj"]),
        "loha": peft.LoHaConfig(r=4, target_modules=linear),
        "lokr": peft.LoKrConfig(r=4, target_modules=linear),
        "oft": peft.OFTConfig(target_modules=linear, oft_block_size=8),
    }


FORMS = (
    *("dora", "rank-stabilised", "by pattern", "some layers", "whole modules", "embeddings too"),
    *("some tokens", "parameters", "adalora", "ia3", "loha", "lokr", "oft"),
)


@pytest.mark.parametrize("form", FORMS)
def test_each_kind_gives_what_it_gives_unmerged(llama, peft, states, tmp_path, form):
    scale = 0.3 if form == "adalora" else 0.02  # a product of three
    adapter = adapters.train(llama, tmp_path / "adapter", forms(peft)[form], scale=scale)
    wanted = hidden_states(adapters.unmerged(llama, adapter), llama, states[:9])
    found = Encoder.load(llama, adapter=adapter, keep_head=True).encode(states[:9])
    assert compare(found, wanted)[0] <= 1e-5
    assert compare(found, Encoder.load(llama).encode(states[:9]))[0] > 1e-4


def test_an_adapter_that_is_stored_in_16_bits(llama, states, tmp_path):
    adapter = adapters.train(llama, tmp_path / "adapter", dtype=torch.bfloat16)
    assert {t.dtype for t in load_file(f"{adapter}/adapter_model.safetensors").values()} == {
        torch.bfloat16
    }
    wanted = hidden_states(adapters.unmerged(llama, adapter), llama, states[:9])
    assert compare(Encoder.load(llama, adapter=adapter).encode(states[:9]), wanted)[0] <= 1e-5


def test_an_adapter_that_was_saved_with_the_embeddings(llama, lora, copy, states):
    """As peft does where the vocabulary was resized, or was thought to be."""
    base = load_file(f"{llama}/model.safetensors")
    names = ("model.embed_tokens.weight", "lm_head.weight")
    with_tensors(
        copy, lambda tensors: tensors.update({f"base_model.model.{n}": base[n] for n in names})
    )
    found = Encoder.load(llama, adapter=str(copy)).encode(states[:3])
    assert (found == Encoder.load(llama, adapter=lora).encode(states[:3])).all()
    with_tensors(copy, lambda tensors: tensors["base_model.model.lm_head.weight"].mul_(1.5))
    policy = Encoder.load(llama, adapter=str(copy), keep_head=True).model.whole
    assert torch.equal(policy.lm_head.weight, 1.5 * base["lm_head.weight"])


def test_a_pickle_of_tensors_is_read_and_one_of_code_is_not(llama, lora, copy, states):
    """As with the weights of models."""
    tensors = load_file(copy / "adapter_model.safetensors")
    (copy / "adapter_model.safetensors").unlink()
    torch.save(tensors, copy / "adapter_model.bin")
    found = Encoder.load(llama, adapter=str(copy)).encode(states[:3])
    assert (found == Encoder.load(llama, adapter=lora).encode(states[:3])).all()
    torch.save({"lora": shutil.rmtree}, copy / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"adapter_model\.bin: cannot be read"):
        Encoder.load(llama, adapter=str(copy))


def test_what_a_host_lets_torch_round_is_not_rounded(llama, lora, states):
    wanted = Encoder.load(llama, adapter=lora).encode(states[:3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoder = Encoder.load(llama, adapter=lora)
    assert (encoder.encode(states[:3]) == wanted).all()


def test_a_policy_has_the_adapter_in_its_head_too(peft, make_model, states, tmp_path):
    base = make_model("llama")
    config = peft.LoraConfig(r=8, target_modules=[*adapters.LINEAR, "lm_head"])
    adapter = adapters.train(base, tmp_path / "adapter", config)
    exported = adapters.export(base, adapter, tmp_path / "exported")
    options = {"n": 3, "stop": ["e", "n", "\n"], "max_new_tokens": 16}
    wanted = TacticPolicy.load(exported).propose(states[:6], **options)
    assert any(proposal.tactics for proposal in wanted)
    assert TacticPolicy.load(base, adapter=adapter).propose(states[:6], **options) == wanted
    encoder = Encoder.load(base, adapter=adapter, keep_head=True)
    assert TacticPolicy.beside(encoder).propose(states[:6], **options) == wanted
    assert TacticPolicy.load(base).propose(states[:6], **options) != wanted
    assert encoder.identity == Encoder.load(base, adapter=adapter).identity


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
@pytest.mark.parametrize("whole", [False, True])
def test_one_of_two_tied_weights(peft, make_model, states, tmp_path, module, whole):
    """Merged, they are two weights, of which the hidden states know one, and a policy both."""
    base = make_model("qwen2", tie_word_embeddings=True)
    added = {"modules_to_save": [module]} if whole else {}
    targets = [*adapters.LINEAR] + ([] if whole else [module])
    adapter = adapters.train(
        base, tmp_path / "adapter", peft.LoraConfig(r=4, target_modules=targets, **added)
    )
    with pytest.raises(AdapterError, match=r"is one weight with another [\s\S]*hint: "):
        Encoder.load(base, adapter=adapter, keep_head=True)
    wanted = hidden_states(adapters.unmerged(base, adapter), base, states[:9])
    assert compare(Encoder.load(base, adapter=adapter).encode(states[:9]), wanted)[0] <= 1e-5


def test_two_tied_weights_that_are_trained_as_one(peft, make_model, states, tmp_path):
    base = make_model("qwen2", tie_word_embeddings=True)
    added = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    config = peft.LoraConfig(r=4, target_modules=adapters.LINEAR, **added)
    adapter = adapters.train(base, tmp_path / "adapter", config)
    wanted = hidden_states(adapters.unmerged(base, adapter), base, states[:9])
    encoder = Encoder.load(base, adapter=adapter, keep_head=True)
    assert compare(encoder.encode(states[:9]), wanted)[0] <= 1e-5
    assert encoder.model.whole.lm_head.weight is encoder.model.base.embed_tokens.weight


@pytest.mark.parametrize("keep_head", [False, True])
def test_a_merge_that_computes_something_else_is_refused(
    llama, peft, monkeypatch, tmp_path, keep_head
):
    head = peft.LoraConfig(r=8, target_modules=["lm_head"] if keep_head else ["q_proj"])
    adapter = adapters.train(llama, tmp_path / "adapter", head, scale=0.1)
    right = peft.tuners.lora.layer.Linear.get_delta_weight

    def half(self, name):
        return 0.5 * right(self, name)

    monkeypatch.setattr(peft.tuners.lora.layer.Linear, "get_delta_weight", half)
    said = "other logits than" if keep_head else "other hidden states than"
    with pytest.raises(AdapterError, match=rf"{said}[\s\S]*hint: "):
        Encoder.load(llama, adapter=adapter, keep_head=keep_head)


def test_no_file_is_written_to(llama, lora):
    """Weights may be pages of their file when an adapter is merged into them."""
    files = [file for folder in (llama, lora) for file in Path(folder).iterdir()]
    before = [file.read_bytes() for file in files]
    Encoder.load(llama, adapter=lora)
    assert [file.read_bytes() for file in files] == before


def fields_that_differ(left, right):
    return [name for name, *_ in left.differences(right)]


def test_an_adapter_is_a_field_of_the_identity_and_none_is_no_field(llama, lora, other, exported):
    none, first, second = (Encoder.load(llama, adapter=a).identity for a in (None, lora, other))
    assert "adapter" not in json.loads(none.to_json())
    assert none == Encoder.load(llama).identity
    assert fields_that_differ(none, first) == ["adapter"]
    assert fields_that_differ(first, second) == ["adapter"]
    assert {"adapter", "weights"} <= {*fields_that_differ(first, Encoder.load(exported).identity)}


def test_where_an_adapter_is_and_who_saved_it_change_no_identity(llama, lora, copy):
    wanted = Encoder.load(llama, adapter=lora).identity
    settings = json.loads((copy / "adapter_config.json").read_text())
    with_settings(
        copy,
        target_modules=settings["target_modules"][::-1],
        base_model_name_or_path="/elsewhere/model",
        peft_version="0.99.0",
        lora_dropout=0.1,
        of_a_later_release=None,
    )
    assert Encoder.load(llama, adapter=str(copy)).identity == wanted


def test_what_changes_the_merged_weights_changes_the_identity(llama, lora, copy):
    wanted = Encoder.load(llama, adapter=lora).identity
    with_settings(copy, lora_alpha=8)
    changed = Encoder.load(llama, adapter=str(copy)).identity
    assert fields_that_differ(wanted, changed) == ["adapter"]
    with_settings(copy, lora_alpha=32)
    assert Encoder.load(llama, adapter=str(copy)).identity == wanted
    with_tensors(copy, lambda tensors: next(iter(tensors.values())).mul_(1.01))
    changed = Encoder.load(llama, adapter=str(copy)).identity
    assert fields_that_differ(wanted, changed) == ["adapter"]


def test_a_cache_of_another_adapter_is_refused_by_every_reader(
    llama, lora, other, exported, encode, tmp_path
):
    output = tmp_path / "cache.parquet"
    code, _, err = encode("--adapter", lora, output=output)
    assert code == 0, err
    cache = EmbeddingCache.open(output)
    some = cache.states()[:40]
    assert compare(cache.gather(some), Encoder.load(exported).encode(some))[0] <= 1e-5
    cache.require_identity(Encoder.load(llama, adapter=lora).identity, "the same")
    for adapter in (other, None):
        encoder = Encoder.load(llama, adapter=adapter)
        for opened in (cache, MappedCache.open(output)):
            with pytest.raises(IdentityMismatchError, match="adapter"):
                opened.require_identity(encoder.identity, "my encoder")
            with pytest.raises(IdentityMismatchError, match="adapter"):
                CachedEncoder(encoder, opened)
        more = [] if adapter is None else ["--adapter", adapter]
        code, _, err = encode(*more, output=output)
        assert code != 0
        assert "adapter" in err
        code, _, err = encode(*more, "--cache", output, output=tmp_path / "new.parquet")
        assert code != 0
        assert "adapter" in err


def test_a_cache_says_which_adapter_made_it(lora, encode, run_cli, tmp_path):
    output = tmp_path / "cache.parquet"
    assert encode("--adapter", lora, output=output)[0] == 0
    code, out, _ = run_cli("inspect", output, "--json")
    assert code == 0
    assert {"name": lora, "kind": "LORA"}.items() <= adapter_of(json.loads(out)).items()


def adapter_of(found):
    """The adapter in what `inspect` says, wherever it stands."""
    inner = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    if isinstance(found, dict) and isinstance(found.get("adapter"), dict):
        return found["adapter"]
    return next((adapter for value in inner if (adapter := adapter_of(value))), {})


def no_config(folder):
    (folder / "adapter_config.json").unlink()


def no_tensors(folder):
    (folder / "adapter_model.safetensors").unlink()


def config_is_no_json(folder):
    (folder / "adapter_config.json").write_text("{")


def config_is_of_something_else(folder):
    (folder / "adapter_config.json").write_text("[]")


def torn(folder):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def no_safetensors(folder):
    (folder / "adapter_model.safetensors").write_bytes(b"\0" * 64)


def empty(folder):
    save_file({}, folder / "adapter_model.safetensors")


def nan(folder):
    with_tensors(folder, lambda tensors: next(iter(tensors.values())).view(-1)[3].fill_(np.nan))


def infinite(folder):
    with_tensors(folder, lambda tensors: next(iter(tensors.values())).view(-1)[3].fill_(np.inf))


def a_module_more(folder):
    def add(tensors):
        name = next(name for name in tensors if "layers.2" in name)
        tensors[name.replace("layers.2", "layers.7")] = tensors[name].clone()

    with_tensors(folder, add)


def a_weight_of_the_base(folder):
    def add(tensors):
        tensors["base_model.model.model.norm.weight"] = torch.ones(64)

    with_tensors(folder, add)


def a_tensor_less(folder):
    with_tensors(folder, lambda tensors: tensors.pop(next(iter(tensors))))


def modules_less(folder):
    with_settings(folder, target_modules=["q_proj"])


def modules_that_are_not_there(folder):
    with_settings(folder, target_modules=["query_key_value"])


def another_rank(folder):
    with_settings(folder, r=8)


def of_another_base(folder, make_model):
    shutil.rmtree(folder)
    adapters.train(make_model("llama", hidden_size=32), folder)


def of_a_larger_vocabulary(folder):
    def add(tensors):
        tensors["base_model.model.model.embed_tokens.weight"] = torch.zeros(2056, 64)

    with_tensors(folder, add)


def of_an_initialisation_that_changes_the_base(folder):
    with_settings(folder, init_lora_weights="pissa_niter_4")


def for_some_tokens_only(folder):
    with_settings(folder, alora_invocation_tokens=[5, 6], task_type="CAUSAL_LM")


def with_layers_more_than_once(folder):
    with_settings(folder, layer_replication=[[0, 3], [1, 3]])


def with_settings_of_a_later_peft(folder):
    with_settings(folder, use_magic=True)


def of_a_later_peft(folder):
    with_settings(folder, peft_type="MAGIC")


def of_prompts(folder, make_model):
    import peft  # noqa: PLC0415  (slow)

    shutil.rmtree(folder)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    adapters.train(make_model("llama"), folder, config)


def of_prefixes(folder, make_model):
    import peft  # noqa: PLC0415  (slow)

    shutil.rmtree(folder)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    adapters.train(make_model("llama"), folder, config)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_config, r"has no adapter_config\.json"),
        (no_tensors, r"has neither adapter_model\.safetensors nor adapter_model\.bin"),
        (config_is_no_json, r"adapter_config\.json: cannot be read"),
        (config_is_of_something_else, r"adapter_config\.json: has no peft_type"),
        (torn, r"adapter_model\.safetensors: cannot be read"),
        (no_safetensors, r"adapter_model\.safetensors: cannot be read"),
        (empty, r"adapter_model\.safetensors: holds no tensors"),
        (nan, r"adapter_model\.safetensors: holds NaN or infinity, in base_model\.model\.model"),
        (infinite, r"adapter_model\.safetensors: holds NaN or infinity"),
        (a_module_more, r"1 of 43 tensors have no place .*layers\.7.*\nhint: .*another base"),
        (a_weight_of_the_base, r"1 of 43 tensors have no place .*model\.norm\.weight"),
        (a_tensor_less, r"lacks 1 of 42 tensors .*layers"),
        (modules_less, r"36 of 42 tensors have no place"),
        (modules_that_are_not_there, r"cannot be merged .*query_key_value"),
        (another_rank, r"42 of 42 tensors do not have the shapes .*\[16, 64\], expected \[8, 64\]"),
        (of_another_base, r"tensors do not have the shapes .*expected [\s\S]*\nhint: .*states /"),
        (of_a_larger_vocabulary, r"(lacks|shapes) [\s\S]*\nhint: "),
        (of_an_initialisation_that_changes_the_base, r"init_lora_weights is pissa.*\nhint: "),
        (for_some_tokens_only, r"cannot be merged [\s\S]*hint: "),
        (with_layers_more_than_once, r"[\s\S]*hint: "),
        (with_settings_of_a_later_peft, r"settings that peft .* does not know: use_magic\nhint: "),
        (of_a_later_peft, r"is a MAGIC adapter, .*LORA.*\nhint: "),
        (of_prompts, r"is a PROMPT_TUNING adapter, which is not merged here.*\nhint: "),
        (of_prefixes, r"is a PREFIX_TUNING adapter, which is not merged here.*\nhint: "),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_is_refused(llama, copy, make_model, damage, said):
    damage(copy, *([make_model] if damage in {of_another_base, of_prompts, of_prefixes} else []))
    with pytest.raises(AdapterError, match=said) as caught:
        Encoder.load(llama, adapter=str(copy))
    assert str(copy) in str(caught.value)


def test_a_quantised_base_is_refused(llama, lora, tmp_path):
    base = shutil.copytree(llama, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=r"is quantised[\s\S]*hint: "):
        Encoder.load(str(base), adapter=lora)


@pytest.mark.parametrize("name", ["", "no/such/place/here", "nobody", "a\0b"])
def test_an_adapter_that_is_not_there(llama, name):
    with pytest.raises(AdapterError):
        Encoder.load(llama, adapter=name)


def test_a_file_is_no_adapter(llama, lora):
    with pytest.raises(AdapterError, match=r"is a file, expected a folder.*`adapter`"):
        Encoder.load(llama, adapter=f"{lora}/adapter_model.safetensors")


def test_the_folder_of_an_adapter_is_no_model(lora):
    with pytest.raises(ModelError, match=r"has an adapter[\s\S]*hint: .*as `adapter`"):
        Encoder.load(lora)


def test_without_peft(llama, lora, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(LibraryError, match=r"need peft[\s\S]*hint: pip install .*\[adapter\]"):
        Encoder.load(llama, adapter=lora)
    assert Encoder.load(llama).dim == 64


def test_an_adapter_that_changes_while_it_is_loaded(llama, copy, monkeypatch):
    load = transformers.AutoModelForCausalLM.from_pretrained

    def load_and_save(*arguments, **options):
        file = copy / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes())
        return load(*arguments, **options)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load_and_save)
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors changed while"):
        Encoder.load(llama, adapter=str(copy))


def test_what_is_noted(llama, lora, copy, heard, tmp_path):
    heard.set_level("INFO", "ebm_encode")
    Encoder.load(llama, adapter=lora)
    assert "21 weights changed" in heard.text
    assert "was trained on" not in heard.text
    with_settings(copy, base_model_name_or_path="somebody/another-model")
    Encoder.load(llama, adapter=str(copy))
    assert "was trained on somebody/another-model" in heard.text
    heard.clear()
    fresh = adapters.train(llama, tmp_path / "fresh", scale=0)
    assert Encoder.load(llama, adapter=fresh).identity != Encoder.load(llama).identity
    assert "changes no weight" in heard.text


def test_the_command_line_speaks_of_its_option(lora, encode, run_cli, copy, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    code, _, err = encode("--adapter", file)
    assert code == 2
    assert "--adapter" in err
    code, _, err = encode("--adapter", "")
    assert code == 2
    assert "--adapter" in err
    nan(copy)
    code, _, err = encode("--adapter", copy)
    assert code == 2
    assert "holds NaN" in err
    code, _, err = run_cli("doctor", "--server", "http://127.0.0.1:9", "--adapter", lora)
    assert code == 2
    assert "--adapter: needs its base model" in err


def test_an_adapter_of_a_hub_id_at_a_revision(llama, lora, tmp_path, monkeypatch):
    asked = []

    def download(name, *, revision=None, allow_patterns):
        asked.append((name, revision, tuple(allow_patterns)))
        return str(shutil.copytree(lora, tmp_path / "snapshots" / ("a" * 40), dirs_exist_ok=True))

    monkeypatch.setattr("ebm_encode.loading.model_files.snapshot_download", download)
    encoder = Encoder.load(llama, adapter="somebody/adapter@v1")
    assert asked == [
        ("somebody/adapter", "v1", ("adapter_config.json", "adapter_model.safetensors"))
    ]
    assert encoder.identity == Encoder.load(llama, adapter=lora).identity


def test_a_server_with_an_adapter_and_its_clients(
    llama, lora, other, states, encode, run_cli, tmp_path
):
    here = Encoder.load(llama, adapter=lora)
    with served(llama, "--adapter", lora) as server:
        with RemoteEncoder(server.url) as remote:
            assert remote.identity == here.identity
            assert compare(remote.encode(states[:9]), here.encode(states[:9]))[0] <= 1e-5
        backend = ["--backend", "remote", "--server", server.url]
        code, _, err = encode(*backend, "--adapter", lora)
        assert code == 0, err
        for adapter in ([], ["--adapter", other]):
            code, _, err = encode(*backend, *adapter, output=tmp_path / "other.parquet")
            assert code == 2
            assert "adapter" in err
        examine = ["doctor", "--server", server.url, "--model-path", llama]
        assert run_cli(*examine, "--adapter", lora)[0] == 0
        assert run_cli(*examine)[0] == 1
