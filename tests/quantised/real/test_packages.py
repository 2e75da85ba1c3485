"""Quantised checkpoints by the packages that are too large for the environment: on a CPU.

`make test-quantised` installs them. Embeddings are compared with those of plain transformers at
batch size 1 on the same checkpoint.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
)

from ebm_encode import Encoder
from ebm_encode.engines.reference import compare
from ebm_encode.errors import ModelError
from ebm_encode.loading.model import load_model
from quantised_models import by_transformers, packed_4_bit
from support import FILES
from test_parity import unbatched

BNB, AO = transformers.BitsAndBytesConfig, transformers.TorchAoConfig
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
SETTINGS = {
    "nf4": lambda: BNB(**NF4),
    "nf4 in bfloat16": lambda: BNB(**NF4, bnb_4bit_compute_dtype=torch.bfloat16),
    "nf4 twice": lambda: BNB(**NF4, bnb_4bit_use_double_quant=True),
    "fp4": lambda: BNB(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "int8": lambda: BNB(load_in_8bit=True),
    "torchao int8": lambda: AO(Int8WeightOnlyConfig()),
    "torchao int8 dynamic": lambda: AO(Int8DynamicActivationInt8WeightConfig()),
    "torchao float8": lambda: AO(Float8WeightOnlyConfig()),
}
METHODS = [*SETTINGS, "gptq", "awq"]
# Of those whose activations are rounded, or matmuls, to fewer bits than float32.
BOUNDS = {"nf4 in bfloat16": 0.03, "int8": 0.03, "torchao int8 dynamic": 0.03, "gptq": 1e-3}


@pytest.fixture(scope="module")
def checkpoints(make_model, tmp_path_factory):
    """Each method's checkpoint of one small model."""
    source, folder = make_model("llama"), tmp_path_factory.mktemp("quantised")
    return {
        name: str(
            by_transformers(source, folder / name, SETTINGS[name]())
            if name in SETTINGS
            else packed_4_bit(source, folder / name, name)
        )
        for name in METHODS
    }


def identity_of(folder):
    return json.loads(Encoder.load(folder, dtype="float32").identity.to_json())


@pytest.mark.parametrize("method", METHODS)
def test_embeddings_are_those_of_transformers(checkpoints, states, method):
    encoder = Encoder.load(checkpoints[method], dtype="float32")
    wanted = unbatched(checkpoints[method], states[:24])
    error, _ = compare(encoder.encode(states[:24]), wanted)
    sys.stderr.write(
        f"{method}: {encoder.selection.choice.engine.name}, {error:.1e},"
        f" {encoder.model.quantization['held_as']}; {encoder.selection.choice.reason}\n"
    )
    assert error <= BOUNDS.get(method, 1e-5)
    reference = Encoder.load(checkpoints[method], dtype="float32", engine="unbatched")
    assert compare(reference.encode(states[:6]), wanted[:6])[0] <= 1e-6


def test_each_is_another_encoder(checkpoints, llama):
    found = [identity_of(folder)["quantization"] for folder in [llama, *checkpoints.values()]]
    assert found[0] == "none"
    assert len({*found}) == len(found)
    assert identity_of(checkpoints["nf4"])["quantization"] == found[1]


@pytest.mark.parametrize("method", METHODS)
def test_no_weight_is_a_page_of_its_file(checkpoints, tmp_path, method):
    folder = shutil.copytree(checkpoints[method], tmp_path / "model")
    model = load_model(str(folder))
    assert str(folder) not in Path("/proc/self/maps").read_text()
    assert model.quantization is not None


@pytest.mark.parametrize("method", METHODS)
def test_a_missing_part_of_a_weight_is_refused(checkpoints, tmp_path, method):
    folder = Path(shutil.copytree(checkpoints[method], tmp_path / "model"))
    file = folder / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    weights = load_file(file)
    # bitsandbytes does not read how its files have always been laid out.
    lost = [n for n in weights if "layers.1.mlp.up_proj" in n and "weight_format" not in n]
    assert len(lost) > 1
    for gone in [*([name] for name in lost), [n for n in lost if not n.endswith("weight")]]:
        kept = {name: tensor for name, tensor in weights.items() if name not in gone}
        save_file(kept, file, metadata=metadata)
        with pytest.raises(ModelError):
            load_model(str(folder))


@pytest.mark.parametrize("method", ["nf4", "gptq", "torchao int8"])
def test_with_its_head(checkpoints, method):
    model = load_model(checkpoints[method], dtype="float32", keep_head=True)
    whole = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoints[method], dtype=torch.float32
    )
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.equal(model.whole(ids).logits, whole(ids).logits)


@pytest.mark.parametrize("method", ["nf4", "gptq", "torchao int8"])
def test_nothing_but_the_summary_is_on_stdout(checkpoints, tmp_path, method):
    """Packages greet, and warn; a program that reads the summary must not see it."""
    child = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "ebm_encode",
                "encode",
                "--engine",
                "unbatched",
                "--model-path",
                checkpoints[method],
            ),
            *("--trajectories", FILES[0], "--output", tmp_path / "o.parquet", "--json"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout)["rows"] > 0
