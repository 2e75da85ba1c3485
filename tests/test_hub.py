"""Models by hub id: which files are downloaded, at which revision, and the same checks on them."""

import fnmatch
import json
import shutil

import pytest
import torch
from safetensors.numpy import load_file, save_file

from ebm_encode import EmbeddingCache, Encoder
from ebm_encode.errors import ModelError

MAIN, TAGGED = "a" * 40, "b" * 40


@pytest.fixture
def hub(llama, tmp_path, monkeypatch):
    """A hub with one repository: its files at two revisions, and what was downloaded."""

    class Hub:
        def __init__(self):
            self.main = shutil.copytree(llama, tmp_path / "remote" / MAIN)
            self.tagged = tmp_path / "remote" / TAGGED
            self.downloaded = []

        def download(self, name, *, revision=None, allow_patterns):
            assert name == "somebody/model"
            revision = {None: MAIN, "v1": TAGGED}.get(revision, revision)
            here = tmp_path / "hub" / "models--somebody--model" / "snapshots" / revision
            here.mkdir(parents=True, exist_ok=True)
            for file in (tmp_path / "remote" / revision).rglob("*"):
                path = str(file.relative_to(tmp_path / "remote" / revision))
                if file.is_file() and any(fnmatch.fnmatch(path, p) for p in allow_patterns):
                    (here / path).parent.mkdir(exist_ok=True)
                    if not (here / path).exists():
                        shutil.copy(file, here / path)
                        self.downloaded.append(path)
            return str(here)

    made = Hub()
    monkeypatch.setattr("ebm_encode.loading.model_files.snapshot_download", made.download)
    return made


def weights_of(hub):
    kinds = (".safetensors", ".bin", ".pth")
    return sorted(name for name in hub.downloaded if name.endswith(kinds))


def test_the_same_weights_are_not_downloaded_twice(hub, llama):
    for other in ("consolidated.safetensors", "pytorch_model.bin", "onnx/model.safetensors"):
        (hub.main / other).parent.mkdir(exist_ok=True)
        shutil.copy(hub.main / "model.safetensors", hub.main / other)
    encoder = Encoder.load("somebody/model")
    assert weights_of(hub) == ["model.safetensors"]
    assert encoder.identity == Encoder.load(llama).identity


def shards(folder):
    weights = load_file(folder / "model.safetensors")
    names = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(weights)}
    for file in set(names.values()):
        some = {name: weights[name] for name in weights if names[name] == file}
        save_file(some, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": names})
    )


def test_shards_are_those_of_the_index(hub, llama, states):
    shards(hub.main)
    (hub.main / "model-00009-of-00009.safetensors").write_bytes(b"of another form")
    embeddings = Encoder.load("somebody/model").encode(states[:3])
    assert weights_of(hub) == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert (embeddings == Encoder.load(llama).encode(states[:3])).all()


def test_pickled_weights_where_there_are_no_others(hub):
    weights = load_file(hub.main / "model.safetensors")
    (hub.main / "model.safetensors").unlink()
    torch.save({n: torch.from_numpy(w) for n, w in weights.items()}, hub.main / "pytorch_model.bin")
    assert Encoder.load("somebody/model").dim == 64
    assert weights_of(hub) == ["pytorch_model.bin"]


def test_weights_that_config_json_names_are_downloaded(hub):
    shutil.copy(hub.main / "model.safetensors", hub.main / "trained.safetensors")
    config = json.loads((hub.main / "config.json").read_text())
    config["transformers_weights"] = "trained.safetensors"
    (hub.main / "config.json").write_text(json.dumps(config))
    assert Encoder.load("somebody/model").dim == 64
    assert weights_of(hub) == ["trained.safetensors"]


def test_a_repository_without_weights(hub):
    (hub.main / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        Encoder.load("somebody/model")


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("by_hub_id", [False, True])
def test_adapters_are_refused_from_a_folder_and_from_the_hub(hub, whole, by_hub_id):
    settings = {"peft_type": "LORA", "base_model_name_or_path": "somebody/base"}
    (hub.main / "adapter_config.json").write_text(json.dumps(settings))
    if not whole:  # as peft writes it
        (hub.main / "config.json").unlink()
    name = "somebody/model" if by_hub_id else str(hub.main)
    said = r"adapter .*somebody/base[\s\S]*hint: .*as `adapter`; or merge it"
    with pytest.raises(ModelError, match=said):
        Encoder.load(name)
    assert weights_of(hub) == []


def test_a_revision_is_loaded_and_its_commit_recorded(hub, make_model, run_cli, tmp_path):
    shutil.copytree(make_model(seed=1), hub.tagged)
    main, tagged = (Encoder.load("somebody/model", revision=r) for r in (None, "v1"))
    assert [d[0] for d in main.identity.differences(tagged.identity)] == ["weights"]
    assert (main.model.commit, tagged.model.commit) == (MAIN, TAGGED)
    source, output = tmp_path / "s.jsonl", tmp_path / "o.parquet"
    source.write_text('{"state_pp": "⊢ a"}\n')
    options = ["--model-path", "somebody/model", "--revision", "v1", "--trajectories", source]
    code, _, err = run_cli("encode", *options, "--output", output)
    assert code == 0, err
    cache = EmbeddingCache.open(output)
    assert cache.identity == tagged.identity
    assert f'"commit": "{TAGGED}"' in json.dumps(cache.provenance)
    assert run_cli("plan", *options)[0] == 0


def test_a_folder_has_no_revision(llama):
    with pytest.raises(ModelError, match=r"`revision` v1: .* is a folder[\s\S]*hint: "):
        Encoder.load(llama, revision="v1")
