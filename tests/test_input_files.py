"""Which files are read: subfolders, patterns that match folders, and notes of what is skipped."""

import json
import os

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from ebm_encode._core import CacheWriter
from ebm_encode.data.trajectories import read_states
from ebm_encode.digests import digest_file
from ebm_encode.errors import ArgumentError, InputError


def parquet(path, *states):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"state_pp": [*states]}), path)
    return path


def lines(path, *states):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"state_pp": state}) + "\n" for state in states))
    return path


def test_partitioned_folders_are_read_whole(tmp_path):
    table = pa.table({"state_pp": ["a", "b", "c"], "split": ["train", "train", "test"]})
    pq.write_to_dataset(table, tmp_path, partition_cols=["split"])
    parquet(tmp_path / "top.parquet", "d")
    lines(tmp_path / "year=2026" / "month=1" / "x.jsonl", "e")
    found = read_states([str(tmp_path)])
    assert sorted(found.texts) == ["a", "b", "c", "d", "e"]
    assert len(found.files) == 4
    assert (found.notes, found.warnings) == ([], [])


def test_partition_columns_that_are_dictionaries_do_not_matter(tmp_path):
    for split in ("train", "test"):
        path = tmp_path / f"split={split}" / "0.parquet"
        path.parent.mkdir()
        kind = pa.array([split]).dictionary_encode()
        pq.write_table(pa.table({"state_pp": [split], "split": kind}), path)
    assert read_states([str(tmp_path)]).texts == ["test", "train"]


@pytest.mark.parametrize("pattern", ["runs/*.parquet", "runs/*", "runs/**", "r*/b.parquet"])
def test_patterns_match_folders_too(tmp_path, monkeypatch, pattern):
    """Spark calls its folders `name.parquet`."""
    monkeypatch.chdir(tmp_path)
    parquet(tmp_path / "runs" / "a.parquet", "a")
    parquet(tmp_path / "runs" / "b.parquet" / "part-00000.parquet", "b")
    parquet(tmp_path / "runs" / "b.parquet" / "part-00001.parquet", "c")
    (tmp_path / "runs" / "b.parquet" / "_SUCCESS").touch()
    found = read_states([pattern])
    assert sorted(found.texts) == (["b", "c"] if pattern.startswith("r*") else ["a", "b", "c"])
    assert any("_SUCCESS" in note for note in found.notes)


def test_what_is_skipped_below_a_folder_is_noted(tmp_path, write_cache, rows, identity):
    parquet(tmp_path / "deep" / "a.parquet", "a")
    write_cache(tmp_path / "deep" / "cache.parquet", ["z"], rows(1))
    lines(tmp_path / "deep" / "cache.parquet.overlong.jsonl", "z")
    (tmp_path / "deep" / "README.md").touch()
    writer = CacheWriter(tmp_path / "deep" / "next.parquet")
    writer.open(identity(), 16, checkpoint_rows=1)
    writer.append(["y"], rows(1))
    writer.checkpoint()
    lines(tmp_path / "_old" / "b.jsonl", "b")
    found = read_states([str(tmp_path)])
    writer.close()
    assert found.texts == ["a"]
    for name in ("cache.parquet", "overlong.jsonl", "README.md", "next.parquet.partial"):
        assert any(name in note for note in found.notes), name
    [warning] = found.warnings
    assert "_old: skipped 1 input files" in warning
    assert read_states([str(tmp_path / "_old")]).texts == ["b"], "given by its own path, it is read"


def test_a_folder_of_which_all_is_skipped_says_why(tmp_path):
    lines(tmp_path / ".hidden" / "b.jsonl", "b")
    with pytest.raises(InputError, match=r"hint: .*hidden: skipped 1"):
        read_states([str(tmp_path)])


