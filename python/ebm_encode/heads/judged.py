"""What is evaluated: theorems that the head was not trained on, and their embeddings."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebm_encode._core import EmbeddingCache, EnergyHead, MappedCache
from ebm_encode.errors import (
    ArgumentError,
    EbmEncodeError,
    HeadFormatError,
    InputError,
    one_line,
)
from ebm_encode.heads.corpus import Corpus, read_corpus
from ebm_encode.heads.material import Material, cache_rows, in_cache, prepare
from ebm_encode.heads.options import HeadOptions
from ebm_encode.heads.rows import Rows
from ebm_encode.heads.siblings import QUESTIONS, SiblingSets, sibling_sets
from ebm_encode.heads.split import states_of
from ebm_encode.heads.trainer import root_digest
from ebm_encode.opening import open_cache
from ebm_encode.state_formats import format_of

Training = tuple[Material, EmbeddingCache | MappedCache]
"""A head's training corpus, and the cache of its embeddings."""


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
        states_in: The printed form that the states are in, if the head is of an encoder with a
            state format: they are converted to that. By default what the texts show.
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
    states_in: str | None = None

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ArgumentError(f"`seeds` {self.seeds}: expected at least 1")


@dataclass
class Judged:
    """The evaluated corpus."""

    corpus: Corpus
    theorems: list[int]
    usable: NDArray[np.bool_]
    fresh: NDArray[np.bool_]
    rows: Rows
    sets: dict[str, SiblingSets]
    counts: dict[str, int] = field(default_factory=dict)


def training_material(
    head: EnergyHead, corpus: Corpus, recipe: HeadOptions, options: EvaluationOptions
) -> tuple[Training | None, str]:
    """The head's training corpus and cache; or none, and why they are unavailable."""
    files = data_of(head)
    cached = options.train_cache or head.metadata.get("data", {}).get("cache")
    names = options.train_trajectories or [file["name"] for file in files]
    wanted = {file["digest"] for file in files}
    if not files or not isinstance(cached, str):
        return None, "the head does not say what it was trained on"
    try:
        same = {file["digest"] for file in corpus.files} == wanted
        found = (
            corpus
            if same and recipe.labels == "graph"
            else _read_again(head, names, recipe, options)
        )
        digests = {file["digest"] for file in found.files}
        if digests != wanted:
            raise InputError(f"{', '.join(names)}: are not the files that the head was trained on")
        cache = open_cache(cached)
        head.require_identity(cache.identity, f"the cache {cache.path}")
        material = prepare(found, in_cache(found, cache), recipe)
    except EbmEncodeError as error:
        if options.train_trajectories or options.train_cache:
            raise
        return None, str(error).splitlines()[0]
    return (material, cache), ""


def _read_again(
    head: EnergyHead, names: list[str], recipe: HeadOptions, options: EvaluationOptions
) -> Corpus:
    form = format_of(head.identity)
    return read_corpus(names, recipe.labels, state_format=form, states_in=options.states_in)


def judge(
    head: EnergyHead,
    corpus: Corpus,
    cache: EmbeddingCache | MappedCache,
    recipe: HeadOptions,
    training: Training | None,
) -> Judged:
    """Chooses the theorems to evaluate on.

    Raises:
        InputError: If the cache lacks too many of their states, or no theorem is left.
    """
    usable = in_cache(corpus, cache)
    missing = int((~usable).sum())
    if missing > recipe.max_missing * len(usable) or not usable.any():
        example = corpus.texts[int(np.flatnonzero(~usable)[0])]
        raise InputError(
            f"{cache.path}: lacks {missing:,} of {len(usable):,} states, such as {example[:60]!r}\n"
            "hint: encode the same trajectories first"
        )
    theorems, own = _theorems(head, corpus)
    seen = _seen(training)
    fresh = np.array([text not in seen for text in corpus.texts], bool)
    known = {*training_of(head).get("seen_roots", ())}
    kept = [
        n
        for n in theorems
        if fresh[int(corpus.first[n]) + corpus.graphs[n].roots[0]]
        and root_digest(corpus.graphs[n].states[corpus.graphs[n].roots[0]]) not in known
    ]
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
        "theorems_with_states_in_train": sum(
            not fresh[corpus.numbers(theorem)].all() for theorem in kept
        ),
        "replayed": sum(bool(corpus.labels[n].proved[corpus.graphs[n].roots[0]]) for n in kept),
        "train_states_known": int(training is not None),
        "missing": missing,
        **{f"sets_{question}": len(found) for question, found in sets.items()},
    }
    return Judged(corpus, kept, usable, fresh, cache_rows(corpus, cache, usable), sets, counts)


def _seen(training: Training | None) -> frozenset[str]:
    """States of the theorems that a head was trained on or chosen by."""
    if training is None:
        return frozenset()
    split = training[0].split
    return states_of(training[0].corpus.graphs, (*split.train, *split.validation))


def _theorems(head: EnergyHead, corpus: Corpus) -> tuple[list[int], int]:
    """Theorems to evaluate on: solved, with a root; and how many are of the training's files."""
    trained = {file["digest"] for file in data_of(head)}
    own = {n for n, file in enumerate(corpus.files) if file["digest"] in trained}
    test = {*training_of(head).get("split", {}).get("test", ())}
    found, of_training = [], 0
    for number, (graph, label) in enumerate(zip(corpus.graphs, corpus.labels, strict=True)):
        if not label.solved or not graph.roots:
            continue
        inside = any(files & own for files in graph.sources)
        if inside and graph.theorem not in test:
            continue
        found.append(number)
        of_training += inside
    return found, of_training


def recipe_of(head: EnergyHead) -> HeadOptions:
    """The options that a head was trained with; the defaults if it does not say.

    Raises:
        HeadFormatError: If they have no meaning.
    """
    try:
        return HeadOptions.from_dict(training_of(head).get("options", {}))
    except (ArgumentError, TypeError, AttributeError) as error:
        raise HeadFormatError(f"{head.path}: training.options: {one_line(error)}") from error


def training_of(head: EnergyHead) -> dict[str, Any]:
    """What a head says of its training; empty if nothing, as a head of other software may.

    Raises:
        HeadFormatError: If it is not what `docs/heads.md` says.
    """
    training = head.metadata.get("training", {})
    split = training.get("split", {}) if isinstance(training, dict) else None
    if not isinstance(split, dict) or not isinstance(training.get("seen_roots", []), list):
        raise HeadFormatError(f"{head.path}: its metadata 'training' is not what train-head writes")
    if not all(isinstance(split.get(part, []), list) for part in ("train", "validation", "test")):
        raise HeadFormatError(f"{head.path}: its metadata 'training.split' has no lists")
    return dict(training)


def data_of(head: EnergyHead) -> list[dict[str, Any]]:
    """The trajectory files that a head was trained on, as far as it says.

    Raises:
        HeadFormatError: If that is no list of names and digests.
    """
    data = head.metadata.get("data", {})
    files = data.get("trajectories", []) if isinstance(data, dict) else None
    if not isinstance(files, list) or not all(
        isinstance(file, dict) and isinstance(file.get("name"), str) and "digest" in file
        for file in files
    ):
        raise HeadFormatError(f"{head.path}: its metadata 'data' is not what train-head writes")
    return files
