"""Labels from the graph of recorded steps, against plain enumeration and the files' own."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebm_encode.errors import InputError
from ebm_encode.heads.corpus import make_corpus, read_corpus
from ebm_encode.heads.graph import FINISHED, merge
from ebm_encode.heads.labels import (
    EXHAUSTED,
    NO_DISTANCE,
    PROVED,
    UNKNOWN,
    file_labels,
    label_graph,
)
from ebm_encode.heads.probe import probe_format
from ebm_encode.heads.records import read_trajectories
from recorded_searches import row, searches, write_rows
from support import ROOT

SEARCHES = ROOT / "searches" / "lean_core.parquet"


def graph_of(rows, tmp_path, name="t"):
    files = read_trajectories([str(write_rows(tmp_path / f"{name}.parquet", rows))])
    (graph,), counts = merge(files)
    return graph, counts


def test_the_labels_are_those_of_whoever_recorded_the_searches():
    """The file's own labels were made by the recorder, over all proofs it found."""
    graphs, _ = merge(read_trajectories([str(SEARCHES)]))
    checked = 0
    for graph in graphs:
        ours, theirs = label_graph(graph), file_labels(graph)
        assert (ours.proved == theirs.proved).all()
        assert (ours.distance == theirs.distance).all()
        checked += len(graph.states)
    assert checked > 10_000


@st.composite
def graphs(draw):
    """Rows of a random graph over a few states, cycles and repeated states included."""
    count = draw(st.integers(2, 9))
    steps = draw(st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count)), max_size=25))
    rows = [row("t", n, f"s{n}") for n in range(count)]
    for parent, child in [(0, 1), *steps]:
        if child == count:
            rows.append(row("t", 100, "", parent, finished=True))
        else:
            rows.append(row("t", child, f"s{child}", parent))
    return count, [(0, 1), *steps], rows


@given(graphs())
def test_distances_and_statuses_are_what_enumeration_finds(made):
    count, steps, rows = made

    with tempfile.TemporaryDirectory() as folder:
        graph, _ = graph_of(rows, Path(folder))
    labels = label_graph(graph)
    # Bellman and Ford's relaxation, and reachability by closure: other algorithms than the code's.
    distance = [float("inf")] * count
    for _ in range(count + 1):
        for parent, child in steps:
            after = 0 if child == count else distance[child]
            distance[parent] = min(distance[parent], after + 1)
    closure = np.eye(count, dtype=bool)
    for parent, child in steps:
        if child < count:
            closure[parent, child] = True
    for _ in range(count):
        closure |= (closure.astype(int) @ closure.astype(int)) > 0
    expanded = {parent for parent, child in steps if parent != child}
    for n in range(count):
        place = graph.states.index(f"s{n}")
        if distance[n] < float("inf"):
            assert labels.status[place] == PROVED
            assert labels.distance[place] == distance[n]
            continue
        assert labels.distance[place] == NO_DISTANCE
        untried = any(
            closure[n, m] and m not in expanded and distance[m] == float("inf")
            for m in range(count)
        )
        assert labels.status[place] == (UNKNOWN if untried else EXHAUSTED)


def test_states_are_merged_by_text_over_files(tmp_path):
    one = [row("t", 0, "a"), row("t", 1, "b", 0)]
    other = [row("t", 7, "b"), row("t", 8, "", 7, finished=True), row("u", 0, "x"),
             row("u", 1, "y", 0)]  # fmt: skip
    files = read_trajectories(
        [str(write_rows(tmp_path / f"{n}.parquet", rows)) for n, rows in (("1", one), ("2", other))]
    )
    graphs, _ = merge(files)
    graph = next(g for g in graphs if g.theorem == "t")
    assert graph.states == ["a", "b"]
    labels = label_graph(graph)
    assert [*labels.distance] == [2, 1], "the proof of one file continues the path of another"
    assert [sorted(files) for files in graph.sources] == [[0], [0, 1]]


def test_a_number_that_two_searches_use_means_the_state_before_the_row(tmp_path):
    rows = [
        row("t", 0, "a"), row("t", 1, "b", 0),
        row("t", 0, "c"), row("t", 1, "", 0, finished=True),
    ]  # fmt: skip
    graph, counts = graph_of(rows, tmp_path)
    labels = label_graph(graph)
    proved = {graph.states[n] for n in np.flatnonzero(labels.proved)}
    assert proved == {"c"}, "the finished proof is of the second search"
    assert counts.ambiguous == counts.without_parent == 0


def test_what_cannot_be_used_is_counted(tmp_path):
    rows = [
        row("t", 0, "a"), row("t", 1, "a", 0), row("t", 2, "b", 0), row("t", 3, "c", 99),
        row("t", 4, "", 0),
    ]  # fmt: skip
    graph, counts = graph_of(rows, tmp_path)
    assert (counts.rows, counts.loops, counts.without_parent, counts.empty) == (5, 1, 1, 1)
    assert not label_graph(graph).solved, "an empty text alone is no finished proof"


