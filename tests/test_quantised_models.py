"""Quantised checkpoints: what is loaded, what the identity says of it, and what is refused."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.quantizers import quantizer_awq

from ebm_encode import Encoder
from ebm_encode.engines.reference import compare
from ebm_encode.errors import ModelError
from ebm_encode.heads.random_encoder import make_random_model
from ebm_encode.loading import quantization
from ebm_encode.loading.model import load_model
from quantised_models import compressed, fp8, fp8_in_full, mxfp4, stated
from test_parity import unbatched

SCHEMES = ["W8A16", "W4A16", "W8A8", "FP8_DYNAMIC"]


def quantization_of(encoder):
    return json.loads(json.loads(encoder.identity.to_json())["quantization"])


@pytest.fixture(scope="module")
def checkpoints(make_model, tmp_path_factory):
    """A function that makes a quantised checkpoint, once."""
    made = {}

    def make(method, scheme=None):
        if (method, scheme) not in made:
            folder = tmp_path_factory.mktemp(method) / "model"
            source = make_model("gpt_oss" if method == "mxfp4" else "llama")
            if method == "fp8_in_full":
                source = make("fp8")
            kind = {"fp8": fp8, "fp8_in_full": fp8_in_full, "mxfp4": mxfp4}.get(method)
            made[method, scheme] = (
                compressed(source, folder, scheme) if kind is None else kind(source, folder)
            )
        return str(made[method, scheme])

    return make


def test_fp8_is_dequantised_on_a_cpu_and_says_so(checkpoints, states, heard):
    """To the numbers that scales and blocks give, computed apart; as a model of them it encodes."""
    with heard.at_level(logging.WARNING, "ebm_encode"):
        encoder = Encoder.load(checkpoints("fp8"), dtype="float32")
    assert "fp8 weights are dequantised to float32" in heard.text
    wanted = unbatched(checkpoints("fp8_in_full"), states[:12])
    assert compare(encoder.encode(states[:12]), wanted)[0] <= 1e-5
    found = quantization_of(encoder)
    assert found["settings"]["quant_method"] == "fp8"
    assert (found["settings"]["dequantize"], found["held_as"]) == (True, ["float32"])


def test_mxfp4_is_dequantised_where_there_are_no_kernels(checkpoints, states):
    folder = checkpoints("mxfp4")
    encoder = Encoder.load(folder)
    wanted = unbatched(folder, states[:6], dtype=torch.bfloat16)
    assert compare(encoder.encode(states[:6]), wanted)[0] <= 0.02
    assert quantization_of(encoder)["settings"]["dequantize"] is True
    assert quantization_of(encoder)["held_as"] == ["bfloat16"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_compressed_tensors_give_what_the_whole_model_gives(checkpoints, states, scheme):
    """Their weights are unpacked before the first pass of the whole model, of which a part runs."""
    folder = checkpoints("compressed-tensors", scheme)
    encoder = Encoder.load(folder)
    wanted = unbatched(folder, states[:12])
    found = encoder.encode(states[:12])
    # Activations are rounded to 8 bits: a last bit of float32 may send one of them elsewhere.
    assert compare(found, wanted)[0] <= (1e-5 if scheme.endswith("A16") else 0.02)
    assert quantization_of(encoder)["settings"]["quant_method"] == "compressed-tensors"
    one = np.stack([encoder.encode([state])[0] for state in states[:2]])
    assert compare(one, wanted[:2])[0] <= (1e-5 if scheme.endswith("A16") else 0.02)


def test_each_is_another_encoder(checkpoints, llama):
    folders = [llama, checkpoints("fp8"), checkpoints("fp8_in_full")]
    folders += [checkpoints("compressed-tensors", scheme) for scheme in SCHEMES]
    found = [json.loads(Encoder.load(f, dtype="float32").identity.to_json()) for f in folders]
    said = [identity["quantization"] for identity in found]
    assert (said[0], said[2]) == ("none", "none")
    assert len({*said}) == len(said) - 1
    assert len({json.dumps(identity) for identity in found}) == len(found)
    again = Encoder.load(folders[1], dtype="float32").identity.to_json()
    assert json.loads(again) == found[1]


@pytest.mark.parametrize("scheme", [None, *SCHEMES])
def test_no_weight_is_a_page_of_its_file(checkpoints, tmp_path, scheme):
    """A trainer that writes into the folder would change the model (Linux lists such pages)."""
    source = checkpoints("compressed-tensors" if scheme else "fp8", scheme)
    folder = shutil.copytree(source, tmp_path / "model")
    model = load_model(str(folder))
    maps = Path("/proc/self/maps")
    assert str(folder) not in (maps.read_text() if maps.exists() else "")
    assert model.quantization is not None


def test_a_missing_scale_is_no_weight(llama, tmp_path):
    """transformers leaves the numbers as they are, a thousand times too large."""
    name = "model.layers.1.mlp.up_proj.weight"

    def without(weights):
        return {key: value for key, value in weights.items() if key != f"{name}_scale_inv"}

    folder = fp8(llama, tmp_path / "model", without)
    with pytest.raises(ModelError, match=r"1 of its fp8 layers lack scales.*up_proj"):
        Encoder.load(str(folder))


def test_a_missing_packed_weight(checkpoints, tmp_path):
    folder = Path(shutil.copytree(checkpoints("compressed-tensors", "W4A16"), tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight_packed"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"up_proj.weight_packed.*randomly initialised"):
        Encoder.load(str(folder))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_head_beside_quantised_layers(checkpoints, scheme):
    folder = checkpoints("compressed-tensors", scheme)
    model = load_model(folder, keep_head=True)
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.equal(model.whole(ids).logits, whole(ids).logits)


def test_a_random_encoder_of_a_quantised_model_is_not_quantised(checkpoints, tmp_path):
    """It has the architecture; its weights are new, and whole."""
    folder = make_random_model(checkpoints("fp8"), tmp_path / "random", seed=0)
    model = load_model(str(folder))
    assert model.quantization is None
    assert {tensor.dtype for tensor in model.base.parameters()} == {torch.float32}


_GROUPS = {"group": {"weights": {"num_bits": 4, "type": "int"}, "targets": ["Linear"]}}
NOT_INSTALLED = {
    "gptq": ({"bits": 4, "group_size": 128}, "optimum gptqmodel"),
    "awq": ({"bits": 4, "group_size": 128, "version": "gemm"}, "gptqmodel"),
    "bitsandbytes": ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes"),
    "compressed-tensors": ({"config_groups": _GROUPS}, "compressed-tensors"),
    "torchao": ({"quant_type": "int8_weight_only"}, "torchao"),
    "aqlm": ({"in_group_size": 8}, r"'aqlm\[gpu,cpu\]'"),
    "quanto": ({"weights": "int8"}, "optimum-quanto"),
    "quark": ({}, "amd-quark"),
    "auto-round": ({"bits": 4, "group_size": 128}, "auto-round"),
    "sinq": ({}, "sinq"),
}


@pytest.fixture
def nothing_installed(monkeypatch):
    """Of the packages of any method; and reading weights fails."""
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", never)


def never(*_, **__):
    pytest.fail("weights were read")


@pytest.mark.parametrize("method", NOT_INSTALLED)
@pytest.mark.usefixtures("nothing_installed")
def test_a_method_without_its_package_is_refused_by_name(llama, tmp_path, method):
    settings, install = NOT_INSTALLED[method]
    folder = stated(llama, tmp_path / "model", {"quant_method": method} | settings)
    with pytest.raises(
        ModelError, match=rf"\({method}\), which needs .*\nhint: pip install {install}$"
    ):
        Encoder.load(str(folder))


@pytest.mark.usefixtures("nothing_installed")
def test_8_bit_weights_of_old_releases_name_their_method(llama, tmp_path):
    folder = stated(llama, tmp_path / "model", {"load_in_8bit": True})
    with pytest.raises(ModelError, match=r"\(bitsandbytes\), which needs bitsandbytes\nhint: "):
        Encoder.load(str(folder))


@pytest.mark.parametrize(
    "method", ["eetq", "fbgemm_fp8", "higgs", "hqq", "spqr", "vptq", "fp_quant"]
)
@pytest.mark.usefixtures("nothing_installed")
def test_what_runs_on_accelerators_only(llama, tmp_path, method):
    folder = stated(llama, tmp_path / "model", {"quant_method": method})
    with pytest.raises(
        ModelError, match=rf"\({method}\), and .* accelerators only\nhint: .*`device`"
    ):
        Encoder.load(str(folder))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "magic"}, "is quantised by magic, which transformers .* does not know"),
        ({"bits": 4}, "states no quant_method"),
        ({"quant_method": "fp8", "activation_scheme": "magic"}, "cannot be loaded here: .*magic"),
        ({"quant_method": "nvfp4"}, "accelerators only"),
    ],
)
@pytest.mark.usefixtures("nothing_installed")
def test_settings_that_nothing_here_can_load(llama, tmp_path, settings, said):
    """transformers would load a method that it does not know as if it were not quantised."""
    folder = stated(llama, tmp_path / "model", settings)
    with pytest.raises(ModelError, match=rf"{said}[\s\S]*\nhint: "):
        Encoder.load(str(folder))


@pytest.mark.usefixtures("nothing_installed")
def test_the_command_line_exits_with_2(encode, llama, tmp_path):
    folder = stated(llama, tmp_path / "model", {"quant_method": "gptq", "bits": 4})
    code, _, said = encode(model=folder)
    assert code == 2
    assert "hint: pip install optimum gptqmodel" in said


@pytest.fixture
def h100(monkeypatch):
    """transformers believes that the machine has one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.mark.usefixtures("h100")
