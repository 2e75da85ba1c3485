"""`evaluate_head`: what a head is worth, beside everything that needs no head."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ebm_encode._core import EmbeddingCache, EnergyHead, MappedCache
from ebm_encode.digests import digest_file
from ebm_encode.errors import ArgumentError, EbmEncodeError, InputError
from ebm_encode.heads.comparisons import (
    ZEROED,
    Comparison,
    ComparisonHeads,
    scores_of,
    zeroed_mask,
)
from ebm_encode.heads.corpus import Corpus, read_corpus
from ebm_encode.heads.intervals import mean_interval
from ebm_encode.heads.labels import NO_DISTANCE
from ebm_encode.heads.mixing import Mixing, policy_scale
from ebm_encode.heads.options import DEFAULT_EXPONENT, MIXTURE_WEIGHTS, HeadOptions
from ebm_encode.heads.random_encoder import (
    encode_texts,
    is_small,
    make_random_model,
    model_path_of,
)
from ebm_encode.heads.ranking import (
    Ranker,
    ReplayedTheorems,
    breadth_first,
    replay_report,
    replay_theorems,
    sibling_report,
    sibling_values,
    tree_report,
)
from ebm_encode.heads.rows import MatrixRows, Rows, ZeroedRows
from ebm_encode.heads.rules import RULES, format_flags, token_matrix
from ebm_encode.heads.siblings import QUESTIONS, SiblingSets, sibling_sets
from ebm_encode.heads.split import states_of
from ebm_encode.heads.trainer import Material, cache_rows, in_cache, prepare
from ebm_encode.opening import open_cache

log = logging.getLogger(__name__)

Told = Callable[[str, dict[str, float]], None]

_CHANCES = 10  # random orders whose replays are averaged
_NOT_PROVED = -1e9  # the oracle's score; any number below all distances
_AT_ONCE = 8192
_NO_ENERGY = ("oracle", "mixture")  # their scores are no energies that could be compared


@dataclass(frozen=True)
class EvaluationOptions:
    """How a head is evaluated.

    Attributes:
        expansions: Files that say which states the record expanded.
        comparisons: Whether to train the heads that stand beside: `linear`, `token_counts`,
            `zeroed` and `random_encoder`.
        seeds: Seeds of each of them.
        train_trajectories: Where the files are now that the head was trained on; by default where
            they were.
        train_cache: The cache that it was trained on; by default where it was.
        model_path: The model of the cache, of which `random_encoder` is a copy with random
            weights; by default the one in the cache's provenance, if it is small.
        random_cache: Embeddings of a random copy that were made before, of all these states.
        work: Folder for what takes long to make again; by default `HEAD.comparisons`.
        seed: Of intervals and random orders.
        figure: Picture of the result.
    """

    expansions: list[str] | None = None
    comparisons: bool = True
    seeds: int = 3
    train_trajectories: list[str] | None = None
    train_cache: str | None = None
    model_path: str | None = None
    random_cache: str | None = None
    work: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ArgumentError(f"`seeds` {self.seeds}: expected at least 1")


@dataclass
class _Judged:
    """The evaluated corpus."""

    corpus: Corpus
    theorems: list[int]
    usable: NDArray[np.bool_]
    fresh: NDArray[np.bool_]
    rows: Rows
    sets: dict[str, SiblingSets]
    counts: dict[str, int] = field(default_factory=dict)


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
    States that stand in a training theorem are left out of the sibling sets, and counted.

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
    recipe = HeadOptions.from_dict(head.metadata["training"]["options"])
    tell("reading the trajectories")
    corpus = read_corpus(trajectories, "graph", options.expansions)
    training, why_not = _training_material(head, corpus, recipe, options)
    judged = _judge(head, corpus, cache, recipe, training)
    rankers, unavailable = _rankers(
        head, cache, judged, training, why_not, recipe, options, tell, on_epoch
    )
    tell("ranking siblings and replaying searches")
    return {
        "head": _described(head),
        "counts": judged.counts,
        "unavailable": unavailable,
        **_measured(rankers, judged, options.seed),
    }


def _training_material(
    head: EnergyHead, corpus: Corpus, recipe: HeadOptions, options: EvaluationOptions
) -> tuple[tuple[Material, EmbeddingCache | MappedCache] | None, str]:
    """The head's training corpus and cache, and why they are not to be had."""
    data = head.metadata["data"]
    names = options.train_trajectories or [str(file["name"]) for file in data["trajectories"]]
    wanted = {file["digest"] for file in data["trajectories"]}
    try:
        same = {file["digest"] for file in corpus.files} == wanted
        found = corpus if same and recipe.labels == "graph" else read_corpus(names, recipe.labels)
        digests = {file["digest"] for file in found.files}
        if digests != wanted:
            raise InputError(f"{', '.join(names)}: are not the files that the head was trained on")
        cache = open_cache(options.train_cache or data["cache"])
        head.require_identity(cache.identity, f"the cache {cache.path}")
        material = prepare(found, in_cache(found, cache), recipe)
    except EbmEncodeError as error:
        if options.train_trajectories or options.train_cache:
            raise
        return None, str(error).splitlines()[0]
    return (material, cache), ""


