"""`python -m ebm_encode`, and the command `ebm-encode`."""

import sys


def run() -> int:
    """Runs the command line; also an interrupt while modules are imported ends it quietly."""
    try:
        from ebm_encode.cli import main  # noqa: PLC0415

        return main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return 130


if __name__ == "__main__":
    sys.exit(run())