def test_links_that_lead_back_are_followed_once(tmp_path):
    parquet(tmp_path / "data" / "a.parquet", "a")
    parquet(tmp_path / "elsewhere" / "b.parquet", "b")
    (tmp_path / "data" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "side").symlink_to(tmp_path / "elsewhere")
    assert read_states([str(tmp_path / "data")]).texts == ["a", "b"]


def test_a_file_by_several_names_is_read_once(tmp_path):
    path = parquet(tmp_path / "data" / "a.parquet", "a")
    (tmp_path / "link.parquet").symlink_to(path)
    names = [str(tmp_path), str(path), str(tmp_path / "link.parquet"), f"{tmp_path}/data/../data"]
    assert read_states(names).counts.rows == 1


def test_a_subfolder_that_cannot_be_opened_is_an_error(tmp_path, monkeypatch):
    parquet(tmp_path / "a.parquet", "a")
    parquet(tmp_path / "closed" / "b.parquet", "b")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)  # the tests may run as root
    with pytest.raises(InputError, match="closed: cannot be read: Permission denied"):
        read_states([str(tmp_path)])


def test_a_link_to_nothing_is_an_error(tmp_path):
    parquet(tmp_path / "a.parquet", "a")
    (tmp_path / "b.parquet").symlink_to(tmp_path / "gone.parquet")
    with pytest.raises(InputError, match=r"b\.parquet: cannot be read"):
        read_states([str(tmp_path)])


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="is a pipe or device"):
        read_states([str(tmp_path / "a.jsonl")])
    parquet(tmp_path / "b.parquet", "b")
    assert any("a.jsonl" in note for note in read_states([str(tmp_path)]).notes)


@pytest.mark.parametrize("paths", [[], [""], ["a.parquet", ""]])
def test_no_name_at_all_is_refused(paths):
    with pytest.raises(ArgumentError, match="`trajectories`: name at least one"):
        read_states(paths)


def test_what_is_skipped_is_in_the_summary(run_cli, llama, tmp_path):
    parquet(tmp_path / "in" / "split=train" / "a.parquet", "⊢ a", "⊢ b")
    lines(tmp_path / "in" / "_old" / "b.jsonl", "⊢ c")
    code, out, err = run_cli(
        *("encode", "--model-path", llama, "--trajectories", tmp_path / "in", "--json"),
        *("--output", tmp_path / "o.parquet", "--quiet"),
    )
    assert (code, json.loads(out)["rows"]) == (0, 2)
    assert any("_old" in text for text in json.loads(out)["skipped_inputs"])
    assert "_old: skipped 1" in " ".join(err.split()), "also where nothing else is told"


def test_inputs_are_read_from_the_hugging_face_hub(tmp_path, monkeypatch, write_cache, rows):
    """By its own file system, which stands on a folder here."""
    parquet(tmp_path / "datasets" / "who" / "proofs" / "train" / "a.parquet", "x", "y")
    lines(tmp_path / "datasets" / "who" / "proofs" / "more.jsonl", "z")
    write_cache(tmp_path / "datasets" / "who" / "proofs" / "cache.parquet", ["q"], rows(1))

    class Hub(DirFileSystem):
        def __init__(self):
            super().__init__(str(tmp_path), LocalFileSystem())

    monkeypatch.setattr(huggingface_hub, "HfFileSystem", Hub)
    found = read_states(["hf://datasets/who/proofs"])
    assert sorted(found.texts) == ["x", "y", "z"]
    assert any("embedding caches" in note for note in found.notes)
    assert [*map(str, read_states(["hf://datasets/who/proofs/*.jsonl"]).files)] == [
        "hf://datasets/who/proofs/more.jsonl"
    ]
    (digest,) = read_states(["hf://datasets/who/proofs/more.jsonl"]).files.values()
    here = tmp_path / "datasets" / "who" / "proofs" / "more.jsonl"
    assert digest == digest_file(here)
    with pytest.raises(InputError, match=r"hf://datasets/who/none: no such file"):
        read_states(["hf://datasets/who/none"])
