"""The configuration of an iteration: a TOML file, checked before anything runs."""

import difflib
import glob
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from ebm_encode.errors import ArgumentError, InputError
from ebm_encode.pipeline.placeholders import PlaceholderError, filled_in, require_plain
from ebm_encode.pipeline.positions import key_lines
from ebm_encode.servers.http import is_server

StepServer = Literal["stop", "keep", "run"]
Scalar = str | int | float | bool


def _text(value: str) -> str:
    if "\0" in value or (not value.isprintable() and "\udc80" <= max(value) <= "\udcff"):
        raise ValueError("holds what no file name or argument can")
    return value


def _url(value: str) -> str:
    if "{" not in value and not is_server(value):  # its placeholders are filled in later
        raise ValueError("is no URL such as http://127.0.0.1:30000")
    return value


Word = Annotated[str, StringConstraints(min_length=1), AfterValidator(_text)]
Url = Annotated[Word, AfterValidator(_url)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Command = Annotated[list[Word], Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]

OWN_STEPS: dict[str, str] = {
    "encode": "encode",
    "train-head": "train-head",
    "evaluate": "evaluate-head",
    "audit": "audit",
}
"""Steps that are commands of `ebm-encode`, by the names of their steps."""
_STEP_NAME = r"^[a-z0-9]+(-[a-z0-9]+)*$"


def _dashed(name: str) -> str:
    return name.replace("_", "-")


class _Table(BaseModel):
    model_config = ConfigDict(
        extra="forbid", alias_generator=_dashed, populate_by_name=False, strict=True
    )


class StepTable(_Table):
    """One step, as `[steps.NAME]` has it.

    Attributes:
        command: What runs; of all steps but those of `OWN_STEPS`.
        options: Options of the command of `ebm-encode`, by their names; of those of `OWN_STEPS`.
        inputs: Files, folders and glob patterns whose contents the step depends on.
        outputs: Files and folders that it writes.
        server: Whether the inference server is stopped for it, left as it is, or must run.
        gpu_memory_gib: Free memory that one GPU must have before it starts.
        timeout_seconds: After these it is ended, and has failed.
        environment: Environment variables besides those of this process.
    """

    command: Command | None = None
    options: dict[str, Scalar | list[Scalar]] | None = None
    inputs: list[Word] = []
    outputs: list[Word] = []
    server: StepServer | None = None
    gpu_memory_gib: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    timeout_seconds: Seconds | None = None
    environment: dict[Name, Annotated[str, AfterValidator(_text)]] = {}


class ServerTable(_Table):
    """The inference server, as `[server]` has it.

    Attributes:
        url: Where it answers.
        start: Command that starts it; `{model}` in it is the model.
        stop: Command that stops it. Without one, a server that was started here is ended by its
            process group.
        health: Command that prints the model that answers, if the server is not to be asked.
        model: The model that it has at the end of the iteration; as before if not given.
        served_name: What it calls that model, if not by its path.
        free: Whether it is stopped, or asked to give its GPU memory back (vLLM, SGLang).
        token_file: File with its bearer token.
        folder: Where its log goes and what is known of it; iterations that share it take turns.
        start_seconds: It must answer by then.
        stop_seconds: It must be gone by then.
        settle_seconds: It must still answer after these.
    """

    url: Url
    start: Command | None = None
    stop: Command | None = None
    health: Command | None = None
    model: Word | None = None
    served_name: Word | None = None
    free: Literal["stop", "release"] = "stop"
    token_file: Word | None = None
    folder: Word = "server"
    start_seconds: Seconds = 600.0
    stop_seconds: Seconds = 120.0
    settle_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2.0

    @model_validator(mode="after")
    def _able(self) -> Self:
        if self.free == "stop" and self.start is None:
            raise ValueError('lacks its start: a server that is stopped must be started again\n'
                             'hint: or have it give its memory back: free = "release"')  # fmt: skip
        if self.model is not None and self.start is None:
            raise ValueError("has a model and no start: a server gets another model by a new start")
        return self


class IterationTable(_Table):
    """What concerns the whole iteration.

    Attributes:
        folder: Where records and logs go; `{folder}` in paths.
        notify: Command that is told how the iteration ended.
    """

    folder: Word = "."
    notify: Command | None = None


class GpuTable(_Table):
    """How long free GPU memory is waited for."""

    wait_seconds: Seconds = 300.0


StepName = Annotated[str, StringConstraints(pattern=_STEP_NAME)]


class Config(_Table):
    """A whole configuration, with its placeholders filled in."""

    iteration: IterationTable = IterationTable()
    variables: dict[StepName, str] = {}
    server: ServerTable | None = None
    gpu: GpuTable = GpuTable()
    steps: dict[StepName, StepTable]

    @model_validator(mode="after")
    def _steps(self) -> Self:
        if not self.steps:
            raise ValueError("has no steps")
        return self


def read_config(
    path: Path, *, variables: Mapping[str, str], known: Mapping[str, Sequence[str]]
) -> Config:
    """Reads a configuration file and checks it.

    Args:
        path: The file.
        variables: Values that replace those of `[variables]`.
        known: The options of each command of `ebm-encode`, without dashes in front.

    Raises:
        InputError: If it cannot be read or is no TOML.
        ArgumentError: If it says something else than a configuration does; with key and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        given = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        hint = "\nhint: `ebm-encode iterate --init` writes an example" if not path.exists() else ""
        raise InputError(f"{path}: cannot be read ({error}){hint}") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path}: is no TOML: {error}") from error
    lines = key_lines(text)
    try:
        config = Config.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _refused(path, lines, first["loc"], _reason(first)) from error
    _check_steps(path, lines, config, known)
    return _filled(path, lines, config, variables)


def _reason(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "is no key that there is"
    if error["type"] == "missing":
        return "is missing"
    if "options" in error["loc"] and error["type"] != "value_error":
        return "is no text, number, true or false, or list of them"
    message = str(error["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _refused(
    path: Path, lines: Mapping[tuple[str, ...], int], key: Sequence[str | int], why: str
) -> ArgumentError:
    """The error for a key; its line is that of the innermost part that stands in the file."""
    whole = tuple(str(part) for part in key)
    shown = whole
    while whole and whole not in lines:
        whole = whole[:-1]
    place = f":{lines[whole]}" if whole else ""
    # Parts behind the one in the file name types of a union, unless the key is what is missing.
    named = shown[: len(whole) + 1] if "missing" in why else whole or shown
    name = ".".join(named)
    return ArgumentError(f"{path}{place}: {name} {why}" if name else f"{path}{place}: {why}")


def _check_steps(
    path: Path,
    lines: Mapping[tuple[str, ...], int],
    config: Config,
    known: Mapping[str, Sequence[str]],
) -> None:
    for name, step in config.steps.items():
        key = ("steps", name)
        if name not in OWN_STEPS:
            if step.options is not None:
                own = ", ".join(OWN_STEPS)
                why = f"is for {own}; this step needs a command"
                raise _refused(path, lines, (*key, "options"), why)
            if step.command is None:
                raise _refused(path, lines, key, "lacks its command")
            if not step.outputs:
                why = "lacks its outputs: by them it is known whether it is done"
                raise _refused(path, lines, key, why)
        else:
            if step.command is not None:
                why = f"is a step of ebm-encode: give options of `ebm-encode {OWN_STEPS[name]}`"
                raise _refused(path, lines, (*key, "command"), why)
            _check_options(path, lines, key, step.options or {}, known[OWN_STEPS[name]])
        _check_outputs(path, lines, key, step)
        if step.server in ("stop", "run") and config.server is None:
            raise _refused(path, lines, (*key, "server"), "needs a [server]")


def _check_outputs(
    path: Path, lines: Mapping[tuple[str, ...], int], key: tuple[str, ...], step: StepTable
) -> None:
    for place, output in enumerate(step.outputs):
        if "://" in output or glob.has_magic(output):
            why = "is a URL or pattern: outputs are files and folders on this machine"
            raise _refused(path, lines, (*key, "outputs", str(place)), why)
    if "://" in str((step.options or {}).get("output", "")):
        why = "is a URL: outputs of an iteration are on this machine"
        raise _refused(path, lines, (*key, "options", "output"), why)


def _check_options(
    path: Path,
    lines: Mapping[tuple[str, ...], int],
    step: tuple[str, ...],
    options: Mapping[str, Any],
    known: Sequence[str],
) -> None:
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, 1)
            hint = f"\nhint: is it {close[0]}?" if close else ""
            command = OWN_STEPS[step[-1]]
            raise _refused(
                path, lines, (*step, "options", option),
                f"is no option of `ebm-encode {command}`{hint}",
            )  # fmt: skip


def _filled(
    path: Path,
    lines: Mapping[tuple[str, ...], int],
    config: Config,
    variables: Mapping[str, str],
) -> Config:
    unknown = sorted(variables.keys() - config.variables.keys())
    if unknown:
        raise ArgumentError(
            f"{path}: has no variable {unknown[0]}\nhint: those in [variables] are"
            f" {', '.join(config.variables) or 'none'}"
        )
    known = {"python": sys.executable, **config.variables, **variables}
    whole = config.model_dump(by_alias=True, exclude_unset=True)
    try:
        for name, value in config.variables.items():
            require_plain(name, value)
        return Config.model_validate(filled_in(whole, IterationTable().folder, known))
    except PlaceholderError as error:
        raise _refused(path, lines, error.key, str(error)) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _refused(path, lines, first["loc"], _reason(first)) from error


def folder_of(config: Config, path: Path) -> Path:
    """The folder of an iteration; relative ones begin at the configuration file."""
    return placed(path.parent, config.iteration.folder)


def absolute(path: Path) -> Path:
    """An absolute path without dots; links are not followed, so that they may change."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def placed(directory: Path, given: str) -> Path:
    """Where a path of the configuration is; `~` is the home folder."""
    with suppress(RuntimeError):  # no such user
        return absolute(directory / Path(given).expanduser())
    return absolute(directory / given)
