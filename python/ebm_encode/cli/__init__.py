"""The command line `ebm-encode`.

Exit codes: 0 good, 1 a check failed, 2 bad usage or input, 130 interrupted, 141 (as for any Unix
tool) when the reader of the output went away.
"""

import io
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import cyclopts
from rich.console import Console
from rich.logging import RichHandler

from ebm_encode import __version__
from ebm_encode.cli.audit import audit
from ebm_encode.cli.compact import compact
from ebm_encode.cli.console import stderr_console
from ebm_encode.cli.doctor import doctor
from ebm_encode.cli.encode import encode
from ebm_encode.cli.evaluate_head import evaluate_head
from ebm_encode.cli.inspect import inspect
from ebm_encode.cli.iterate import iterate
from ebm_encode.cli.option_names import as_options
from ebm_encode.cli.plan import plan
from ebm_encode.cli.serve import serve
from ebm_encode.cli.train_head import train_head
from ebm_encode.errors import EbmEncodeError

INTERRUPTED = 130
CLOSED_PIPE = 141


class _Output(Console):
    """Standard output, whose reader may go away."""

    def on_broken_pipe(self) -> NoReturn:
        """Rich would exit with 1, which here means that a check failed."""
        raise BrokenPipeError


app = cyclopts.App(
    name="ebm-encode",
    help="""Encode Lean proof states (or any text) with any Hugging Face causal LM, and verify it.

    An embedding is the mean-pooled last hidden state. `encode` writes a Parquet cache of them, and
    `plan` shows what that would cost; `inspect` shows what a cache holds, `audit` validates every
    row, `compact` merges many parts into one. `train-head` trains an energy head on a cache and
    recorded searches, and `evaluate-head` shows what it is worth. `serve` embeds over HTTP, and
    `doctor` tells whether another server's embeddings can be used. `iterate` runs a whole training
    iteration.
    """,
    version=__version__,
    console=_Output(),
    error_console=stderr_console(),
    help_format="markdown",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
COMMANDS = {
    own.__name__.replace("_", "-"): own
    for own in (
        *(encode, plan, inspect, audit, compact, train_head, evaluate_head),
        *(serve, doctor, iterate),
    )
}
for _name, _command in COMMANDS.items():
    app.command(_command, name=_name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    A host may call this, on any thread: signal handlers, logging and standard output are as before
    when it returns.
    """
    console = stderr_console()
    with _logging_to(console), _polite_end(), _any_text():
        return _run(sys.argv[1:] if arguments is None else arguments, console)


def _run(arguments: Sequence[str], console: Console) -> int:
    try:
        code = app(list(arguments), exit_on_error=False, print_error=True)
        if sys.stdout is not None:
            sys.stdout.flush()
    except cyclopts.CycloptsError:
        return 2  # cyclopts has printed what is wrong
    except EbmEncodeError as error:
        _tell(console, as_options(str(error)))
        return error.exit_code
    except BrokenPipeError:  # the reader has seen enough (`| head`)
        return CLOSED_PIPE
    except OSError as error:  # of the system, not of a cache: standard output on a full disk
        _tell(console, str(error))
        return 2
    except KeyboardInterrupt:
        console.print("interrupted", highlight=False)
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _tell(console: Console, error: str) -> None:
    console.print(f"error: {error}", markup=False, emoji=False, highlight=False, soft_wrap=True)


@contextmanager
def _any_text() -> Iterator[None]:
    """Has standard output take any text: a state is text that a terminal may not know."""
    stdout = sys.stdout
    if not isinstance(stdout, io.TextIOWrapper):  # a host's own
        yield
        return
    before = stdout.errors
    stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with suppress(OSError):  # it flushes, and its reader may have gone away
            stdout.reconfigure(errors=before)


@contextmanager
def _polite_end() -> Iterator[None]:
    """Takes a polite request to end like Ctrl-C: what is done is saved first."""
    before = signal.getsignal(signal.SIGTERM)
    # Only the main thread can set handlers, and those not of Python cannot be put back.
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    raise KeyboardInterrupt


@contextmanager
def _logging_to(console: Console) -> Iterator[None]:
    """Sends the package's log to the console; a host that calls `main` has its own back after."""
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S")
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    handler.addFilter(_in_options)
    package = logging.getLogger("ebm_encode")
    before = package.handlers, package.level, package.propagate
    package.handlers, package.propagate = [handler], False
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.handlers, _, package.propagate = before
        package.setLevel(before[1])


def _in_options(record: logging.LogRecord) -> bool:
    """Has a message of the library name options, not arguments."""
    record.msg, record.args = as_options(record.getMessage()), None
    return True
