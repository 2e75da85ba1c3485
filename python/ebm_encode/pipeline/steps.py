"""Steps of an iteration: what each runs, reads and writes, and in which order."""

import fnmatch
import glob
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from ebm_encode.errors import ArgumentError
from ebm_encode.pipeline.config import OWN_STEPS, Config, StepServer, StepTable, absolute, placed
from ebm_encode.pipeline.contents import fixed, matches

_GIB = 2**30


@dataclass(frozen=True)
class _Paths:
    """Which options of a command are paths, and which are given without their names."""

    positional: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


_OF_COMMAND = {
    "encode": _Paths(
        (), ("model-path", "adapter", "template", "trajectories", "cache"), ("output",)
    ),
    "train-head": _Paths(("cache",), ("cache", "trajectories", "expansions"), ("output",)),
    "evaluate-head": _Paths(
        ("head", "cache"),
        ("head", "cache", "trajectories", "expansions", "train-trajectories", "train-cache",
         "model-path", "random-cache"),
        ("figure",),
    ),
    "audit": _Paths(("caches",), ("caches",), ()),
}  # fmt: skip
GROWING = {"encode": ("trajectories", "cache")}
"""Inputs that may grow without making embeddings of earlier runs wrong, by command."""
_NAMES = ("model-path", "adapter", "template")
"""Options whose values may be names and no paths."""
_SERVERS: dict[str, StepServer] = {"llm-train": "stop", "encode": "stop"}
"""What steps do with the server if they do not say; others leave it as it is."""


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: Its name.
        command: What runs.
        own: The command of `ebm-encode` that it is, if it is one.
        inputs: Absolute paths and patterns, and names that are no paths (hub ids, URLs).
        growing: Those of them that may grow.
        outputs: Absolute paths.
        result: File that its standard output goes to, one of `outputs`; of our commands.
        server: What it does with the inference server.
        gpu_memory: Bytes that one GPU must have free before it starts.
        timeout: Seconds after which it is ended.
        environment: Environment variables besides those of this process.
        directory: Working directory.
    """

    name: str
    command: tuple[str, ...]
    own: str | None
    inputs: tuple[str, ...]
    outputs: tuple[Path, ...]
    directory: Path
    server: StepServer = "keep"
    growing: tuple[str, ...] = ()
    result: Path | None = None
    gpu_memory: int = 0
    timeout: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def steps_of(config: Config, folder: Path, directory: Path) -> list[Step]:
    """The steps in the order in which they run: what makes a file before what reads it.

    Args:
        config: The configuration.
        folder: The iteration's folder.
        directory: Where relative paths begin.

    Raises:
        ArgumentError: If steps need each other in a circle, or write the same file.
    """
    made = [
        Path(_absolute(output, directory))
        for table in config.steps.values()
        for output in table.outputs
    ]
    found = [_step(name, table, folder, directory, made) for name, table in config.steps.items()]
    if config.server is None:
        found = [replace(step, server="keep") for step in found]
    _require_apart(found, folder)
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for step in found:
        needed = {maker.name for maker in found if maker is not step and feeds(maker, step)}
        sorter.add(step.name, *needed)
    by_name = {step.name: step for step in found}
    try:
        sorter.prepare()
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise ArgumentError(f"steps need each other in a circle: {circle}") from error
    order: list[Step] = []
    ready: list[str] = []
    names = [*by_name]
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=names.index)
        first = ready.pop(0)  # of those that could run, the one that stands first in the file
        order.append(by_name[first])
        sorter.done(first)
    return order


def _require_apart(steps: Sequence[Step], folder: Path) -> None:
    """Each output is written by one step, holds no other one, and is no input of that step."""
    written = [(output, step) for step in steps for output in step.outputs]
    for place, (output, step) in enumerate(written):
        if output == folder or output in folder.parents:
            raise ArgumentError(f"step {step.name}: its output {output} holds the records")
        if any(matches(given, str(output)) for given in step.inputs if given.startswith("/")):
            raise ArgumentError(
                f"step {step.name}: {output} is its output, and its input or in one\nhint: it would"
                " never be done; write it elsewhere"
            )
        for other, writer in written[place + 1 :]:
            if output == other or output in other.parents or other in output.parents:
                both = step.name if writer is step else f"{step.name} and {writer.name}"
                raise ArgumentError(
                    f"steps {both} write {output} and {other}\nhint: give each output a file or"
                    " folder that no other one is in"
                )


def feeds(maker: Step, step: Step) -> bool:
    """Whether a step reads what another one writes."""
    return any(within(given, output) for given in step.inputs for output in maker.outputs)


def within(pattern: str, path: Path) -> bool:
    """Whether a pattern may match a path, something in it, or a folder that holds it."""
    if not Path(pattern).is_absolute():
        return False
    if "**" in pattern:
        start = fixed(pattern)
        return start == path or start in path.parents or path in start.parents
    both = zip(Path(pattern).parts, path.parts, strict=False)  # up to the end of the shorter one
    return all(fnmatch.fnmatchcase(part, matcher) for matcher, part in both)


def _step(name: str, table: StepTable, folder: Path, directory: Path, made: Sequence[Path]) -> Step:
    common: dict[str, Any] = {
        "name": name,
        "directory": directory,
        "server": table.server or _SERVERS.get(name, "keep"),
        "gpu_memory": round((table.gpu_memory_gib or 0) * _GIB),
        "timeout": table.timeout_seconds,
        "environment": table.environment,
    }
    outputs = tuple(Path(_absolute(output, directory)) for output in table.outputs)
    inputs = tuple(_pattern(given, directory) for given in table.inputs)
    if name not in OWN_STEPS:
        assert table.command is not None
        return Step(
            command=tuple(table.command), own=None, inputs=inputs, outputs=outputs, **common
        )
    own, options = OWN_STEPS[name], table.options or {}
    paths = _OF_COMMAND[own]
    if own == "encode" and table.server is None and options.get("backend", "hf") != "hf":
        common["server"] = "run"

    def values(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(
            value if option in _NAMES and _is_name(value, directory, made)
            else _pattern(value, directory)
            for option in names
            for value in _listed(options.get(option, []))
        )  # fmt: skip

    result = folder / f"{name}.json"
    written = tuple(
        Path(_absolute(value, directory))
        for option in paths.outputs
        for value in _listed(options.get(option, []))
    )
    return Step(
        command=(sys.executable, "-m", "ebm_encode", own, *_arguments(options, paths.positional),
                 "--json"),
        own=own,
        inputs=(*values(paths.inputs), *inputs),
        growing=values(GROWING.get(own, ())),
        outputs=(*written, result, *outputs),
        result=result,
        **common,
    )  # fmt: skip


def _absolute(given: str, directory: Path) -> str:
    """A path as an absolute one; URLs are left as they are."""
    return given if "://" in given else str(placed(directory, given))


def _pattern(given: str, directory: Path) -> str:
    """A path or pattern as an absolute pattern; what is there is taken as it is written."""
    if "://" in given:
        return given
    path = _absolute(given, directory)
    if not glob.has_magic(given) or Path(path).exists():
        return glob.escape(path)
    if given.startswith(("/", "~")):
        return path
    return str(absolute(Path(glob.escape(str(directory))) / given))


def _is_name(value: str, directory: Path, made: Sequence[Path]) -> bool:
    """Whether a value is a hub id or a built-in name: it has no suffix, and no file is there."""
    path = Path(_absolute(value, directory))
    if not may_be_name(value) or path.exists():
        return False
    return not any(path == output or output in path.parents for output in made)


def may_be_name(value: str) -> bool:
    """Whether a model or template that is not there may be one of the hub, or a built-in one."""
    return not value.startswith((".", "/", "~")) and value.count("/") <= 1


def _arguments(options: Mapping[str, Any], positional: Sequence[str]) -> list[str]:
    """Options as the command line takes them."""
    given = [value for name in positional for value in _listed(options.get(name, []))]
    for name, value in options.items():
        if name in positional or name == "json" or value is False:
            continue
        given += [f"--{name}", *([] if value is True else _listed(value))]
    return given


def _listed(value: Any) -> list[str]:
    return [str(one) for one in (value if isinstance(value, list) else [value])]
