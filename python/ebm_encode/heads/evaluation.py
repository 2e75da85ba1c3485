"""`evaluate_head`: what a head is worth, beside everything that needs no head."""

import io
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebm_encode._core import EmbeddingCache, EnergyHead, MappedCache, read_file
from ebm_encode.digests import digest_stream
from ebm_encode.heads.comparisons import ZEROED
from ebm_encode.heads.corpus import Corpus, read_corpus
from ebm_encode.heads.intervals import mean_interval
from ebm_encode.heads.judged import EvaluationOptions, Judged, judge, recipe_of, training_material
from ebm_encode.heads.rankers import Told, all_rankers
from ebm_encode.heads.ranking import (
    Ranker,
    ReplayedTheorems,
    replay_report,
    replay_theorems,
    sibling_report,
    sibling_values,
    tree_report,
)
from ebm_encode.heads.siblings import QUESTIONS
from ebm_encode.state_formats import format_of

__all__ = ["EvaluationOptions", "evaluate_head"]

_NO_ENERGY = ("oracle", "mixture")  # their scores are no energies that could be compared


def evaluate_head(
    head: EnergyHead,
    cache: EmbeddingCache | MappedCache,
    trajectories: list[str],
    options: EvaluationOptions | None = None,
    *,
    on_epoch: Told | None = None,
    on_step: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Evaluates a head on recorded searches.

    Of files that the head was trained on, only its test theorems count; of others all solved ones.
    States that stand in a training theorem are excluded from the sibling sets, and counted.

    Args:
        head: The head.
        cache: Embeddings of the trajectories' states, of the head's encoder.
        trajectories: Files of searches, folders of them, or glob patterns.
        options: What to compare with.
        on_epoch: Told of each epoch of a comparison head.
        on_step: Told what begins.

    Returns:
        The report; `docs/heads.md` has its keys. JSON values only.

    Raises:
        IdentityMismatchError: If head and embeddings are of different encoders.
        InputError: If there is no theorem to evaluate on, or the cache lacks too many states.
    """
    options = options or EvaluationOptions()
    tell = on_step or (lambda _: None)
    head.require_identity(cache.identity, f"the cache {cache.path}")
    recipe = recipe_of(head)
    tell("reading the trajectories")
    form = format_of(cache.identity)
    corpus = read_corpus(
        trajectories,
        "graph",
        options.expansions,
        state_format=form,
        states_in=options.states_in,
    )
    training, why_not = training_material(head, corpus, recipe, options)
    judged = judge(head, corpus, cache, recipe, training)
    rankers, unavailable = all_rankers(
        head, cache, judged, training, why_not, recipe, options, tell, on_epoch
    )
    tell("ranking siblings and replaying searches")
    return {
        "head": _described(head),
        "counts": judged.counts,
        "unavailable": unavailable,
        **_measured(rankers, judged, options.seed),
    }


def _measured(rankers: Sequence[Ranker], judged: Judged, seed: int) -> dict[str, Any]:
    corpus = judged.corpus
    siblings = {
        question: {ranker.name: sibling_report(ranker, sets, seed) for ranker in rankers}
        for question, sets in judged.sets.items()
        if len(sets)
    }
    replayed = {ranker.name: replay_theorems(ranker, corpus, judged.theorems) for ranker in rankers}
    trees = {
        ranker.name: tree_report(ranker, corpus, judged.theorems, judged.fresh, seed)
        for ranker in rankers
        if ranker.scores and not ranker.name.startswith(_NO_ENERGY)
    }
    return {
        "siblings": siblings,
        "trees": trees,
        "replay": {
            name: replay_report(done, _root_distance(corpus, done), seed)
            for name, done in replayed.items()
        },
        "differences": _differences(rankers, judged, replayed, seed),
    }


def _root_distance(corpus: Corpus, done: ReplayedTheorems) -> NDArray[np.int64]:
    return np.array(
        [corpus.labels[n].distance[corpus.graphs[n].roots[0]] for n in done.theorems], np.int64
    )


_AGAINST_HEAD = (
    "chance", "policy", "shortest_text", "fewest_goals", "format_flags", "token_counts", "linear",
    "random_encoder",
)  # fmt: skip
_AGAINST_MIXTURE = ("breadth_first", "policy", "shortest_text", "fewest_goals", "head")


def _differences(
    rankers: Sequence[Ranker],
    judged: Judged,
    replayed: dict[str, ReplayedTheorems],
    seed: int,
) -> list[dict[str, Any]]:
    """Paired differences with intervals over theorems: what a comparison rests on."""
    by_name = {ranker.name: ranker for ranker in rankers}
    pairs = [("head", other) for other in _AGAINST_HEAD] + [("retrained", "zeroed")]
    found = []
    for question in QUESTIONS:
        sets = judged.sets[question]
        for one, other in pairs:
            if one in by_name and other in by_name and len(sets):
                values = [sibling_values(by_name[n], sets)["rank1"] for n in (one, other)]
                mean, interval = mean_interval(values[0] - values[1], sets.theorem, seed)
                found.append(_difference(f"siblings.{question}.rank1", one, other, mean, interval))
    for one, others in (("mixture", _AGAINST_MIXTURE), ("head", ("policy", "shortest_text"))):
        for other in others:
            if one not in replayed or other not in replayed:
                continue
            a, b = replayed[one], replayed[other]
            mean, interval = mean_interval(a.expansions - b.expansions, a.theorems, seed)
            found.append(_difference("replay.mean_expansions", one, other, mean, interval))
    return found


def _difference(
    what: str, one: str, other: str, mean: float | None, interval: tuple[float, float] | None
) -> dict[str, Any]:
    return {"metric": what, "of": one, "minus": other, "mean": mean, "interval": interval}


def _described(head: EnergyHead) -> dict[str, Any]:
    metadata = head.metadata
    return {
        "path": os.fspath(head.path),
        "digest": digest_stream(io.BytesIO(read_file(head.path) or b"")),
        "dims": head.dims,
        "members": head.members,
        "sign": metadata["sign"],
        "mixing": head.mixing,
        "zeroed_share": ZEROED,
    }
