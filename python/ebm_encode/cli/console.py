"""Where people read of progress and problems."""

from rich.console import Console


def stderr_console() -> Console:
    """The console on standard error; results go to standard output."""
    return Console(stderr=True)
