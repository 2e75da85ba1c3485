"""The steps of `make demo-iteration` that are not commands: which theorems go where."""

import json

import numpy as np
import pyarrow.parquet as pq

import demo_head
import demo_iteration
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


def test_the_configuration_is_right_and_its_steps_are_in_order(tmp_path, run_cli):
    path = demo_iteration.write_config(tmp_path)
    code, out, err = run_cli("iterate", path, "--dry-run", "--json")
    assert code == 0, err
    names = [step["name"] for step in json.loads(out)["steps"]]
    assert names[:6] == ["llm-train", "export", "encode", "audit", "train-head", "evaluate"]
    assert names[6] == "search-replay"
