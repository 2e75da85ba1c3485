"""`python -m ebm_encode`, and the command `ebm-encode`."""

import os
import sys


def run() -> int:
    """Runs the command line; also an interrupt while modules are imported ends it quietly."""
    try:
        from ebm_encode.cli import main  # noqa: PLC0415

        code = main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return 130
    _drop_output_that_nobody_takes()
    return code


def _drop_output_that_nobody_takes() -> None:
    """Python would complain of it at exit, and end with another exit code."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:  # a closed pipe, or a full disk; `main` has told it
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


if __name__ == "__main__":
    sys.exit(run())
