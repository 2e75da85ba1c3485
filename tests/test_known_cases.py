"""Inputs, tokenizers and models that were trouble to others who extract embeddings.

Each is right here or refused with the way out, and stays so.
"""

import itertools
import json
import shutil

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ebm_encode import Encoder
from ebm_encode.data.trajectories import read_states
from ebm_encode.engines.reference import compare
from ebm_encode.errors import ModelError
from test_parity import unbatched

STATES = ["n : ℕ\n⊢ n + 0 = n", "⊢ True", "p q : Prop\nhp : p\n⊢ p ∨ q", "n : ℕ\n⊢ n = n"]


@pytest.fixture
def copy(make_model, tmp_path):
    """A function that copies a model, so that it can be changed."""
    numbers = itertools.count()

    def make(architecture="llama"):
        return shutil.copytree(make_model(architecture), tmp_path / f"{next(numbers)}")

    return make


def settings(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# Tables that models used to save, and that were never weights.


def tables_of_gpt2(tensors):
    mask = torch.ones(1, 1, 2048, 2048).tril()
    return {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()} | {
        f"h.{i}.attn.bias": mask.clone() for i in range(3)
    }


def tables_of_pythia(tensors):
    more = {}
    for i in range(3):
        more[f"gpt_neox.layers.{i}.attention.bias"] = torch.ones(1, 1, 2048, 2048).tril()
        more[f"gpt_neox.layers.{i}.attention.masked_bias"] = torch.tensor(-1e9)
        more[f"gpt_neox.layers.{i}.attention.rotary_emb.inv_freq"] = torch.rand(2)
    return tensors | more


@pytest.mark.parametrize(
    ("architecture", "changed"), [("gpt2", tables_of_gpt2), ("gpt_neox", tables_of_pythia)]
)
def test_masks_saved_with_a_model_change_nothing(copy, make_model, architecture, changed):
    folder = copy(architecture)
    file = folder / "model.safetensors"
    save_file(changed(load_file(file)), file, {"format": "pt"})
    expected = unbatched(make_model(architecture), STATES)
    assert compare(Encoder.load(str(folder)).encode(STATES), expected)[0] <= 1e-5


# Settings that are saved with a tokenizer.


def test_padding_and_truncation_saved_with_a_tokenizer_change_nothing(copy, llama):
    folder = copy()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(8)
    backend.enable_padding(length=64, direction="left", pad_id=1, pad_token="</s>")
    backend.save(str(folder / "tokenizer.json"))
    settings(folder / "tokenizer_config.json", padding_side="left", pad_token="</s>")
    changed, plain = Encoder.load(str(folder)), Encoder.load(llama)
    assert compare(changed.encode(STATES), unbatched(llama, STATES))[0] <= 1e-5
    assert changed.identity == plain.identity


def test_a_tokenizer_that_was_moved_is_the_same(copy, llama):
    folder = copy()
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    assert Encoder.load(str(folder)).identity == Encoder.load(llama).identity


@pytest.mark.parametrize("template", ["raw", "<s><s>{state}", "<s>{state}</s>"])
@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "LlamaTokenizerFast"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": False, "add_eos_token": True},
        {"add_prefix_space": True},
    ],
)
def test_settings_of_a_tokenizer_are_those_of_transformers(copy, tmp_path, changes, kind, template):
    folder = copy()
    settings(folder / "tokenizer_config.json", tokenizer_class=kind, **changes)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    name = template
    if template != "raw":
        name = str(tmp_path / "template.txt")
        (tmp_path / "template.txt").write_text(template)
    found = Encoder.load(str(folder), template=name).prompts.tokenize(STATES)
    for i, state in enumerate(STATES):
        expected = tokenizer(state)["input_ids"]
        if template != "raw":
            plain = tokenizer(template.replace("{state}", state), add_special_tokens=False)
            own = plain["input_ids"]
            # Those that the template spells are not added a second time.
            expected = [begin] * (expected[0] == begin and own[0] != begin) + own
            expected += [end] * (tokenizer(state)["input_ids"][-1] == end and own[-1] != end)
        assert found[i].tolist() == expected


# Weight files that are not whole.


@pytest.fixture
def sharded(copy):
    folder = copy()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="300KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    return folder, shards


def pointer(shard):
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def cut(shard):
    shard.write_bytes(shard.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [lambda shard: shard.unlink(), cut, pointer])
def test_shards_that_are_not_whole_are_refused(sharded, damage):
    folder, shards = sharded
    damage(shards[-1])
    with pytest.raises(ModelError, match=str(folder)) as refused:
        Encoder.load(str(folder))
    assert "\n" not in str(refused.value).partition("\nhint: ")[0]


