"""Labels of states from the graph of a theorem. The one definition, for training and evaluation.

A state is *proved* if some recorded path leads from it to the end of a proof, and its distance is
the least number of steps of such a path. It is *exhausted* if it is not proved and every state that
can be reached from it was expanded: the search tried all candidates that its policy proposed (its
width), and nothing is left to try. Everything else is *unknown*: not negative, as the record only
stopped there. Of the origin's negatives most are provable.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ebm_encode.heads.graph import FINISHED, TheoremGraph

Status = Literal["proved", "exhausted", "unknown"]

PROVED, EXHAUSTED, UNKNOWN = 0, 1, 2
STATUS_NAMES: tuple[Status, ...] = ("proved", "exhausted", "unknown")
NO_DISTANCE = np.iinfo(np.int32).max
"""The distance of a state that is not proved."""


@dataclass(frozen=True)
class TheoremLabels:
    """Labels of a theorem's states, in the graph's order.

    Attributes:
        status: `PROVED`, `EXHAUSTED` or `UNKNOWN`, int8 `[n]`.
        distance: Least number of recorded steps to the end of a proof, int32 `[n]`, at least 1;
            `NO_DISTANCE` where the state is not proved.
    """

    status: NDArray[np.int8]
    distance: NDArray[np.int32]

    @property
    def proved(self) -> NDArray[np.bool_]:
        """Which states are proved, bool `[n]`."""
        return np.asarray(self.status == PROVED)

    @property
    def solved(self) -> bool:
        """Whether some state of the theorem is proved."""
        return bool(self.proved.any())


def label_graph(graph: TheoremGraph) -> TheoremLabels:
    """Labels from the recorded steps."""
    count = len(graph.states)
    parents: list[list[int]] = [[] for _ in range(count)]
    for parent, edges in enumerate(graph.children):
        for edge in edges:
            if edge.child != FINISHED:
                parents[edge.child].append(parent)
    last = [n for n, edges in enumerate(graph.children) if any(e.child == FINISHED for e in edges)]
    steps = _distances(parents, last)
    distance = np.where(steps < 0, NO_DISTANCE, steps + 1).astype(np.int32)
    proved = distance != NO_DISTANCE
    untried = [n for n in range(count) if n not in graph.expanded and not proved[n]]
    reaches_untried = _distances(parents, untried) >= 0
    status = np.full(count, UNKNOWN, np.int8)
    status[~reaches_untried] = EXHAUSTED
    status[proved] = PROVED
    return TheoremLabels(status, distance)


def file_labels(graph: TheoremGraph) -> TheoremLabels:
    """The files' own labels, as the origin takes them: what is not positive counts as exhausted.

    A state that files label differently is positive, with the least of their distances.
    """
    labels = graph.file_labels
    positive = np.array([label.label == "positive" for label in labels], bool)
    unknown = np.array([label.label == "unknown" for label in labels], bool)
    steps = np.array([label.remaining for label in labels], np.int64)
    status = np.full(len(labels), EXHAUSTED, np.int8)
    status[unknown] = UNKNOWN
    status[positive] = PROVED
    distance = np.where(positive & (steps >= 0), steps, NO_DISTANCE).astype(np.int32)
    return TheoremLabels(status, distance)


def _distances(before: list[list[int]], starts: Iterable[int]) -> NDArray[np.int64]:
    """Least number of steps from any start along `before`, -1 where it cannot be reached."""
    found = np.full(len(before), -1, np.int64)
    queue = deque(starts)
    found[list(queue)] = 0
    while queue:
        state = queue.popleft()
        for other in before[state]:
            if found[other] < 0:
                found[other] = found[state] + 1
                queue.append(other)
    return found