def test_of_different_labels_of_a_state_positive_wins_with_the_least_distance(tmp_path):
    rows = [
        row("t", 0, "a", label="negative"),
        row("t", 1, "b", 0, label="positive", remaining_depth=5),
        row("t", 2, "b", 0, label="negative"),
        row("t", 3, "b", 0, label="positive", remaining_depth=3),
    ]  # fmt: skip
    graph, _ = graph_of(rows, tmp_path)
    labels = file_labels(graph)
    assert [*labels.status] == [EXHAUSTED, PROVED]
    assert [*labels.distance] == [NO_DISTANCE, 3]


def test_a_file_of_expansions_tells_dead_ends_from_what_was_never_tried(tmp_path):
    path = write_rows(
        tmp_path / "t.parquet",
        [row("t", 0, "a"), row("t", 1, "b", 0), row("t", 2, "c", 0),
         row("t", 3, "", 0, finished=True)],
    )  # fmt: skip
    table = {"theorem_name": ["t", "t"], "state_id": [1, 2], "expanded": [True, False],
             "provable": ["no", None]}  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "expansions.parquet")
    plain = read_corpus([str(path)])
    told = read_corpus([str(path)], "graph", [str(tmp_path / "expansions.parquet")])
    assert [*plain.labels[0].status] == [PROVED, UNKNOWN, UNKNOWN]
    assert [*told.labels[0].status] == [PROVED, EXHAUSTED, UNKNOWN]
    assert told.graphs[0].provable == {1: False}


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([row("t", 0, "a"), row("t", 1, "b")], "no step from one state to another"),
        ([row("t", 0, "a"), row("t", 1, "b", 0)], "no solved theorem"),
        ([row("t", 0, "a"), row("t", 1, "", 0, finished=True)], "all labels are equal"),
    ],
)
def test_trajectories_that_teach_nothing_are_refused(rows, reason, tmp_path):
    files = [str(write_rows(tmp_path / "t.parquet", rows))]
    with pytest.raises(InputError, match=reason):
        read_corpus(files)


def test_json_lines_are_read_as_parquet_is(tmp_path):
    rows = searches(3)
    parquet = write_rows(tmp_path / "t.parquet", rows)
    lines = tmp_path / "t.jsonl"
    lines.write_text("".join(json.dumps(r) + "\n" for r in rows))
    one, other = (read_trajectories([str(path)])[0].records for path in (parquet, lines))
    assert one == other


@pytest.mark.parametrize(
    ("line", "reason"),
    [("{", "line 1: not JSON"), ('{"theorem_name": "t"}', "line 1: not an object with"),
     ('{"theorem_name": "t", "state_id": "x", "state_pp": "", "parent_state_id": null}', "line 1")],
)  # fmt: skip
def test_a_bad_line_is_reported(line, reason, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InputError, match=reason):
        read_trajectories([str(path)])


def test_a_file_without_parents_is_refused_by_column(tmp_path):
    pq.write_table(pa.table({"theorem_name": ["t"], "state_pp": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="no column state_id, parent_state_id"):
        read_trajectories([str(tmp_path / "t.parquet")])


def styled(theorem, proved_style, other_style):
    """A search whose proved states are printed in one style, and the others in another."""
    rows = [row(theorem, 0, proved_style.format(0))]
    rows += [row(theorem, 1, proved_style.format(1), 0), row(theorem, 2, "", 1, finished=True)]
    rows += [row(theorem, n, other_style.format(n), 0) for n in (3, 4)]
    return rows


@pytest.mark.parametrize(("other", "warns"), [("a{} b : T\n⊢ g", False), ("a{} : T\n  ⊢ g", True)])
def test_labels_that_the_print_style_gives_away_are_found(other, warns, tmp_path):
    rows = [r for n in range(30) for r in styled(f"t{n}", "a{} b : T\n⊢ g", other)]
    for number, one in enumerate(rows):  # distinct states of one length
        one["state_pp"] = one["state_pp"] and f"h{number:03} : N\n{one['state_pp']}"
    path = write_rows(tmp_path / "t.parquet", rows)
    (probe,) = probe_format(read_corpus([str(path)]), 0)
    assert probe.warns == warns, probe


def test_files_that_print_differently_are_found(tmp_path):
    one = [r for n in range(20) for r in styled(f"t{n}", "a{} b : T\n⊢ g", "a{} b : T\n⊢ g")]
    other = [r for n in range(20) for r in styled(f"u{n}", "a{} : T\n⊢ g", "a{} : T\n⊢ g")]
    for name, rows in (("one", one), ("other", other)):
        for number, each in enumerate(rows):
            each["state_pp"] = each["state_pp"] and f"h{number:03} : {name}\n{each['state_pp']}"
        write_rows(tmp_path / f"{name}.parquet", rows)
    files = [str(tmp_path / f"{name}.parquet") for name in ("one", "other")]
    probes = probe_format(read_corpus(files), 0)
    assert [probe.what.split()[-4:] for probe in probes if probe.warns] == [
        ["and", "the", "other", "files"]
    ] * 2


def test_the_end_of_a_proof_is_no_state():
    graphs, _ = merge(read_trajectories([str(SEARCHES)]))
    assert all("" not in graph.states for graph in graphs)
    assert any(e.child == FINISHED for graph in graphs for edges in graph.children for e in edges)


def test_a_corpus_numbers_its_states_through(tmp_path):
    files = read_trajectories([str(write_rows(tmp_path / "t.parquet", searches(3)))])
    corpus = make_corpus(files)
    assert corpus.first[-1] == len(corpus.texts)
    for theorem, graph in enumerate(corpus.graphs):
        assert corpus.texts[corpus.numbers(theorem)] == graph.states


def expansions(path, **changes):
    table = {"theorem_name": ["t", "t"], "state_id": [0, 1], "expanded": [True, False]} | changes
    pq.write_table(pa.table(table), path)
    return [str(path)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"theorem_name": ["u", "u"]}, "speaks of no state"),
        ({"state_id": [1, 1]}, "speaks twice of state 1"),
        ({"expanded": ["true", "false"]}, "is string, expected bool"),
    ],
)
def test_expansions_that_are_not_of_these_searches_are_refused(changes, reason, tmp_path):
    rows = [row("t", 0, "a"), row("t", 1, "b", 0), row("t", 2, "", 1, finished=True),
            row("t", 3, "c", 0)]  # fmt: skip
    files = [str(write_rows(tmp_path / "t.parquet", rows))]
    with pytest.raises(InputError, match=reason):
        read_corpus(files, "graph", expansions(tmp_path / "e.parquet", **changes))


