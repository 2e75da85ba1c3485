"""Recorded searches merged into one graph of distinct states per theorem."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from ebm_encode.errors import InputError
from ebm_encode.heads.records import Record, TrajectoryFile

FINISHED = -1
"""Stands for the end of a proof among the children of a state."""


@dataclass
class Edge:
    """A tactic that was applied to a state and accepted.

    Attributes:
        child: Number of the state it led to, or `FINISHED`.
        log_prob: The largest log-probability that a record gives for the step.
        tactic: The tactic of that record.
    """

    child: int
    log_prob: float
    tactic: str


@dataclass
class FileLabel:
    """What the files themselves say of a state, merged: `positive` wins, and the least distance."""

    label: str = "unknown"
    remaining: int = -1

    def merge(self, record: Record) -> None:
        """Adds what another row says."""
        order = ("unknown", "negative", "positive")
        label = record.label if record.label in order else "unknown"
        self.label = max(self.label, label, key=order.index)
        if record.remaining >= 0:
            known = [n for n in (self.remaining, record.remaining) if n >= 0]
            self.remaining = min(known)


@dataclass
class TheoremGraph:
    """The distinct states of a theorem and the recorded steps between them.

    Attributes:
        theorem: Its name.
        states: The open states' texts, in the order of their first appearance.
        children: For each state its recorded steps, one for each distinct child, in order.
        roots: States that were recorded without a parent.
        expanded: States of which the record says that they were expanded.
        file_labels: What the files say of each state.
        sources: Numbers of the files that each state stands in.
        provable: What a decision procedure found of states, where the record says.
    """

    theorem: str
    states: list[str] = field(default_factory=list)
    children: list[list[Edge]] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)
    expanded: set[int] = field(default_factory=set)
    file_labels: list[FileLabel] = field(default_factory=list)
    sources: list[set[int]] = field(default_factory=list)
    provable: dict[int, bool] = field(default_factory=dict)
    _places: dict[str, int] = field(default_factory=dict, repr=False)

    def number(self, state: str) -> int:
        """The number of a state, which is added if it is new."""
        place = self._places.setdefault(state, len(self.states))
        if place == len(self.states):
            self.states.append(state)
            self.children.append([])
            self.file_labels.append(FileLabel())
            self.sources.append(set())
        return place

    def connect(self, parent: int, child: int, record: Record) -> None:
        """Adds a step, or the better log-probability of one that is there."""
        for edge in self.children[parent]:
            if edge.child == child:
                if record.log_prob > edge.log_prob:
                    edge.log_prob, edge.tactic = record.log_prob, record.tactic
                return
        self.children[parent].append(Edge(child, record.log_prob, record.tactic))


@dataclass
class MergeCounts:
    """What became of the rows of the files.

    Attributes:
        rows: All rows.
        empty: Rows without text that are no finished proof; skipped.
        without_parent: Rows whose parent is not in the file, and finished proofs without one;
            there is no step to them.
        ambiguous: Rows whose parent's number stands for several texts and none before the row.
        loops: Steps from a state to itself; skipped.
    """

    rows: int = 0
    empty: int = 0
    without_parent: int = 0
    ambiguous: int = 0
    loops: int = 0


def merge(files: Iterable[TrajectoryFile]) -> tuple[list[TheoremGraph], MergeCounts]:
    """Merges the searches of some files, per theorem, by the states' texts.

    A `state_id` counts within one file and theorem. Where several searches of a theorem stand in
    one file, a number may have several texts; a parent is then the latest open state with its
    number that stands before the row.

    Raises:
        InputError: If there is no step from one state to another at all.
    """
    graphs: dict[str, TheoremGraph] = {}
    counts = MergeCounts()
    for number, file in enumerate(files):
        theorems: dict[str, list[Record]] = defaultdict(list)
        for record in file.records:
            theorems[record.theorem].append(record)
        for theorem, records in theorems.items():
            graph = graphs.setdefault(theorem, TheoremGraph(theorem))
            _add(graph, records, number, counts)
    if not any(edges for graph in graphs.values() for edges in graph.children):
        raise InputError(
            "the trajectories have no step from one state to another: parent_state_id is null or"
            " unknown in every row\nhint: a head learns from searches that record the parent of"
            " each state"
        )
    return list(graphs.values()), counts


def _add(graph: TheoremGraph, records: list[Record], file: int, counts: MergeCounts) -> None:
    counts.rows += len(records)
    places = _Places(graph, records)
    for row, record in enumerate(records):
        open_state = bool(record.state) and not record.finished
        if not open_state and not record.finished:
            counts.empty += 1
            continue
        child = graph.number(record.state) if open_state else FINISHED
        if open_state:
            _describe(graph, child, record, file)
        if record.parent_id is None:
            if open_state and child not in graph.roots:
                graph.roots.append(child)
            counts.without_parent += not open_state
            continue
        parent = places.find(record.parent_id, row)
        if parent is None:
            known = record.parent_id in places.rows
            counts.ambiguous += known
            counts.without_parent += not known
        elif parent == child:
            counts.loops += 1
        else:
            graph.connect(parent, child, record)
            graph.expanded.add(parent)


def _describe(graph: TheoremGraph, state: int, record: Record, file: int) -> None:
    """Adds what a row says of its state."""
    graph.file_labels[state].merge(record)
    graph.sources[state].add(file)
    if record.expanded:
        graph.expanded.add(state)
    if record.provable is not None:
        graph.provable[state] = record.provable


class _Places:
    """The open states of a file's theorem by their numbers."""

    def __init__(self, graph: TheoremGraph, records: list[Record]) -> None:
        self.rows: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for row, record in enumerate(records):
            if record.state and not record.finished:
                self.rows[record.state_id].append((row, graph.number(record.state)))

    def find(self, state_id: int, row: int) -> int | None:
        """The state that a row means by a number; `None` if there is none, or it is not clear."""
        known = self.rows.get(state_id, [])
        if len({state for _, state in known}) == 1:
            return known[0][1]
        before = [state for place, state in known if place < row]
        return before[-1] if before else None
