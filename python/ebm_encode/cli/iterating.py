"""What `ebm-encode iterate` does and shows."""

import json
import os
import shlex
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import cyclopts
from rich.console import Console, ConsoleRenderable
from rich.status import Status
from rich.table import Table
from rich.text import Text

from ebm_encode.cli.audit import audit
from ebm_encode.cli.console import stderr_console
from ebm_encode.cli.encode import encode
from ebm_encode.cli.evaluate_head import evaluate_head
from ebm_encode.cli.train_head import train_head
from ebm_encode.errors import ArgumentError, InputError
from ebm_encode.pipeline.config import OWN_STEPS, absolute, folder_of, read_config
from ebm_encode.pipeline.iteration import Iteration
from ebm_encode.pipeline.plan import Verdict, in_range
from ebm_encode.pipeline.processes import run_briefly
from ebm_encode.pipeline.summary import StepSummary, Summary

_COMMANDS: dict[str, Any] = {
    "encode": encode,
    "train-head": train_head,
    "evaluate-head": evaluate_head,
    "audit": audit,
}
_EXIT_CODES = {"done": 0, "failed": 1, "interrupted": 130}
_NOTIFY_SECONDS = 60
_COLORS = {"done": "green", "kept": "dim", "failed": "bold red", "interrupted": "yellow"}


def _run(iteration: Iteration, first: str | None, until: str | None, *, quiet: bool) -> Summary:
    console = stderr_console()
    if quiet or not console.is_terminal:
        return iteration.run(first=first, last=until)
    with Status("", console=console) as status:

        def progress(name: str, seconds: float, line: str) -> None:
            status.update(Text.assemble((f"{name} ", "bold"), f"{_duration(seconds)}  {line}"))

        return iteration.run(first=first, last=until, progress=progress)


def run(
    iteration: Iteration,
    first: str | None,
    until: str | None,
    *,
    notify: str | list[str] | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Runs an iteration, shows what became of it, tells the user's command; gives the exit code."""
    try:
        command = shlex.split(notify) if isinstance(notify, str) else notify
    except ValueError as error:
        raise ArgumentError(f"--notify {notify}: {error}") from error
    summary = _run(iteration, first, until, quiet=quiet)
    if as_json:
        print(json.dumps(summary.to_json(), ensure_ascii=False))  # noqa: T201
    elif not quiet:
        _show(summary, iteration.folder)
    if summary.error:
        _tell(f"error: {summary.error}")
    _notify(command, iteration, summary)
    return _EXIT_CODES[summary.state]


def _tell(text: str) -> None:
    stderr_console().print(text, markup=False, highlight=False, soft_wrap=True)


def iteration_of(path: Path, given: Sequence[str]) -> tuple[Iteration, list[str] | None]:
    """The iteration of a configuration, and the command that it notifies by."""
    variables = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals:
            raise ArgumentError(f"--set {one}: expected NAME=VALUE")
        variables[name] = value
    known = {command: option_names(command) for command in OWN_STEPS.values()}
    config = read_config(path, variables=variables, known=known)
    iteration = Iteration(config, folder_of(config, path), absolute(path.parent))
    return iteration, config.iteration.notify


def option_names(command: str) -> list[str]:
    """The options of a command, without dashes in front; of arguments their names."""
    app = cyclopts.App()
    app.command(_COMMANDS[command], name=command)
    arguments = app[command].assemble_argument_collection()
    found = {name.lstrip("-").lower() for argument in arguments for name in argument.names}
    return sorted(found - {"*", "json", "quiet"})


def write_example(path: Path) -> int:
    """Writes the example configuration.

    Raises:
        ArgumentError: If there is such a file.
        InputError: If it cannot be written.
    """
    text = resources.files("ebm_encode.pipeline").joinpath("example.toml").read_text("utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ArgumentError(f"{path} exists\nhint: remove it, or name another file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error})") from error
    print(f"{path}: an example; change it, and see `ebm-encode iterate {path} --dry-run`")  # noqa: T201
    return 0


def show_plan(iteration: Iteration, first: str | None, until: str | None, *, as_json: bool) -> int:
    """Prints which steps would run, and why."""
    begin, end = in_range(iteration.steps, first, until)
    verdicts = iteration.plan()[begin:end]
    server = iteration.server
    left = server is not None and server.touched
    if as_json:
        steps = [{"name": v.step.name, "runs": not v.done, "why": v.reasons} for v in verdicts]
        print(json.dumps({"steps": steps, "server_left": left}, ensure_ascii=False))  # noqa: T201
        return 0
    if left:
        print("the server is brought back first: an interrupted run left it")  # noqa: T201
    Console().print(_plan_table(verdicts))
    return 0


def _plan_table(verdicts: Sequence[Verdict]) -> Table:
    table = _empty_table("step", "", "why")
    for verdict in verdicts:
        what = Text("done", "dim") if verdict.done else Text("runs", "bold")
        unseen = [f"{name} is not compared" for name in verdict.not_compared if verdict.done]
        table.add_row(verdict.step.name, what, Text("\n".join([*verdict.reasons, *unseen])))
    return table


def _show(summary: Summary, folder: Path) -> None:
    Console().print(_table(summary.steps, folder))
    if summary.server:
        print(f"server: {summary.server}")  # noqa: T201


def _table(steps: Sequence[StepSummary], folder: Path) -> ConsoleRenderable:
    table = _empty_table("step", "state", "time", "figures", "outputs")
    for step in steps:
        time = "" if step.seconds is None else _duration(step.seconds)
        figures = ", ".join(f"{name} {_number(value)}" for name, value in step.figures.items())
        outputs = "\n".join(_short(output, folder) for output in step.outputs)
        state = Text(step.state, _COLORS.get(step.state, ""))
        table.add_row(step.name, state, time, figures, Text(outputs))
    return table


def _empty_table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=column in ("step", "state", "time", ""))
    return table


def _short(path: str, folder: Path) -> str:
    """A path as seen from the iteration's folder, or from here."""
    near = [base for base in (folder, Path.cwd()) if Path(path).is_relative_to(base)]
    return os.path.relpath(path, near[0]) if near else path


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.3g}"


def _notify(command: Sequence[str] | None, iteration: Iteration, summary: Summary) -> None:
    """Tells the user's command; that it fails changes nothing of how the iteration ended."""
    if not command:
        return
    told = {
        "EBM_ENCODE_STATE": summary.state,
        "EBM_ENCODE_MESSAGE": summary.error,
        "EBM_ENCODE_SUMMARY": str(iteration.folder / "summary.json"),
    }
    try:
        code, _ = run_briefly(command, seconds=_NOTIFY_SECONDS, environment=told)
    except OSError as error:
        _tell(f"--notify: {error}")
        return
    if code != 0:
        _tell(f"--notify: {'takes too long' if code is None else f'exits with {code}'}")
