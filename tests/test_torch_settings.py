"""Settings of the process that a pass must not suffer from, and must leave as they were."""

import threading

import pytest
import torch
from torch.backends.cuda import cudnn_sdp_enabled, enable_cudnn_sdp

from ebm_encode import Encoder
from ebm_encode.torch_settings import inference

_CUDA, _CPU = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul


_LAYERS = (
    torch.backends.cudnn.conv,
    torch.backends.cudnn.rnn,
    torch.backends.mkldnn.conv,
    torch.backends.mkldnn.rnn,
)


def layers():
    return [layer.fp32_precision for layer in _LAYERS]


def settings():
    return _CUDA.fp32_precision, _CPU.fp32_precision, cudnn_sdp_enabled()


@pytest.fixture(autouse=True)
def as_torch_has_them():
    before, of_layers = settings(), layers()
    yield
    torch.backends.fp32_precision = "none"
    for layer, precision in zip(_LAYERS, of_layers, strict=True):
        layer.fp32_precision = precision
    torch.set_float32_matmul_precision("highest")
    _CUDA.fp32_precision, _CPU.fp32_precision = before[:2]
    enable_cudnn_sdp(before[2])


@pytest.mark.parametrize("engine", ["shared-prefix", "padded", "unbatched"])
def test_passes_compute_in_float32_where_the_process_allows_less(llama, states, engine):
    encoder = Encoder.load(llama, engine=engine)
    rows = encoder.encode(states[:20])
    seen = []
    encoder.model.base.register_forward_hook(lambda *_: seen.append(settings()))
    torch.set_float32_matmul_precision("medium")
    assert (encoder.encode(states[:20]) == rows).all()
    assert set(seen) == {("ieee", "ieee", False)}


@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("engine", ["shared-prefix", "padded", "unbatched"])
def test_a_trainers_autocast_does_not_reach_into_passes(llama, states, engine, layer):
    rows = Encoder.load(llama, engine=engine, layer=layer).encode(states[:20])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (Encoder.load(llama, engine=engine, layer=layer).encode(states[:20]) == rows).all()
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("name", ["high", "medium"])
def test_the_precision_of_products_by_its_older_name_is_put_back(name):
    torch.set_float32_matmul_precision(name)
    before = settings()
    with inference():
        assert settings() == ("ieee", "ieee", False)
    assert settings() == before
    assert torch.get_float32_matmul_precision() == name


def test_the_precision_of_products_by_its_newer_names_is_put_back():
    _CUDA.fp32_precision = "tf32"
    before = settings()
    with inference():
        assert settings() == ("ieee", "ieee", False)
    assert (_CUDA.fp32_precision, cudnn_sdp_enabled()) == (before[0], before[2])


def test_settings_stay_until_the_last_pass_is_over():
    torch.set_float32_matmul_precision("high")
    enable_cudnn_sdp(enabled=True)
    inside, leave = threading.Event(), threading.Event()

    def passes():
        with inference():
            inside.set()
            leave.wait()

    other = threading.Thread(target=passes, daemon=True)
    with inference():
        other.start()
        inside.wait()
    assert settings() == ("ieee", "ieee", False)
    leave.set()
    other.join()
    assert settings() == ("tf32", "tf32", True)


def test_settings_are_put_back_when_a_pass_fails():
    torch.set_float32_matmul_precision("high")
    before = settings()
    with pytest.raises(ZeroDivisionError), inference():
        _ = 1 / 0
    assert settings() == before


def as_torch_has_it():
    pass


def by_the_older_name():
    torch.backends.cudnn.allow_tf32 = True


def by_the_newer_names():
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    torch.backends.mkldnn.conv.fp32_precision = "bf16"


def all_at_once():
    torch.backends.cudnn.conv.fp32_precision = "none"
    torch.backends.fp32_precision = "tf32"


@pytest.mark.parametrize(
    "allow", [as_torch_has_it, by_the_older_name, by_the_newer_names, all_at_once]
)
def test_convolutions_and_recurrent_layers_run_in_float32_and_are_put_back(llama, states, allow):
    """On a GPU torch lets them run in TF32 unless told otherwise."""
    encoder = Encoder.load(llama)
    allow()
    before = layers()
    assert not {"tf32", "bf16"}.isdisjoint(before), "there is something to take back"
    seen = []
    encoder.model.base.register_forward_hook(lambda *_: seen.extend(layers()))
    encoder.encode(states[:3])
    assert seen
    assert {"tf32", "bf16"}.isdisjoint(seen)
    assert layers() == before


def test_a_host_reads_the_older_name_during_a_pass():
    torch.backends.cudnn.allow_tf32 = True
    with inference():
        assert torch.backends.cudnn.allow_tf32 is False
    assert torch.backends.cudnn.allow_tf32 is True
