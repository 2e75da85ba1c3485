"""Ranking siblings and replaying searches, against enumeration and figures of other code."""

import heapq
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebm_encode.heads.corpus import read_corpus
from ebm_encode.heads.graph import FINISHED
from ebm_encode.heads.intervals import mean_interval
from ebm_encode.heads.mixing import choose_mixing, scale_of
from ebm_encode.heads.replay import Ranking, replay
from ebm_encode.heads.rules import fewest_goals, shortest_text
from ebm_encode.heads.siblings import SiblingSets, rank_siblings, sibling_sets
from recorded_searches import row, searches, write_rows
from support import ROOT

SEARCHES = ROOT / "searches" / "lean_core.parquet"


@pytest.fixture(scope="module")
def corpus():
    return read_corpus([str(SEARCHES)])


def one_set(scores, targets):
    count = len(scores)
    return SiblingSets(
        np.arange(count)[None],
        np.array([targets]),
        np.zeros(1, np.int64),
        np.zeros(1, np.int64),
        np.zeros((1, count)),
        np.zeros(1),
    )


@given(
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=2, max_size=6).filter(
        lambda children: len({target for _, target in children}) == 2
    )
)
def test_ties_count_as_the_mean_over_all_orders(children):
    scores = np.array([float(score) for score, _ in children])
    targets = [target for _, target in children]
    sets = one_set(scores, targets)
    found = rank_siblings(sets, sets.look_up(scores))
    places, firsts, wins = [], [], []
    for order in permutations(range(len(children))):
        ranked = sorted(order, key=lambda n: -scores[n])  # stable: ties stay in this order
        first = next(place for place, n in enumerate(ranked, 1) if targets[n])
        places.append(1 / first)
        firsts.append(first == 1)
        where = {n: place for place, n in enumerate(ranked)}
        pairs = [(t, o) for t in where for o in where if targets[t] and not targets[o]]
        wins.append(np.mean([where[t] < where[o] for t, o in pairs]))
    assert found["mrr"][0] == pytest.approx(np.mean(places))
    assert found["rank1"][0] == pytest.approx(np.mean(firsts))
    assert found["pairwise"][0] == pytest.approx(np.mean(wins))


def test_a_score_that_is_not_a_number_is_no_rank():
    sets = one_set([0.0, 1.0], [True, False])
    with pytest.raises(ValueError, match="not a number"):
        rank_siblings(sets, sets.look_up(np.array([np.nan, 1.0])))


def test_higher_scores_stand_first(corpus):
    """The sign: what is nearer to the proof has the higher score, and the oracle is never wrong."""
    sets = sibling_sets(corpus, range(len(corpus.graphs)), "nearest")
    distance = np.concatenate([label.distance for label in corpus.labels]).astype(float)
    right = rank_siblings(sets, sets.look_up(-distance))
    wrong = rank_siblings(sets, sets.look_up(distance))
    assert (right["rank1"] == 1).all()
    assert (right["pairwise"] == 1).all()
    assert (wrong["rank1"] == 0).all()


def test_sets_hold_targets_and_others_and_never_a_finished_proof(corpus):
    for question in ("provable", "nearest"):
        sets = sibling_sets(corpus, range(len(corpus.graphs)), question)
        there = sets.members >= 0
        assert len(sets) > 500
        assert (sets.targets.any(axis=1) & (there & ~sets.targets).any(axis=1)).all()
        proved = np.concatenate([label.proved for label in corpus.labels])
        asked = proved[sets.members[there]]
        assert asked.all() if question == "nearest" else not asked.all()


def plain_replay(graph, priority):
    """Best-first search in a few lines, over texts."""
    texts = graph.states
    known, frontier, count = {texts[graph.roots[0]]}, [(0.0, 0, graph.roots[0])], 0
    while frontier:
        _, _, state = heapq.heappop(frontier)
        count += 1
        for edge in graph.children[state]:
            if edge.child == FINISHED:
                return count
            if texts[edge.child] not in known:
                known.add(texts[edge.child])
                heapq.heappush(frontier, (-priority(edge.child), len(known), edge.child))
    return None


