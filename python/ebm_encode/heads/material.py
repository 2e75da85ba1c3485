"""A corpus with its split and the embeddings of its states: what heads are trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebm_encode._core import EmbeddingCache, Identity, MappedCache
from ebm_encode.dataset import EmbeddingDataset
from ebm_encode.errors import IdentityMismatchError, InputError
from ebm_encode.heads.corpus import Corpus
from ebm_encode.heads.options import HeadOptions
from ebm_encode.heads.rows import CacheRows, Rows, digest_rows, moments
from ebm_encode.heads.siblings import QUESTIONS, SiblingSets, sibling_sets
from ebm_encode.heads.split import Split, split_theorems, states_of
from ebm_encode.heads.training import Lesson

_SHOWN = 5


@dataclass(frozen=True)
class Material:
    """A corpus with its split, and the rows of its states.

    Attributes:
        corpus: The theorems.
        split: Which of them train, choose and test.
        usable: Which numbers have a row, bool.
        fresh: Which numbers have a text that stands in no training theorem, bool.
        missing: Distinct texts without a row.
    """

    corpus: Corpus
    split: Split
    usable: NDArray[np.bool_]
    fresh: NDArray[np.bool_]
    missing: list[str]

    def sets(self, theorems: Sequence[int]) -> dict[str, SiblingSets]:
        """The sibling sets of some theorems whose states are fresh and have a row, by question."""
        usable = self.usable & self.fresh
        return {q: sibling_sets(self.corpus, theorems, q, usable) for q in QUESTIONS}


def require_encoder(cache: EmbeddingCache | MappedCache) -> Identity:
    """The encoder of a cache.

    Raises:
        IdentityMismatchError: If the cache does not say which encoder made it.
    """
    if cache.identity is None:
        raise IdentityMismatchError(
            f"{cache.path}: does not say which encoder made it, and a head belongs to one encoder\n"
            "hint: encode the states again with `ebm-encode encode`"
        )
    return cache.identity


def in_cache(corpus: Corpus, cache: EmbeddingCache | MappedCache) -> NDArray[np.bool_]:
    """Which numbers of a corpus have an embedding, bool."""
    return np.array([text in cache for text in corpus.texts], bool)


def cache_rows(
    corpus: Corpus, cache: EmbeddingCache | MappedCache, usable: NDArray[np.bool_]
) -> Rows:
    """The embeddings of a corpus by its numbers; only usable numbers may be asked for."""
    texts = corpus.texts
    # A number without an embedding stands for the first one that has one, and is never asked for.
    filler = texts[int(np.flatnonzero(usable)[0])]
    states = [text if there else filler for text, there in zip(texts, usable, strict=True)]
    return CacheRows(EmbeddingDataset(cache, states), cache.dim)


def prepare(corpus: Corpus, usable: NDArray[np.bool_], options: HeadOptions) -> Material:
    """Splits a corpus, and finds the states that stand in training theorems too.

    Raises:
        InputError: If there is too little data, or the cache lacks too many states.
    """
    texts = corpus.texts
    missing = [*dict.fromkeys(t for t, there in zip(texts, usable, strict=True) if not there)]
    share = len(missing) / len({*texts})
    if share > options.max_missing or not usable.any():
        shown = "; ".join(repr(state[:60]) for state in missing[:_SHOWN])
        raise InputError(
            f"the cache lacks {len(missing):,} of {len({*texts}):,} states ({share:.1%}), and"
            f" `max_missing` allows {options.max_missing:.1%}: {shown}"
            f"{', ...' if len(missing) > _SHOWN else ''}\n"
            "hint: encode the same trajectories first, or train on those that were encoded"
        )
    split = split_theorems(corpus.graphs, corpus.labels, options)
    seen = states_of(corpus.graphs, split.train)
    fresh = np.array([text not in seen for text in texts], bool)
    return Material(corpus, split, usable, fresh, missing)


def make_lesson(material: Material, rows: Rows) -> Lesson:
    """What heads are trained on.

    Raises:
        InputError: If there are no siblings to learn from, or to choose by.
    """
    corpus, split = material.corpus, material.split
    sets = material.sets(split.validation)
    training = sibling_sets(corpus, split.train, "provable", material.usable)
    if not len(training) or not any(map(len, sets.values())):
        where = "validation" if len(training) else "training"
        raise InputError(
            f"the {where} theorems have no parent with proved and other children: all labels are"
            " equal where it matters\nhint: record more searches, and go on after the first proof"
        )
    numbers = corpus.of(split.train)
    numbers = numbers[material.usable[numbers]]
    validation = corpus.of(split.validation)
    validation = validation[material.usable[validation]]
    return Lesson(
        corpus,
        rows,
        material.usable,
        split.train,
        validation,
        sets,
        moments(rows, numbers),
        digest_rows(rows, np.concatenate([numbers, validation])),
    )
