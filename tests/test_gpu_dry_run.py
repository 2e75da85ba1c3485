"""A pass on a GPU that is not there: tensors without numbers, which know their shape and device.

They refuse what a GPU would: operands on different devices, numbers of heads that do not fit each
other. And they refuse to be read by the host, for which a GPU would have to be waited for;
transformers is kept from taking its branches for traced graphs, which ask less. Pinned memory and
the copy of finished embeddings to the host cannot be had so, and are replaced. What kernels compute
does not show here.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.nn.attention import varlen as torch_varlen
from transformers.utils import import_utils

from ebm_encode.engines import flex, masks, output, prefix, varlen
from ebm_encode.engines.budget import Budget
from ebm_encode.engines.flex_engine import FlexEngine
from ebm_encode.engines.output import OutputSlots
from ebm_encode.engines.padded import PaddedEngine, UnbatchedEngine
from ebm_encode.engines.prefix import PrefixEngine
from ebm_encode.loading.model import Model
from matrix import pairs

_WIDTH = 256
_SHAPE = {
    "hidden_size": _WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 256, "vocab_size": 1000,
}  # fmt: skip
_CONFIGS = {
    "llama": transformers.LlamaConfig(**_SHAPE),
    "qwen3": transformers.Qwen3Config(**_SHAPE),
    "mistral": transformers.MistralConfig(**_SHAPE, sliding_window=16),
    "gemma2": transformers.Gemma2Config(**_SHAPE, sliding_window=16),
    "deepseek_v3": transformers.DeepseekV3Config(
        **_SHAPE | {"num_key_value_heads": 4, "head_dim": 16},
        q_lora_rank=64,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        first_k_dense_replace=3,
    ),
    "gpt2": transformers.GPT2Config(n_embd=_WIDTH, n_layer=3, n_head=4, vocab_size=1000),
}


@pytest.fixture
def gpu(monkeypatch):
    """Mode in which new tensors on `cuda` have no numbers; what arrives at the host is listed."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    banded = masks.is_band_on

    def asked_on_the_host(device, *mask):
        assert device.type == "cpu"
        with unset_fake_temporarily():
            return banded(device, *mask)

    arrived = []
    monkeypatch.setattr(masks, "is_band_on", asked_on_the_host)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(output, "copy_to_pinned", lambda block: (block, lambda: None))
    monkeypatch.setattr(output, "scatter_to_host", lambda block, *_: arrived.append(block))
    # Tensors without numbers make transformers think that a graph is traced, and take branches that
    # ask for no number. On a GPU it takes the others, so here, too.
    monkeypatch.setattr(import_utils, "is_fake_tensor", lambda _: False)
    # Those of an H100.
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch_varlen, "_cudnn_version_and_major_capability", lambda _: (92400, 9))
    monkeypatch.setattr(torch_varlen, "_cudnn_decode_disabled", lambda _: False)
    varlen.has_kernel.cache_clear()
    yield mode, arrived
    varlen.has_kernel.cache_clear()


def model_on(mode, architecture, dtype):
    config = _CONFIGS[architecture]
    with mode, torch.device("cuda"):
        base = transformers.AutoModel.from_config(config, dtype=dtype).eval()
    assert (base.dtype, base.device.type) == (dtype, "cuda")
    return Model(
        name=architecture, folder=None, base=base, config=config, tokenizer=None,
        dtype=str(dtype).removeprefix("torch."), max_positions=None, stretches_after=None,
        own_code=False,
    )  # fmt: skip


def sequences():
    generator = np.random.default_rng(0)
    begins = np.arange(40)
    ends = (generator.integers(50, 900, generator.integers(3, 60)) for _ in range(20))
    return [np.concatenate([begins, end]).astype(np.uint32) for end in ends]


