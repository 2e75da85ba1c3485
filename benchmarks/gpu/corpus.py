"""The states that are measured: real ones, with the prefixes that neighbours in a corpus share."""

import random
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
RECORDED = (ROOT / "searches" / "lean_core.parquet", *sorted(ROOT.glob("samples/*.parquet")))
"""The real states of this repository, about 42,600 distinct ones."""
STRETCH = 1024
"""Neighbours in text order that stay together."""


def real_states(files: list[Path]) -> list[str]:
    """The distinct states of trajectory files, in the order of their texts."""
    found: set[str] = set()
    for file in files:
        found.update(filter(None, pq.read_table(file, columns=["state_pp"])[0].to_pylist()))
    return sorted(found)


def enough(states: list[str], count: int) -> list[str]:
    """At least `count` distinct states, in text order.

    Where there are too few real ones, they come again with one hypothesis before the others. All of
    a repetition have the same one, so that they share among each other what the real ones share.
    """
    found = list(states)
    repetition = 0
    while len(found) < count:
        repetition += 1
        found += [f"h✝{repetition} : True\n{state}" for state in states]
    return sorted(found)


def sample(states: list[str], count: int) -> list[str]:
    """`count` states: stretches of neighbours from all over the corpus, in a seeded order.

    The first so many of the result are such a sample, too, in units of a stretch.
    """
    size = min(STRETCH, max(count // 8, 1))
    stretches = [states[first : first + size] for first in range(0, len(states), size)]
    random.Random(0).shuffle(stretches)
    return [state for stretch in stretches for state in stretch][:count]


def blocks(states: list[str], count: int, size: int = 32) -> list[str]:
    """About `count` of the states: blocks of neighbours, evenly spread, in their order."""
    if count >= len(states):
        return states
    whole = [states[first : first + size] for first in range(0, len(states), size)]
    wanted = max(count // size, 1)
    return [s for k in range(wanted) for s in whole[k * len(whole) // wanted]]


def requests(count: int, most: int = 10) -> tuple[list[list[str]], str]:
    """Requests of `count` states as a search makes them, and in words what they are.

    The children of one state each, where one has so many in the recorded searches; else states of
    one theorem, in text order; else neighbours in text order.
    """
    table = pq.read_table(RECORDED[0], columns=["theorem_name", "parent_state_id", "state_pp"])
    children: dict[tuple[str, int], set[str]] = defaultdict(set)
    theorems: dict[str, set[str]] = defaultdict(set)
    for row in table.to_pylist():
        if row["state_pp"]:
            theorems[row["theorem_name"]].add(row["state_pp"])
            if row["parent_state_id"] is not None:
                children[row["theorem_name"], row["parent_state_id"]].add(row["state_pp"])
    for groups, what in ((children, "children of one state"), (theorems, "states of one theorem")):
        found = [sorted(group)[:count] for group in groups.values() if len(group) >= count]
        if found:
            return found[:: max(len(found) // most, 1)][:most], what
    everything = sorted(set().union(*theorems.values()))
    step = max((len(everything) - count) // most, 1)
    return [
        everything[k * step : k * step + count] for k in range(most)
    ], "neighbours in text order"
