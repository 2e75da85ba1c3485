"""A model goes straight from its files to its device: the same model, nothing kept behind."""

import gc
import json
import subprocess
import sys
import weakref

import pytest
import torch
import transformers

from ebm_encode import Encoder
from ebm_encode.errors import ModelError
from ebm_encode.loading.model import load_model
from gpu_without_numbers import pretended_gpu
from support import ROOT
from test_parity import unbatched

ARCHITECTURES = ["llama", "gpt2", "gemma2", "mixtral", "deepseek_v3", "gpt_oss", "bloom"]


def tensors_of(module):
    """All that decides its numbers; buffers that are not saved, such as rotary tables, too."""
    return dict([*module.named_parameters(), *module.named_buffers()])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_and_buffers_are_those_of_plain_transformers(make_model, architecture, dtype):
    """Which makes the model on the CPU, without a map of devices."""
    folder = make_model(architecture)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    found = tensors_of(load_model(folder, dtype=dtype).base)
    wanted = tensors_of(plain.base_model)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_embeddings_are_the_same_bits(llama, states):
    """At batch size 1, where there is nothing to round otherwise."""
    encoder = Encoder.load(llama, engine="unbatched")
    assert (encoder.encode(states[:8]) == unbatched(llama, states[:8])).all()


@pytest.mark.parametrize("keep_head", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_of_a_model_is_on_a_gpu(make_model, architecture, keep_head):
    """And nothing asked for a number that is there, as a check that copies weights back would."""
    folder = make_model(architecture)
    here = load_model(folder, dtype="bfloat16", keep_head=keep_head)
    with pretended_gpu():
        there = load_model(folder, dtype="bfloat16", device="cuda", keep_head=keep_head)
    assert there.device.type == "cuda"
    found, wanted = (tensors_of(m.whole if keep_head else m.base) for m in (there, here))
    assert {name: (t.shape, t.dtype, t.device.type) for name, t in found.items()} == {
        name: (t.shape, t.dtype, "cuda") for name, t in wanted.items()
    }


def held_by_the_host(folder, device):
    child = subprocess.run(
        [sys.executable, ROOT / "tests" / "gpu_without_numbers.py", folder, device],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


@pytest.fixture(scope="module")
def sharded(llama, tmp_path_factory):
    """A float32 checkpoint of 200 MB in files of 20 MB."""
    folder = tmp_path_factory.mktemp("sharded")
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    tokenizer.save_pretrained(folder)
    config = transformers.LlamaConfig(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=8, vocab_size=len(tokenizer),
    )  # fmt: skip
    whole = transformers.LlamaForCausalLM(config)
    whole.save_pretrained(folder, max_shard_size="20MB")
    assert len([*folder.glob("*.safetensors")]) > 5
    return folder


def test_the_host_does_not_hold_a_model_that_goes_elsewhere(sharded):
    """In another dtype than its files, so that no page of a file can stand for a weight."""
    through = held_by_the_host(sharded, "cuda")
    assert through["grown"] < through["model"] / 3
    kept = held_by_the_host(sharded, "cpu")  # so that the test can fail
    assert kept["grown"] > kept["model"] * 0.9


def test_the_memory_of_a_head_is_freed(make_model, monkeypatch):
    """Without waiting for the garbage collector: on a GPU that would be memory for batches."""
    folder, made = make_model("llama", tie_word_embeddings=False), []
    from_pretrained = transformers.AutoModelForCausalLM.from_pretrained

    def watched(*arguments, **options):
        loaded = from_pretrained(*arguments, **options)
        head = loaded[0].get_output_embeddings()
        made.extend(map(weakref.ref, (head, head.weight)))
        return loaded

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", watched)
    gc.disable()
    try:
        without = load_model(folder)
        assert [one() for one in made] == [None, None]
        whole = load_model(folder, keep_head=True)
    finally:
        gc.enable()
    assert made[2]() is whole.whole.get_output_embeddings()
    assert without.base is not whole.base


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "meta", "nothing"])
def test_a_device_that_is_not_there_is_refused_before_weights_are_read(llama, monkeypatch, device):
    def never(*_, **__):
        pytest.fail("read")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", never)
    with pytest.raises(ModelError, match=f"`device` {device}: "):
        Encoder.load(llama, device=device)


def test_a_gpu_without_room(llama, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14 GiB.")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(ModelError, match=r"does not fit `device` cpu: .*14 GiB.*\nhint: "):
        load_model(llama, device="cpu")
