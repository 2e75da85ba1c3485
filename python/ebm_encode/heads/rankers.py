"""The rankers of an evaluation: rules, the head, and heads trained to stand beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ebm_encode._core import EmbeddingCache, EnergyHead, MappedCache
from ebm_encode.heads.comparisons import Comparison, ComparisonHeads, scores_of, zeroed_mask
from ebm_encode.heads.judged import EvaluationOptions, Judged, Training
from ebm_encode.heads.labels import NO_DISTANCE
from ebm_encode.heads.material import cache_rows, in_cache
from ebm_encode.heads.mixing import Mixing, policy_scale
from ebm_encode.heads.options import DEFAULT_EXPONENT, HIDDEN, MIXTURE_WEIGHTS, HeadOptions
from ebm_encode.heads.random_encoder import (
    encode_texts,
    is_small,
    make_random_model,
    model_path_of,
)
from ebm_encode.heads.ranking import Ranker, breadth_first
from ebm_encode.heads.rows import MatrixRows, ZeroedRows, chunks
from ebm_encode.heads.rules import RULES, format_flags, token_matrix
from ebm_encode.opening import open_cache

Told = Callable[[str, dict[str, float]], None]

_CHANCES = 10  # random orders whose replays are averaged
_NOT_PROVED = -1e9  # the oracle's score; any number below all distances


def all_rankers(  # noqa: PLR0917
    head: EnergyHead,
    cache: EmbeddingCache | MappedCache,
    judged: Judged,
    training: Training | None,
    why_not: str,
    recipe: HeadOptions,
    options: EvaluationOptions,
    tell: Callable[[str], None],
    on_epoch: Told | None,
) -> tuple[list[Ranker], dict[str, str]]:
    """All rankers, and the names of the unavailable ones with the reason.

    Args:
        head: The evaluated head.
        cache: The embeddings that it is evaluated on.
        judged: What it is evaluated on.
        training: What it was trained on.
        why_not: Why that is unavailable.
        recipe: The options of its training.
        options: What to compare with.
        tell: Told what begins.
        on_epoch: Told of each epoch of a comparison head.
    """
    rankers = _plain_rankers(judged, options.seed)
    scores = _head_scores(head, judged)
    mixing = _mixing(head, judged)
    scales: dict[str, Any] = {
        "exponent": mixing.exponent,
        "score_scale": head.score_scale,
        "policy_scale": mixing.policy_scale,
    }
    rankers.append(Ranker("head", [scores]))
    unavailable: dict[str, str] = {}
    if judged.corpus.has_policy:
        weights = {f"mixture_{weight:g}": weight for weight in MIXTURE_WEIGHTS if 0 < weight < 1}
        for name, weight in {"mixture": mixing.weight, **weights}.items():
            rankers.append(Ranker(name, [scores], weight=weight, **scales))
    else:
        unavailable = dict.fromkeys(("policy", "mixture"), "llm_log_prob is not recorded")
    names = ("format_flags", "linear", "token_counts", "zeroed", "random_encoder")
    if not options.comparisons:
        return rankers, unavailable | dict.fromkeys(names, "not asked for")
    if training is None:
        return rankers, unavailable | dict.fromkeys(names, why_not)
    beside = Beside(head, judged, training, recipe, options, on_epoch)
    rankers.append(beside.format_flags())
    tell("training comparison heads")
    rankers += beside.heads()
    tell("encoding with random weights")
    random, reason = beside.random_encoder(cache)
    if not random:
        unavailable["random_encoder"] = reason
    return [*rankers, *random], unavailable


def _mixing(head: EnergyHead, judged: Judged) -> Mixing:
    """The head's own mixture; one of other software may have none, and gets equal halves."""
    if head.mixing is None:
        scale = policy_scale(judged.corpus, judged.theorems, DEFAULT_EXPONENT)
        return Mixing(0.5, DEFAULT_EXPONENT, scale)
    policy = head.mixing["policy"]
    scale = policy["mean"], policy["deviation"]
    return Mixing(head.mixing["weight"], policy["depth_exponent"], scale)


def _plain_rankers(judged: Judged, seed: int) -> list[Ranker]:
    """Those that need no training."""
    corpus, texts = judged.corpus, judged.corpus.texts
    random = np.random.default_rng([seed, 6])
    distance = np.concatenate([label.distance for label in corpus.labels]).astype(np.float64)
    oracle = np.where(distance == NO_DISTANCE, _NOT_PROVED, -distance)
    exponents = {"policy": 0.5, "policy_cumulative": 0.0, "policy_per_step": 1.0}
    policies = exponents.items() if corpus.has_policy else ()
    return [
        Ranker("chance", [random.random(len(texts)) for _ in range(_CHANCES)], random=True),
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


def _head_scores(head: EnergyHead, judged: Judged) -> NDArray[np.float64]:
    numbers = np.flatnonzero(judged.usable)
    scores = np.full(len(judged.usable), np.nan)
    for some in chunks(numbers, judged.rows.dim):
        scores[some] = head.scores(judged.rows.take(some).numpy())
    return scores


def _architecture(head: EnergyHead) -> str:
    """The name of a head's layers."""
    hidden = tuple(head.dims[1:-1])
    return next((name for name, widths in HIDDEN.items() if widths == hidden), "mlp")


class Beside:
    """Rankers that are trained on the head's own training theorems."""

    def __init__(  # noqa: PLR0917
        self,
        head: EnergyHead,
        judged: Judged,
        training: Training,
        recipe: HeadOptions,
        options: EvaluationOptions,
        on_epoch: Told | None,
    ) -> None:
        self._judged, self._options, self._identity = judged, options, head.identity
        self._material, cache = training
        self._rows = cache_rows(self._material.corpus, cache, self._material.usable)
        self._architecture = _architecture(head)
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
        proved = corpus.proved[numbers]
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
            seed = self._options.seed
            made = make_random_model(model, self._folder / f"random-model-{seed}", seed)
            path = str(self._folder / f"random-{seed}.parquet")
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