def _judge(
    head: EnergyHead,
    corpus: Corpus,
    cache: EmbeddingCache | MappedCache,
    recipe: HeadOptions,
    training: tuple[Material, Any] | None,
) -> _Judged:
    usable = in_cache(corpus, cache)
    missing = int((~usable).sum())
    if missing > recipe.max_missing * len(usable) or not usable.any():
        example = corpus.texts[int(np.flatnonzero(~usable)[0])]
        raise InputError(
            f"{cache.path}: lacks {missing:,} of {len(usable):,} states, such as {example[:60]!r}\n"
            "hint: encode the same trajectories first"
        )
    theorems, own = _theorems(head, corpus)
    seen = (
        states_of(training[0].corpus.graphs, training[0].split.train) if training else frozenset()
    )
    fresh = np.array([text not in seen for text in corpus.texts], bool)
    roots = {n: int(corpus.first[n]) + corpus.graphs[n].roots[0] for n in theorems}
    kept = [n for n in theorems if fresh[roots[n]]]
    if not kept:
        raise InputError(
            "there is no theorem to evaluate on: all solved theorems of these trajectories stand in"
            " the training data\nhint: evaluate on other files, or on all files of the training,"
            " whose test theorems were kept aside"
        )
    asked = (*QUESTIONS, "decided") if any(g.provable for g in corpus.graphs) else QUESTIONS
    sets: dict[str, SiblingSets] = {q: sibling_sets(corpus, kept, q, usable & fresh) for q in asked}
    numbers = corpus.of(kept)
    counts = {
        "theorems": len(kept),
        "of_training_files": own,
        "theorems_in_train": len(theorems) - len(kept),
        "unsolved": sum(not label.solved for label in corpus.labels),
        "states": len(numbers),
        "states_in_train": int((~fresh[numbers]).sum()),
        "train_states_known": int(training is not None),
        "missing": missing,
        **{f"sets_{question}": len(found) for question, found in sets.items()},
    }
    return _Judged(corpus, kept, usable, fresh, cache_rows(corpus, cache, usable), sets, counts)


def _theorems(head: EnergyHead, corpus: Corpus) -> tuple[list[int], int]:
    """Theorems to evaluate on: solved, with a root; and how many are of the training's files."""
    trained = {file["digest"] for file in head.metadata["data"]["trajectories"]}
    own = {n for n, file in enumerate(corpus.files) if file["digest"] in trained}
    test = {*head.metadata["training"]["split"]["test"]}
    found, of_training = [], 0
    for number, (graph, label) in enumerate(zip(corpus.graphs, corpus.labels, strict=True)):
        if not label.solved or not graph.roots:
            continue
        inside = bool(graph.sources[graph.roots[0]] & own)
        if inside and graph.theorem not in test:
            continue
        found.append(number)
        of_training += inside
    return found, of_training


