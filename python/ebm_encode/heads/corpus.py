"""What a head learns from and is judged by: graphs, labels, and the rows of their states."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ebm_encode.errors import ArgumentError, InputError
from ebm_encode.heads.expansions import with_expansions
from ebm_encode.heads.graph import MergeCounts, TheoremGraph, merge
from ebm_encode.heads.labels import TheoremLabels, file_labels, label_graph
from ebm_encode.heads.options import Labels
from ebm_encode.heads.records import TrajectoryFile, read_trajectories
from ebm_encode.state_formats import AS_GIVEN, convert_each

log = logging.getLogger(__name__)

_SHOWN = 3
_PREVIEW = 60


@dataclass(frozen=True)
class Corpus:
    """Merged trajectories with their labels.

    The states of all theorems are numbered through: those of the first, then those of the second,
    and so on. A text that stands in two theorems has two numbers.

    Attributes:
        graphs: The theorems.
        labels: Their labels.
        first: The first number of each theorem, and the count of all, int64 `[T + 1]`.
        counts: What became of the rows.
        files: Name, digest and rows of each file.
        has_policy: Whether all steps have log-probabilities.
    """

    graphs: list[TheoremGraph]
    labels: list[TheoremLabels]
    first: NDArray[np.int64]
    counts: MergeCounts
    files: list[dict[str, str | int]]
    has_policy: bool = True

    @property
    def texts(self) -> list[str]:
        """The text of each number."""
        return [state for graph in self.graphs for state in graph.states]

    @cached_property
    def proved(self) -> NDArray[np.bool_]:
        """Which numbers' states are proved, bool."""
        return np.concatenate([label.proved for label in self.labels])

    def numbers(self, theorem: int) -> slice:
        """The numbers of a theorem's states."""
        return slice(int(self.first[theorem]), int(self.first[theorem + 1]))

    def of(self, theorems: Sequence[int]) -> NDArray[np.int64]:
        """The numbers of some theorems' states, int64 `[n]`."""
        parts = [np.arange(self.first[n], self.first[n + 1]) for n in theorems]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def in_file(self, file: int) -> NDArray[np.bool_]:
        """Which numbers' states stand in a file, bool."""
        return np.array([file in s for graph in self.graphs for s in graph.sources], bool)


def read_corpus(
    paths: list[str],
    labels: Labels = "graph",
    expansions: list[str] | None = None,
    *,
    state_format: str = AS_GIVEN,
    states_in: str | None = None,
) -> Corpus:
    """Reads and merges trajectories.

    Args:
        paths: Parquet or JSON-lines files, folders of them, or glob patterns.
        labels: Whose labels.
        expansions: Files that say which states were expanded.
        state_format: The printed form of the states that a cache holds; others are converted.
        states_in: The form that they are in; by default what the texts show, where it makes no
            difference what they do not show.

    Raises:
        InputError: If a file cannot be read, or holds no search.
        StateFormatError: If the form that the states are in must be said.
    """
    files = read_trajectories(paths)
    files = with_expansions(files, expansions) if expansions else files
    return make_corpus(_converted(files, state_format, states_in), labels)


def _converted(
    files: list[TrajectoryFile], state_format: str, states_in: str | None
) -> list[TrajectoryFile]:
    """Trajectories with their states in a cache's form, so that they are found there by text.

    States that cannot be converted stay as they are, so the cache lacks them, and they count as
    that.
    """
    if state_format == AS_GIVEN:
        if states_in is not None:
            raise ArgumentError(
                "`states_in` has no meaning for a cache whose states are as they were given"
            )
        return files
    states = [*dict.fromkeys(r.state for file in files for r in file.records if r.state)]
    texts, done = convert_each(states, state_format, states_in)
    log.info("%s", done)
    for record in done.refused[:_SHOWN]:
        log.warning("state %r: %s; not converted", record["state"][:_PREVIEW], record["reason"])
    return [
        replace(file, records=[replace(r, state=texts.get(r.state, r.state)) for r in file.records])
        for file in files
    ]


def make_corpus(files: list[TrajectoryFile], labels: Labels = "graph") -> Corpus:
    """Merges trajectories that were read.

    Raises:
        InputError: If they hold no search, or the labels are those of the files and they have none.
    """
    graphs, counts = merge(files)
    make: Callable[[TheoremGraph], TheoremLabels] = (
        label_graph if labels == "graph" else file_labels
    )
    made = [make(graph) for graph in graphs]
    if not any(label.solved for label in made):
        what = (
            "no row is a finished proof (is_proof_complete)"
            if labels == "graph"
            else ("no row has the label positive")
        )
        raise InputError(
            f"the trajectories hold no solved theorem: {what}\n"
            "hint: a head needs searches that found proofs"
        )
    if all(label.proved.all() for label in made):
        raise InputError(
            "all labels are equal: every state of the trajectories is proved\nhint: a head learns"
            " from searches with dead ends, not from finished proofs alone"
        )
    for graph, label in zip(graphs, made, strict=True):
        # A search starts where a proof was found, if a theorem was searched from several states.
        proved = {n for n in graph.roots if label.proved[n]}
        graph.roots[:] = [
            *filter(proved.__contains__, graph.roots),
            *(n for n in graph.roots if n not in proved),
        ]
    first = np.cumsum([0, *(len(graph.states) for graph in graphs)]).astype(np.int64)
    described: list[dict[str, str | int]] = [
        {"name": file.name, "digest": file.digest, "rows": len(file.records)} for file in files
    ]
    has_policy = all(file.has_policy for file in files)
    return Corpus(graphs, made, first, counts, described, has_policy)
