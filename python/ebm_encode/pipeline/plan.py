"""Which steps are done, which are to run, and why."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ebm_encode.digests import digest_json
from ebm_encode.errors import ArgumentError
from ebm_encode.pipeline.contents import MISSING, NOT_COMPARED, digest_path, digests_of, matches
from ebm_encode.pipeline.records import Record
from ebm_encode.pipeline.steps import Step, feeds


@dataclass(frozen=True)
class Verdict:
    """What is to be done about a step.

    Attributes:
        step: The step.
        reasons: Why it runs; none if it is done.
        record: What is known of its last run.
        inputs: Digests of its inputs as they are now.
        changed: Inputs that are not those of the record.
        command_changed: Whether its command is not that of the record.
    """

    step: Step
    reasons: list[str]
    record: Record | None
    inputs: dict[str, str]
    changed: list[str] = field(default_factory=list)
    command_changed: bool = False

    @property
    def done(self) -> bool:
        """Whether it need not run."""
        return not self.reasons

    @property
    def not_compared(self) -> list[str]:
        """Inputs whose contents are not read: hub ids and URLs."""
        return [name for name, digest in self.inputs.items() if digest == NOT_COMPARED]

    @property
    def key(self) -> str:
        """Digest of its command and of the inputs that may not grow."""
        fixed = {path: digest for path, digest in self.inputs.items() if not self._grows(path)}
        return digest_json({"command": command_digest(self.step), "inputs": fixed})

    @property
    def replaces(self) -> bool:
        """Whether what it wrote before is of no use: more than what may grow has changed."""
        rest = [path for path in self.changed if not self._grows(path)]
        return self.record is not None and (self.command_changed or bool(rest))

    def _grows(self, path: str) -> bool:
        rest = [given for given in self.step.inputs if given not in self.step.growing]
        grows = any(matches(given, path) for given in self.step.growing)
        return grows and not any(matches(given, path) for given in rest)


def judge(step: Step, folder: Path, upstream: Sequence[Step] = ()) -> Verdict:
    """Compares a step's command, inputs and outputs with its record.

    Args:
        step: The step.
        folder: The iteration's folder.
        upstream: Steps before it that will run.

    Raises:
        InputError: If a file or record cannot be read.
    """
    record = Record.read(folder, step.name)
    inputs = digests_of(step.inputs)
    reasons = [f"{maker.name} will run" for maker in upstream if feeds(maker, step)]
    if record is None:
        return Verdict(step, [*reasons, "never done"], None, inputs)
    command_changed = record.command != command_digest(step)
    reasons += ["its command changed"] if command_changed else []
    changed = []
    for path in sorted(inputs.keys() | record.inputs.keys()):
        now, before = inputs.get(path), record.inputs.get(path)
        if now == before:
            continue
        changed.append(path)
        what = "is new" if before is None else "is gone" if now in (None, MISSING) else "changed"
        reasons.append(f"input {path} {what}")
    for output in step.outputs:
        before, now = record.outputs.get(str(output), MISSING), digest_path(output)
        if now == MISSING:
            reasons.append(f"output {output} is missing")
        elif now != before:
            reasons.append(f"output {output} was changed by something else")
    return Verdict(step, reasons, record, inputs, changed, command_changed)


def plan(steps: Sequence[Step], folder: Path) -> list[Verdict]:
    """What is to be done about each step, in order.

    Raises:
        InputError: If a file or record cannot be read.
    """
    found: list[Verdict] = []
    for step in steps:
        upstream = [verdict.step for verdict in found if not verdict.done]
        found.append(judge(step, folder, upstream))
    return found


def in_range(steps: Sequence[Step], first: str | None, last: str | None) -> tuple[int, int]:
    """Positions of the first step of a range and of the one behind its last.

    Raises:
        ArgumentError: If there is no such step, or the range is empty.
    """
    names = [step.name for step in steps]
    for option, name in (("--from", first), ("--until", last)):
        if name is not None and name not in names:
            raise ArgumentError(
                f"{option} {name}: no such step\nhint: steps are {', '.join(names)}"
            )
    begin = names.index(first) if first else 0
    end = names.index(last) + 1 if last else len(names)
    if begin >= end:
        raise ArgumentError(f"--from {first} comes after --until {last}")
    return begin, end


def command_digest(step: Step) -> str:
    """Digest of what a step runs."""
    # The interpreter's place is no part of what our commands do.
    command = list(step.command) if step.own is None else list(step.command[1:])
    return digest_json({"command": command, "environment": dict(step.environment)})