def _rankers(  # noqa: PLR0917
    head: EnergyHead,
    cache: EmbeddingCache | MappedCache,
    judged: _Judged,
    training: tuple[Material, EmbeddingCache | MappedCache] | None,
    why_not: str,
    recipe: HeadOptions,
    options: EvaluationOptions,
    tell: Callable[[str], None],
    on_epoch: Told | None,
) -> tuple[list[Ranker], dict[str, str]]:
    rankers = _plain_rankers(judged, options.seed)
    scores = _head_scores(head, judged)
    mixing = _mixing(head, judged)
    scales: dict[str, Any] = {
        "exponent": mixing.exponent,
        "score_scale": head.score_scale,
        "policy_scale": mixing.policy_scale,
    }
    rankers += [
        Ranker("head", [scores]),
        Ranker("mixture", [scores], weight=mixing.weight, **scales),
        *(
            Ranker(f"mixture_{weight:g}", [scores], weight=weight, **scales)
            for weight in MIXTURE_WEIGHTS
            if 0 < weight < 1
        ),
    ]
    names = ("format_flags", "linear", "token_counts", "zeroed", "random_encoder")
    if not options.comparisons:
        return rankers, dict.fromkeys(names, "not asked for")
    if training is None:
        return rankers, dict.fromkeys(names, why_not)
    beside = _Beside(head, judged, training, recipe, options, on_epoch)
    rankers.append(beside.format_flags())
    tell("training comparison heads")
    rankers += beside.heads()
    tell("encoding with random weights")
    random, reason = beside.random_encoder(cache)
    return [*rankers, *random], {} if random else {"random_encoder": reason}


def _mixing(head: EnergyHead, judged: _Judged) -> Mixing:
    """The head's own mixture; one of other software may have none, and gets equal halves."""
    if head.mixing is None:
        scale = policy_scale(judged.corpus, judged.theorems, DEFAULT_EXPONENT)
        return Mixing(0.5, DEFAULT_EXPONENT, scale)
    policy = head.mixing["policy"]
    scale = policy["mean"], policy["deviation"]
    return Mixing(head.mixing["weight"], policy["depth_exponent"], scale)


def _plain_rankers(judged: _Judged, seed: int) -> list[Ranker]:
    """Those that need no training."""
    corpus, texts = judged.corpus, judged.corpus.texts
    random = np.random.default_rng([seed, 6])
    distance = np.concatenate([label.distance for label in corpus.labels]).astype(np.float64)
    oracle = np.where(distance == NO_DISTANCE, _NOT_PROVED, -distance)
    policies = (("policy", 0.5), ("policy_cumulative", 0.0), ("policy_per_step", 1.0))
    return [
        Ranker("chance", [random.random(len(texts)) for _ in range(_CHANCES)]),
        breadth_first(),
        *(
            Ranker(
                name,
                weight=0.0,
                exponent=exponent,
                policy_scale=policy_scale(corpus, judged.theorems, exponent),
            )
            for name, exponent in policies
        ),
        *(Ranker(name, [rule(texts)]) for name, rule in RULES.items()),
        Ranker("oracle", [oracle]),
    ]


def _head_scores(head: EnergyHead, judged: _Judged) -> NDArray[np.float64]:
    numbers = np.flatnonzero(judged.usable)
    scores = np.full(len(judged.usable), np.nan)
    for start in range(0, len(numbers), _AT_ONCE):
        some = numbers[start : start + _AT_ONCE]
        scores[some] = head.scores(judged.rows.take(some).numpy())
    return scores


