"""Rankings that need no model: what any head must beat before it means something."""

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import HashingVectorizer

TOKEN = re.compile(r"\w+|[^\w\s]")
"""A name, a number or one symbol: the tokens of `token_matrix`, whatever the model's are."""

TOKEN_FEATURES = 1024


def shortest_text(states: Sequence[str]) -> NDArray[np.float64]:
    """The shorter the better: minus the characters, float64 `[n]`."""
    return -np.array([len(state) for state in states], np.float64)


def fewest_goals(states: Sequence[str]) -> NDArray[np.float64]:
    """The fewer goals the better: minus the turnstiles, float64 `[n]`."""
    return -np.array([state.count("⊢") for state in states], np.float64)


RULES: dict[str, Callable[[Sequence[str]], NDArray[np.float64]]] = {
    "shortest_text": shortest_text,
    "fewest_goals": fewest_goals,
}
"""Scores by rule, higher is better."""


def token_matrix(states: Sequence[str]) -> NDArray[np.float32]:
    """How often each token stands in a state, float32 `[n, 1024]`: inputs of `token_counts`.

    Tokens are hashed to columns, so that no vocabulary has to be kept; counts are `log(1 + n)`.
    """
    vectorizer = HashingVectorizer(
        n_features=TOKEN_FEATURES,
        token_pattern=None,
        tokenizer=TOKEN.findall,
        lowercase=False,
        norm=None,
        alternate_sign=False,
        dtype=np.float32,
    )
    counts = vectorizer.transform(states)
    counts.data = np.log1p(counts.data)
    return np.asarray(counts.todense(), np.float32)


FORMAT_FLAGS: dict[str, Callable[[str], float]] = {
    "characters (log)": lambda state: float(np.log1p(len(state))),
    "lines (log)": lambda state: float(np.log1p(state.count("\n"))),
    "case line": lambda state: float(state.startswith("case ") or "\ncase " in state),
    "binders merged on one line": lambda state: float(
        re.search(r"(?m)^\S+ \S[^:\n]* : ", state) is not None
    ),
    "indented line": lambda state: float(re.search(r"(?m)^ +\S", state) is not None),
    "inaccessible name": lambda state: float("✝" in state),
    "let value": lambda state: float(" := " in state),
    "metavariable": lambda state: float("?m." in state),
    "blank line": lambda state: float("\n\n" in state),
    "trailing newline": lambda state: float(state.endswith("\n")),
}
"""What a printer decides, not the state: marks of print style, and length."""


def format_flags(states: Sequence[str]) -> NDArray[np.float64]:
    """The format flags of states, float64 `[n, F]`."""
    return np.array([[flag(state) for flag in FORMAT_FLAGS.values()] for state in states])
