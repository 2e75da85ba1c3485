"""Making prompts that are too long shorter: at one end, or by the hypotheses of a Lean state."""

from collections.abc import Callable, Sequence
from typing import Literal

from ebm_encode.options import Overlong

Cut = Literal["none", "end", "hypotheses"]
"""What is done about prompts that are too long: nothing, cut off an end of them, or drop
hypotheses of the state."""

_CUTS: dict[Overlong, Cut] = {"truncate": "end", "truncate-state": "hypotheses"}
_GOAL = "⊢"


def cut_for(overlong: Overlong) -> Cut:
    """What an option means for prompts; where states are skipped or refused, nothing is cut."""
    return _CUTS.get(overlong, "none")


def cut_end(
    before: Sequence[int],
    content: Sequence[int],
    after: Sequence[int],
    *,
    longest: int | None,
    side: str,
) -> list[int]:
    """Cuts a prompt as transformers does with `truncation=True`: special tokens at both ends stay.

    Args:
        before: The special tokens at the start.
        content: The tokens between.
        after: The special tokens at the end.
        longest: Most tokens of the result; `None`: no limit.
        side: Which end of the content goes: `right` or `left`, the tokenizer's `truncation_side`.
    """
    if longest is not None and len(before) + len(content) + len(after) > longest:
        room = max(longest - len(before) - len(after), 0)
        content = content[len(content) - room :] if side == "left" else content[:room]
    return [*before, *content, *after]


def hypotheses(state: str) -> list[range]:
    """The hypotheses of a Lean state in the order in which they are dropped, as ranges of lines.

    A goal is what stands between blank lines; its hypotheses are what stands before the line that
    begins with `⊢`, but for a line `case ...`. A line that begins with a space belongs to the one
    before. Those of the last goal go first, of each goal the first ones first: what is near the
    first goal's `⊢` stays longest.
    """
    goals: list[list[range]] = [[]]
    lines = state.split("\n")
    begun, reached, in_case = 0, False, False
    for i, line in enumerate(lines):
        if not line.strip():
            goals.append([])
            reached = in_case = False
        elif reached:
            continue
        elif line.startswith(_GOAL):
            reached = True
        elif line[0].isspace() and (goals[-1] or in_case):
            if goals[-1] and not in_case:
                goals[-1][-1] = range(begun, i + 1)
        elif line.startswith("case "):
            in_case = True
        else:
            begun, in_case = i, False
            goals[-1].append(range(i, i + 1))
    # A text without a goal is no Lean state, and has no hypotheses.
    starts = [line.startswith(_GOAL) for line in lines]
    return [
        lines_of
        for goal in reversed(goals)
        if goal and _has_goal(starts, lines, goal[-1].stop)
        for lines_of in goal
    ]


def _has_goal(starts: list[bool], lines: list[str], after: int) -> bool:
    """Whether a `⊢` comes before the next blank line."""
    for start, line in zip(starts[after:], lines[after:], strict=True):
        if start:
            return True
        if not line.strip():
            return False
    return False


def without_hypotheses(state: str, fits: Callable[[str], bool]) -> str | None:
    """The state with as few hypotheses dropped as make it fit; `None` if none makes it.

    Args:
        state: The state.
        fits: Whether a text is short enough.
    """
    order = hypotheses(state)
    lines = state.split("\n")

    def with_dropped(count: int) -> str:
        gone = {i for lines_of in order[:count] for i in lines_of}
        return "\n".join(line for i, line in enumerate(lines) if i not in gone)

    low, high = 0, len(order)  # `low` does not fit
    if not order or not fits(with_dropped(high)):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(with_dropped(middle)) else (middle, high)
    return with_dropped(high)