def test_fp8_on_a_gpu_needs_its_kernels(monkeypatch):
    config = transformers.LlamaConfig(quantization_config=FP8)
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        ModelError, match=r"\(fp8\), which needs kernels\nhint: pip install kernels"
    ):
        quantization.require_usable("m", config, torch.device("cuda"), None)
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda _: "there")
    kept = quantization.require_usable("m", config, torch.device("cuda"), None)
    assert (kept.method, kept.options) == ("fp8", {})


@pytest.mark.usefixtures("h100")
def test_fp8_on_the_cpu_of_a_machine_with_a_gpu_is_dequantised_all_the_same(checkpoints):
    """transformers looks at the machine, not at where the model goes."""
    found = quantization_of(Encoder.load(checkpoints("fp8"), device="cpu"))
    assert found["settings"]["dequantize"] is True


def test_a_dtype_that_a_method_does_not_compute_in(monkeypatch):
    """As AWQ's kernels on a GPU take float16 only; transformers would take that with a warning."""

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda _: "there")
    monkeypatch.setattr(quantizer_awq, "is_gptqmodel_available", lambda: True)
    settings = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}
    config = transformers.LlamaConfig(quantization_config=settings)
    target = torch.device("cuda")
    with pytest.raises(
        ModelError, match=r"\(awq\), which computes in float16 here, not in bfloat16"
    ):
        quantization.require_usable("m", config, target, torch.bfloat16)
    assert quantization.require_usable("m", config, target, torch.float16).method == "awq"
