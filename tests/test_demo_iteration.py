"""The steps of `make demo-iteration` that are not commands: which theorems go where."""

import tomllib

import numpy as np
import pyarrow.parquet as pq

import demo_head
import demo_iteration
import iteration_config
from recorded_searches import search, searches, write_rows


def names(path):
    return set(pq.read_table(path)["theorem_name"].to_pylist())


def test_half_of_the_searched_theorems_are_held_out(tmp_path):
    recorded = write_rows(tmp_path / "t.parquet", searches(10))
    held = demo_head.held_out([str(recorded)])
    listed = demo_iteration.search_list(tmp_path, recorded, held, 2)
    assert len(names(listed) & held) == len(names(listed) - held) == 2


def test_trees_of_theorems_that_are_learned_from_leave_the_split_as_it_is(tmp_path):
    recorded = write_rows(tmp_path / "t.parquet", searches(10))
    held = demo_head.held_out([str(recorded)])
    random = np.random.default_rng(1)
    trees = write_rows(
        tmp_path / "trees.parquet", [r for n in range(10) for r in search(f"t{n}", random)]
    )
    learned = sorted(names(trees) - held)
    found = demo_iteration.write_rows(tmp_path / "found.parquet", pq.read_table(trees), learned)
    assert names(found) == {f"t{n}" for n in range(10)} - held
    assert demo_head.held_out([str(recorded), str(found)]) == held


def test_an_equal_file_is_not_written_again(tmp_path):
    table = pq.read_table(write_rows(tmp_path / "t.parquet", searches(3)))
    path = demo_iteration.write_rows(tmp_path / "some.parquet", table, ["t0"])
    before = path.stat()
    demo_iteration.write_rows(path, table, ["t0"])
    assert path.stat() == before
    demo_iteration.write_rows(path, table, ["t0", "t1"])
    assert names(path) == {"t0", "t1"}


def test_the_configuration_has_the_steps_in_order_whatever_the_paths(tmp_path):
    folder = tmp_path / 'a "quoted" ∀ folder'
    files = [folder / "one.parquet", folder / "two.parquet"]
    path = iteration_config.write_config(folder, folder / "base", files, 7)
    read = tomllib.loads(path.read_text())
    assert read["iteration"]["folder"] == str(folder)
    assert [*read["steps"]] == ["llm-train", "export", "encode", "train-head", "evaluate"]
    assert read["steps"]["llm-train"]["inputs"] == [*map(str, (folder / "base", *files))]
    for step in ("encode", "train-head", "evaluate"):
        assert read["steps"][step]["options"]["trajectories"] == [*map(str, files)]
