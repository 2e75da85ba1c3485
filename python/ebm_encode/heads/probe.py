"""Whether labels or sources can be told apart by print style alone.

On the origin's own probe of 200 positive and 200 negative states eight such flags reached an AUC of
0.878: positives were printed by one program, negatives by another. A head trained on that learns
the printer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ebm_encode.heads.corpus import Corpus
from ebm_encode.heads.rules import FORMAT_FLAGS, format_flags

LIMIT = 0.6
"""Above this AUC print style tells labels or sources apart, and training warns."""

_FOLDS = 5
_MOST = 20_000  # states: a linear probe of ten flags needs no more
_LEAST = 20


@dataclass(frozen=True)
class Probe:
    """How well a linear model of format flags tells two kinds of states apart.

    Attributes:
        what: What is told apart.
        auc: Area under the curve, cross-validated by theorem; 0.5 is chance.
        strongest: The flags with the largest weights.
    """

    what: str
    auc: float
    strongest: list[str]

    @property
    def warns(self) -> bool:
        """Whether the AUC is above the limit."""
        return self.auc > LIMIT


def probe_format(corpus: Corpus, seed: int) -> list[Probe]:
    """Probes the labels (proved or not, in solved theorems), and each file against the others.

    Args:
        corpus: The theorems.
        seed: Of the sample, where there are many states.
    """
    texts = corpus.texts
    theorem = np.repeat(np.arange(len(corpus.graphs)), np.diff(corpus.first))
    solved = np.concatenate([np.full(len(la.status), la.solved) for la in corpus.labels])
    questions = [("proved and other states", np.flatnonzero(solved), corpus.proved)]
    if len(corpus.files) > 1:
        everything = np.arange(len(texts))
        for number, file in enumerate(corpus.files):
            inside = corpus.in_file(number)
            questions.append((f"{file['name']} and the other files", everything, inside))
    random = np.random.default_rng([seed, 4])
    found = []
    for what, among, target in questions:
        chosen = among if len(among) <= _MOST else random.choice(among, _MOST, replace=False)
        probe = _probe(what, [texts[n] for n in chosen], target[chosen], theorem[chosen])
        if probe is not None:
            found.append(probe)
    return found


def _probe(
    what: str, texts: Sequence[str], target: NDArray[np.bool_], theorem: NDArray[np.int64]
) -> Probe | None:
    """A probe; `None` where there are too few states of a kind, or theorems, to tell."""
    # Each fold needs states of both kinds, so each kind needs as many theorems as there are folds.
    folds = min(_FOLDS, len(np.unique(theorem[target])), len(np.unique(theorem[~target])))
    if min(target.sum(), (~target).sum()) < _LEAST or folds < 2:  # noqa: PLR2004
        return None
    flags = format_flags(texts)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    scores = cross_val_predict(
        model,
        flags,
        target,
        groups=theorem,
        cv=StratifiedGroupKFold(folds),
        method="decision_function",
    )
    weights = model.fit(flags, target)[-1].coef_[0]
    names = [*FORMAT_FLAGS]
    strongest = [names[n] for n in np.argsort(-np.abs(weights))[:3] if abs(weights[n]) > 0]
    return Probe(what, float(roc_auc_score(target, scores)), strongest)