@pytest.mark.parametrize(("pooling", "share"), pairs(["mean", "last"], [True, False]))
@pytest.mark.parametrize(
    ("architecture", "dtype", "by_kernel"),
    [
        ("llama", torch.bfloat16, True), ("qwen3", torch.bfloat16, True),
        ("mistral", torch.float16, True), ("gpt2", torch.float16, True),
        ("deepseek_v3", torch.bfloat16, True), ("gemma2", torch.bfloat16, False),
        ("llama", torch.float32, False),
    ],
)  # fmt: skip
def test_packed_batches_stay_on_a_gpu_and_do_not_wait_for_it(
    gpu, monkeypatch, architecture, dtype, by_kernel, share, pooling
):
    mode, arrived = gpu
    calls = []
    kernel = varlen.varlen_attn

    def told(*arguments, **options):
        calls.append(arguments)
        return kernel(*arguments, **options)

    monkeypatch.setattr(varlen, "varlen_attn", told)
    # Tensors without numbers cannot be handed out.
    monkeypatch.setattr(prefix, "along_paths", lambda *_: [])
    model = model_on(mode, architecture, dtype)
    engine = PrefixEngine(model, pooling, -1, Budget(4096), share=share)
    some = sequences()
    with mode:
        engine.forward(some, OutputSlots.new(len(some), _WIDTH)).wait()
        engine.trial(some, OutputSlots.new(len(some), _WIDTH))
    assert [(block.shape, block.device.type, block.dtype) for block in arrived] == [
        ((len(some), _WIDTH), "cuda", torch.float32)
    ] * 2
    # One call for each layer of the packed batch, and of the three chunks of the self-test.
    assert len(calls) == (3 * (1 + 3) if by_kernel else 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("architecture", [*_CONFIGS])
def test_flex_batches_stay_on_a_gpu_and_do_not_wait_for_it(gpu, monkeypatch, architecture, dtype):
    """One call of the kernel for each layer, whatever the mask; what it needs is on the device."""
    mode, arrived = gpu
    calls = []

    def kernel(query, key, value, *, block_mask, **_):
        parts = (query, key, value, *block_mask.as_tuple()[2:6])
        calls.append({part.device.type for part in parts})
        assert query.shape[2] % 128 == 0
        return query.new_empty((*query.shape[:3], value.shape[3])), None

    monkeypatch.setattr(flex, "flex_attention", kernel)
    monkeypatch.setattr(flex, "has_kernel", lambda _: False)
    model = model_on(mode, architecture, dtype)
    engine = FlexEngine(model, "mean", -1, Budget(4096))
    some = sequences()
    with mode:
        engine.forward(some, OutputSlots.new(len(some), _WIDTH)).wait()
    assert [(block.shape, block.device.type) for block in arrived] == [
        ((len(some), _WIDTH), "cuda")
    ]
    assert calls == [{"cuda"}] * 3


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gpt2"])
def test_padded_batches_stay_on_a_gpu_and_do_not_wait_for_it(gpu, architecture, pooling):
    """Any question would be refused: there are no numbers to answer it with."""
    mode, arrived = gpu
    model = model_on(mode, architecture, torch.bfloat16)
    engine = PaddedEngine(model, pooling, -1, Budget(4096))
    some = sequences()
    with mode:
        engine.forward(some, OutputSlots.new(len(some), _WIDTH)).wait()
    assert [(block.shape, block.device.type, block.dtype) for block in arrived] == [
        ((len(some), _WIDTH), "cuda", torch.float32)
    ]


def test_the_dry_run_sees_a_host_that_waits(gpu):
    """So that the tests above can fail: the reference leaves transformers its question."""
    mode, _ = gpu
    model = model_on(mode, "llama", torch.bfloat16)
    engine = UnbatchedEngine(model, "mean", -1)
    some = sequences()
    with mode, pytest.raises(DataDependentOutputException):
        engine.forward(some, OutputSlots.new(len(some), _WIDTH))


@pytest.mark.parametrize(
    ("width", "capability", "taken"),
    [(64, (8, 0), True), (256, (9, 0), True), (320, (9, 0), False), (60, (9, 0), False),
     (64, (7, 5), False)],
)  # fmt: skip
def test_what_the_kernel_does_not_take_is_not_given_to_it(
    gpu, monkeypatch, width, capability, taken
):
    mode, _ = gpu
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)

    with mode:
        part = torch.empty((1, 4, 10, width), dtype=torch.float16, device="cuda")
    assert varlen.usable(part, part, part, SimpleNamespace(banded=True)) == taken