def test_a_missing_shard_is_reported_with_its_index(sharded):
    folder, shards = sharded
    shards[-1].unlink()
    with pytest.raises(ModelError, match=rf"index\.json: .*{shards[-1].name}"):
        Encoder.load(str(folder))


def test_stray_weight_files_are_not_read(copy, llama):
    folder = copy()
    save_file({"x": torch.zeros(3)}, folder / "consolidated.safetensors")
    torch.save({"model.norm.weight": torch.zeros(64)}, folder / "pytorch_model.bin")
    assert compare(Encoder.load(str(folder)).encode(STATES), unbatched(llama, STATES))[0] <= 1e-5


# Parquet as many writers have it.

ROWS = [*STATES, None, "", *STATES[:2]] * 50


def by_pyarrow(**options):
    def write(path):
        pq.write_table(pa.table({"n": range(len(ROWS)), "state_pp": ROWS}), path, **options)

    return write


def by_polars(**options):
    def write(path):
        pl.DataFrame({"n": range(len(ROWS)), "state_pp": ROWS}).write_parquet(path, **options)

    return write


def by_duckdb(options):
    def write(path):
        made = pa.table({"n": range(len(ROWS)), "state_pp": ROWS})  # noqa: F841  (DuckDB finds it)
        duckdb.sql(f"COPY (SELECT * FROM made) TO '{path}' (FORMAT parquet{options})")

    return write


WRITERS = {
    **{
        f"pyarrow {encoding}": by_pyarrow(
            use_dictionary=False, column_encoding={"state_pp": encoding}
        )
        for encoding in ("PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY")
    },
    **{
        f"pyarrow {codec}": by_pyarrow(compression=codec)
        for codec in ("none", "snappy", "gzip", "brotli", "lz4", "zstd")
    },
    "pyarrow v2 pages": by_pyarrow(data_page_version="2.0", data_page_size=64),
    "pyarrow tiny groups": by_pyarrow(row_group_size=3, write_page_index=True),
    "pyarrow checksums": by_pyarrow(write_page_checksum=True),
    "polars": by_polars(),
    "polars lz4": by_polars(compression="lz4", row_group_size=7),
    "duckdb": by_duckdb(""),
    "duckdb v2": by_duckdb(", PARQUET_VERSION v2, ROW_GROUP_SIZE 2048"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_parquet_of_other_writers_is_read(tmp_path, writer):
    WRITERS[writer](tmp_path / "a.parquet")
    found = read_states([str(tmp_path / "a.parquet")])
    assert found.texts == STATES
    counts = found.counts
    assert (counts.rows, counts.null, counts.empty) == (len(ROWS), 50, 50)


# Lines as other systems write them, from the command line.


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            b'{"state_pp": "a"}\n{"state_pp":"\\ud835 : Type"}\n',
            "line 2: field 'state_pp' has half",
        ),
        ('{"state_pp": "é"}\n'.encode("cp1252"), "line 1: is not UTF-8"),
        ('{"state_pp": "a"}\n'.encode("utf-16"), "is UTF-16 or UTF-32"),
        (b'{"state_pp": "a\0b"}\n', "line 1: not JSON"),
        ('\ufeff{"state_pp": "⊢ a"}\r\n{"state_pp": "⊢\u2028b"}\r\n'.encode(), None),
    ],
)
def test_lines_of_other_systems(run_cli, llama, tmp_path, content, told):
    source, output = tmp_path / "a.jsonl", tmp_path / "o.parquet"
    source.write_bytes(content)
    code, _, err = run_cli(
        "encode", "--model-path", llama, "--trajectories", source, "--output", output, "--quiet"
    )
    if told is None:
        assert (code, err) == (0, "")
        assert set(pq.read_table(output)["state_pp"].to_pylist()) == {"⊢ a", "⊢\u2028b"}
    else:
        assert code == 2
        assert f"a.jsonl: {told}" in err
        assert not output.exists()


def test_embeddings_do_not_depend_on_how_the_file_was_written(tmp_path, llama):
    encoder = Encoder.load(llama)
    expected = encoder.encode(STATES)
    for name in ("pyarrow DELTA_BYTE_ARRAY", "duckdb", "polars"):
        WRITERS[name](tmp_path / "a.parquet")
        column = pq.read_table(tmp_path / "a.parquet")["state_pp"].drop_null()[:4]
        assert np.array_equal(encoder.encode(column), expected)
