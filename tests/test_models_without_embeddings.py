"""Models that can give no embedding are refused with the reason, before any state is run."""

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from ebm_encode import Encoder
from ebm_encode._core import CachedEncoder
from ebm_encode.engines.runner import Runner
from ebm_encode.errors import ModelError
from support import FILES


@pytest.fixture
def changed(make_model, tmp_path):
    """A function that makes a changed copy of a model."""

    def make(weights=lambda _: None, **config):
        folder = shutil.copytree(make_model(), tmp_path / "model")
        tensors = load_file(folder / "model.safetensors")
        weights(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | config))
        return str(folder)

    return make


@pytest.fixture
def only_nan(changed):
    return changed(lambda tensors: tensors["model.norm.weight"].fill_(np.nan))


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_a_run_of_a_model_that_gives_only_nan_is_refused_at_its_start(
    run_cli, only_nan, tmp_path, quiet, monkeypatch
):
    ran = []
    encode = Runner.run_all
    monkeypatch.setattr(Runner, "run_all", lambda *args, **kw: ran.append(1) or encode(*args, **kw))
    code, out, err = run_cli(
        *("encode", "--model-path", only_nan, "--trajectories", *FILES, *quiet),
        *("--output", tmp_path / "o.parquet"),
    )
    assert (code, out) == (2, "")
    assert "gives no finite embedding of any self-test prompt in float32" in err
    assert "hint: " in err
    assert not ran
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "nothing is written"


def test_encoding_with_a_model_that_gives_only_nan_says_so(only_nan, heard):
    encoder = Encoder.load(only_nan)
    assert "not finite" in heard.text, "loading warns"
    with pytest.raises(ModelError, match="no finite embedding of any self-test prompt"):
        encoder.encode(["⊢ a"])
    with pytest.raises(ModelError, match="no finite embedding"):
        encoder.encode_into(["⊢ a"], np.zeros((1, encoder.dim), np.float32))
    [answer] = CachedEncoder(encoder).encode(["⊢ a"])
    assert "no finite embedding" in answer.reason


def test_float16_that_overflows_is_told_the_way_out(changed):
    folder = changed(lambda tensors: tensors["model.embed_tokens.weight"].mul_(1e6))
    encoder = Encoder.load(folder, dtype="float16")
    with pytest.raises(ModelError, match='hint: `dtype="float32"` holds numbers'):
        encoder.encode(["⊢ a"])
    assert np.isfinite(Encoder.load(folder, dtype="float32").encode(["⊢ a"])).all()


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_weights_of_another_shape_are_reported(run_cli, changed, tmp_path, quiet):
    folder = changed(vocab_size=3000)
    code, _, err = run_cli(
        *("encode", "--model-path", folder, "--trajectories", *FILES, *quiet),
        *("--output", tmp_path / "o.parquet"),
    )
    assert code == 2
    assert "model.embed_tokens.weight is [2048, 64], expected [3000, 64]" in err
    assert "hint: was the vocabulary resized" in err
    assert "above report" not in err
