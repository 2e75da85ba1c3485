"""Best-first search replayed on recorded graphs: what a ranking is worth before Lean is asked.

A record knows only what was tried. A state that was never expanded costs an expansion and brings
nothing, and the search that was recorded chose what was expanded, so a record flatters rankings
like its own; `Replayed.never_expanded` counts how often that mattered.
"""

import heapq
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebm_encode.heads.graph import FINISHED, TheoremGraph


@dataclass(frozen=True)
class Ranking:
    """How a search orders its open states; the highest priority is expanded next.

    priority = `weight` * z(value) + (1 - `weight`) * z(policy), where z subtracts a mean and
    divides by a deviation, and the policy's value is the cumulative log-probability of the steps
    divided by depth ** `exponent`. With weight 1 only the values count, and with 0 only the policy.
    A state without a value (NaN) is ordered by the policy alone.

    Attributes:
        values: A value for each state of the theorem, float64 `[n]`; `None` is the order of
            discovery, which with weight 1 is breadth-first.
        weight: From 0 to 1.
        exponent: Of the depth; 0 is the plain cumulative log-probability.
        value_scale: Mean and deviation of the values.
        policy_scale: Mean and deviation of the policy's values.
    """

    values: NDArray[np.float64] | None = None
    weight: float = 1.0
    exponent: float = 0.5
    value_scale: tuple[float, float] = (0.0, 1.0)
    policy_scale: tuple[float, float] = (0.0, 1.0)

    def priority(self, state: int, cumulative: float, depth: int) -> float:
        """The priority of a state that was found at a depth, by steps of this log-probability."""
        value = 0.0 if self.values is None else float(self.values[state])
        mean, deviation = self.policy_scale
        policy = (policy_value(cumulative, depth, self.exponent) - mean) / deviation
        if self.weight == 0 or math.isnan(value):
            return policy
        mean, deviation = self.value_scale
        value = (value - mean) / deviation
        return value if self.weight == 1 else self.weight * value + (1 - self.weight) * policy


def policy_value(cumulative: float, depth: int, exponent: float) -> float:
    """Cumulative log-probability divided by depth ** exponent; 0 at the root."""
    return cumulative / float(max(depth, 1) ** exponent)


@dataclass(frozen=True)
class Replayed:
    """What a replayed search did.

    Attributes:
        expansions: Expansions until the proof was finished, that one included.
        never_expanded: How many of them were of states that the record never expanded.
    """

    expansions: int
    never_expanded: int


def replay(graph: TheoremGraph, ranking: Ranking) -> Replayed | None:
    """Searches the recorded graph from its root; `None` if no finished proof can be reached.

    A state is taken up once, as it is first found. The search ends as soon as an expansion gives a
    finished proof. Of equal priorities the state found first is expanded first.
    """
    if not graph.roots:
        return None
    root = graph.roots[0]
    found = {root}
    frontier: list[tuple[float, int, int, float, int]] = [(0.0, 0, root, 0.0, 0)]
    expansions = never_expanded = 0
    while frontier:
        _, _, state, cumulative, depth = heapq.heappop(frontier)
        expansions += 1
        never_expanded += state not in graph.expanded
        for edge in graph.children[state]:
            if edge.child == FINISHED:
                return Replayed(expansions, never_expanded)
            if edge.child in found:
                continue
            found.add(edge.child)
            total = cumulative + edge.log_prob
            priority = ranking.priority(edge.child, total, depth + 1)
            heapq.heappush(frontier, (-priority, len(found), edge.child, total, depth + 1))
    return None


def walk(graph: TheoremGraph) -> dict[int, tuple[float, int]]:
    """Cumulative log-probability and depth of each state, as it is first found breadth-first."""
    found: dict[int, tuple[float, int]] = dict.fromkeys(graph.roots[:1], (0.0, 0))
    queue = [*found]
    for state in queue:  # grows while it is walked
        cumulative, depth = found[state]
        for edge in graph.children[state]:
            if edge.child != FINISHED and edge.child not in found:
                found[edge.child] = cumulative + edge.log_prob, depth + 1
                queue.append(edge.child)
    return found


def policy_values(graph: TheoremGraph, exponent: float) -> list[float]:
    """The policy's value of each state that can be reached, but the root's."""
    return [policy_value(total, depth, exponent) for total, depth in walk(graph).values() if depth]