def test_expansions_of_one_file_are_not_taken_for_another(tmp_path):
    one = [row("t", 0, "a"), row("t", 1, "", 0, finished=True), row("t", 2, "x", 0)]
    other = [row("t", 0, "b"), row("t", 1, "", 0, finished=True)]
    files = [
        str(write_rows(tmp_path / f"{n}.parquet", rows)) for n, rows in (("1", one), ("2", other))
    ]
    with pytest.raises(InputError, match="stands for several states"):
        read_corpus(files, "graph", expansions(tmp_path / "e.parquet", state_id=[0, 2]))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"llm_log_prob": None}, "llm_log_prob is null in 1 of"),
        ({"llm_log_prob": float("nan")}, "row 3: llm_log_prob is nan"),
        ({"llm_log_prob": float("-inf")}, "row 3: llm_log_prob is -inf"),
        ({"theorem_name": None}, "row 3: theorem_name is null"),
        ({"state_id": None}, "row 3: state_id is null"),
    ],
)
def test_a_row_that_says_nothing_clear_is_refused(changes, reason, tmp_path):
    rows = searches(2)
    rows[3] |= changes
    with pytest.raises(InputError, match=reason):
        read_trajectories([str(write_rows(tmp_path / "t.parquet", rows))])


def test_searches_without_log_probabilities_have_no_policy(tmp_path):
    rows = [one | {"llm_log_prob": None} for one in searches(4)]
    corpus = read_corpus([str(write_rows(tmp_path / "t.parquet", rows))])
    assert not corpus.has_policy


@pytest.mark.parametrize("number", ["1.5", "true", str(2**70), str(2**64 - 1)])
def test_a_number_that_is_no_state_is_reported(number, tmp_path):
    path = tmp_path / "t.jsonl"
    text = '{"theorem_name": "t", "state_id": NUMBER, "state_pp": "a", "parent_state_id": null}'
    path.write_text(text.replace("NUMBER", number) + "\n")
    with pytest.raises(InputError, match="line 1"):
        read_trajectories([str(path)])


def test_half_of_a_surrogate_pair_is_reported(tmp_path):
    path = tmp_path / "t.jsonl"
    text = r'{"theorem_name": "t", "state_id": 1, "state_pp": "\ud800", "parent_state_id": null}'
    path.write_text(text + "\n")
    with pytest.raises(InputError, match="line 1"):
        read_trajectories([str(path)])


def test_one_file_for_each_theorem_can_be_probed(tmp_path):
    for number in range(6):
        rows = [one for one in searches(6) if one["theorem_name"] == f"t{number}"]
        write_rows(tmp_path / f"{number}.parquet", rows)
    probes = probe_format(read_corpus([str(tmp_path)]), 0)
    assert [probe.what for probe in probes] == ["proved and other states"]


def test_a_search_starts_where_a_proof_was_found(tmp_path):
    rows = [row("t", 0, "a"), row("t", 1, "b", 0), row("t", 5, "c"),
            row("t", 6, "", 5, finished=True)]  # fmt: skip
    corpus = read_corpus([str(write_rows(tmp_path / "t.parquet", rows))])
    (graph,) = corpus.graphs
    assert graph.states[graph.roots[0]] == "c"