@pytest.mark.parametrize("rule", [shortest_text, fewest_goals])
def test_replay_is_plain_best_first_search(rule, corpus):
    for graph in corpus.graphs[:60]:
        scores = rule(graph.states)
        done = replay(graph, Ranking(scores))
        expected = plain_replay(graph, lambda n, scores=scores: scores[n])
        assert (done and done.expansions) == expected


def test_the_policy_is_cumulative_and_divided_by_the_depth():
    ranking = Ranking(weight=0.0, exponent=0.5)
    assert ranking.priority(0, -4.0, 4) == -2.0
    assert Ranking(weight=0.0, exponent=0.0).priority(0, -4.0, 4) == -4.0
    assert Ranking(weight=0.0, exponent=1.0).priority(0, -4.0, 4) == -1.0


def test_values_and_policy_are_mixed_on_one_scale():
    ranking = Ranking(np.array([10.0]), 0.25, 0.5, (6.0, 2.0), (-1.0, 0.5))
    assert ranking.priority(0, -2.0, 1) == 0.25 * (10 - 6) / 2 + 0.75 * (-2 + 1) / 0.5


def test_a_state_without_a_value_goes_by_the_policy_alone():
    ranking = Ranking(np.array([np.nan]), 0.9, 0.5, (6.0, 2.0), (-1.0, 0.5))
    assert ranking.priority(0, -2.0, 1) == (-2 + 1) / 0.5


def test_a_finished_proof_ends_the_search_at_once(tmp_path):
    rows = [row("t", 0, "a"), row("t", 1, "b", 0), row("t", 2, "", 0, finished=True),
            row("t", 3, "c", 1)]  # fmt: skip
    corpus = read_corpus([str(write_rows(tmp_path / "t.parquet", rows))])
    done = replay(corpus.graphs[0], Ranking(np.array([0.0, 100.0, 100.0])))
    assert (done.expansions, done.never_expanded) == (1, 0)


def test_expansions_that_the_record_never_made_are_counted(tmp_path):
    rows = [row("t", 0, "a"), row("t", 1, "b", 0), row("t", 2, "c", 0),
            row("t", 3, "", 2, finished=True)]  # fmt: skip
    corpus = read_corpus([str(write_rows(tmp_path / "t.parquet", rows))])
    done = replay(corpus.graphs[0], Ranking())
    assert (done.expansions, done.never_expanded) == (3, 1)


def test_the_mixture_is_chosen_by_expansions(tmp_path):
    """Where values lead to the proof and the policy away from it, all weight goes to the value."""
    rows = searches(8)
    for one in rows:
        one["llm_log_prob"] = -5.0 if "spine" in one["state_pp"] else -0.1
    corpus = read_corpus([str(write_rows(tmp_path / "t.parquet", rows))])
    values = np.concatenate([np.where(label.proved, 1.0, 0.0) for label in corpus.labels])
    mixing, tried = choose_mixing(corpus, range(8), values, scale_of(values))
    assert mixing.weight >= 0.5
    needed = {
        one["weight"]: one["mean_expansions"] for one in tried if one["depth_exponent"] == 0.5
    }
    assert needed[mixing.weight] == 6 < needed[0.0], "the proofs have six steps"
    _, tried = choose_mixing(corpus, range(8), -values, scale_of(-values))
    turned = {t["weight"]: t["mean_expansions"] for t in tried if t["depth_exponent"] == 0.5}
    assert turned[1.0] > needed[1.0], "with the sign turned, the value leads away from the proof"


def test_intervals_are_over_theorems():
    """Many states of few theorems make no narrow interval."""
    random = np.random.default_rng(0)
    theorem = np.repeat(np.arange(8), 100)
    values = np.repeat(random.random(8), 100)
    mean, (low, high) = mean_interval(values, theorem, 0)
    assert low < mean < high
    assert mean == pytest.approx(values.mean())
    by_state = 2 * 1.96 * values.std() / np.sqrt(len(values))
    assert high - low > 5 * by_state
    assert mean_interval(values, theorem, 0)[1] == (low, high), "seeded"


def test_an_interval_needs_two_theorems():
    assert mean_interval(np.ones(4), np.zeros(4, np.int64), 0) == (1.0, None)
    assert mean_interval(np.array([np.nan]), np.zeros(1, np.int64), 0) == (None, None)