class _Beside:
    """Rankers that are trained on the head's own training theorems."""

    def __init__(  # noqa: PLR0917
        self,
        head: EnergyHead,
        judged: _Judged,
        training: tuple[Material, EmbeddingCache | MappedCache],
        recipe: HeadOptions,
        options: EvaluationOptions,
        on_epoch: Told | None,
    ) -> None:
        self._judged, self._options, self._identity = judged, options, head.identity
        self._material, cache = training
        self._rows = cache_rows(self._material.corpus, cache, self._material.usable)
        self._architecture = head.metadata["training"]["architecture"]
        work = Path(options.work or f"{head.path}.comparisons")
        self._folder = work / head.identity.digest[:16]
        self._heads = ComparisonHeads(
            self._material,
            recipe,
            head.identity.to_json(),
            seeds=range(recipe.seed, recipe.seed + options.seeds),
            folder=self._folder,
            on_epoch=on_epoch,
        )

    def format_flags(self) -> Ranker:
        """A linear model of print style alone, trained to tell proved states from others."""
        corpus = self._material.corpus
        numbers = corpus.of(self._material.split.train)
        texts = corpus.texts
        proved = np.concatenate([label.proved for label in corpus.labels])[numbers]
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(format_flags([texts[n] for n in numbers]), proved)
        scores = model.decision_function(format_flags(self._judged.corpus.texts))
        return Ranker("format_flags", [np.asarray(scores, np.float64)])

    def heads(self) -> list[Ranker]:
        """Other layers, other inputs, and rows lost."""
        judged, clean = self._judged, self._rows
        counts = Comparison(
            "token_counts", "linear", MatrixRows(token_matrix(self._material.corpus.texts))
        )
        asked = MatrixRows(token_matrix(judged.corpus.texts))
        linear = self._heads.train(Comparison("linear", "linear", clean))
        same = Comparison("retrained", self._architecture, clean)
        retrained = linear if self._architecture == "linear" else self._heads.train(same)
        zeroed = self._heads.train(Comparison("zeroed", self._architecture, clean), zeroed=True)
        everything = np.ones(len(judged.usable), bool)
        lost = [
            scores_of(
                [trained],
                ZeroedRows(judged.rows, zeroed_mask(len(judged.usable), 1000 + seed)),
                judged.usable,
            )[0]
            for seed, trained in enumerate(zeroed)
        ]
        return [
            Ranker("token_counts", scores_of(self._heads.train(counts), asked, everything)),
            Ranker("linear", scores_of(linear, judged.rows, judged.usable)),
            Ranker("retrained", scores_of(retrained, judged.rows, judged.usable)),
            Ranker("zeroed", scores_of(zeroed, judged.rows, judged.usable)),
            Ranker("zeroed_and_scored_so", lost),
        ]

    def random_encoder(self, cache: EmbeddingCache | MappedCache) -> tuple[list[Ranker], str]:
        """The same head on embeddings of the model with random weights; or why there is none."""
        material, judged = self._material, self._judged
        texts = [*dict.fromkeys([*material.corpus.texts, *judged.corpus.texts])]
        path = self._options.random_cache
        if path is None:
            model = self._options.model_path or model_path_of(cache)
            if model is None:
                return [], "the cache does not say which model made it; pass `model_path`"
            if self._options.model_path is None and not is_small(model):
                return [], f"{model} is no small model on this machine; pass `model_path`"
            made = make_random_model(model, self._folder / "random-model", self._options.seed)
            path = str(self._folder / "random.parquet")
            encode_texts(str(made), self._identity, texts, Path(path))
        random = open_cache(path)
        usable = in_cache(material.corpus, random) & material.usable
        there = in_cache(judged.corpus, random) & judged.usable
        if usable.sum() < material.usable.sum() or there.sum() < judged.usable.sum():
            return [], f"{path} lacks states that the cache has"
        comparison = Comparison(
            "random_encoder", self._architecture, cache_rows(material.corpus, random, usable)
        )
        heads = self._heads.train(comparison)
        rows = cache_rows(judged.corpus, random, there)
        return [Ranker("random_encoder", scores_of(heads, rows, there))], ""


def _measured(rankers: Sequence[Ranker], judged: _Judged, seed: int) -> dict[str, Any]:
    corpus = judged.corpus
    siblings = {
        question: {ranker.name: sibling_report(ranker, sets, seed) for ranker in rankers}
        for question, sets in judged.sets.items()
        if len(sets)
    }
    replayed = {ranker.name: replay_theorems(ranker, corpus, judged.theorems) for ranker in rankers}
    trees = {
        ranker.name: tree_report(ranker, corpus, judged.theorems, seed)
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
    judged: _Judged,
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
        "digest": digest_file(Path(head.path)),
        "dims": head.dims,
        "members": head.members,
        "sign": metadata["sign"],
        "mixing": head.mixing,
        "zeroed_share": ZEROED,
    }
