"""`ebm-encode iterate`: a training iteration."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ebm_encode.cli.parameters import FLAG, JSON
from ebm_encode.errors import ArgumentError


def iterate(
    config: Path,
    /,
    *,
    first: Annotated[str | None, Parameter(name="--from")] = None,
    until: str | None = None,
    dry_run: Annotated[bool, FLAG] = False,
    recover: Annotated[bool, FLAG] = False,
    init: Annotated[bool, FLAG] = False,
    variables: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    notify: str | None = None,
    quiet: Annotated[bool, FLAG] = False,
    json_summary: Annotated[bool, JSON] = False,
) -> int:
    """Run a training iteration: train the model, encode, train the head, evaluate.

    Steps that are done are not repeated: a step runs if its command, the contents of its inputs or
    those of its outputs are not as recorded. Interrupt it any time; the same command resumes. The
    inference server is brought back in every way out, and after a crash by the next run.

    Example: `ebm-encode iterate iteration.toml`

    Args:
        config: TOML file with the steps; `--init` writes an example with all keys.
        first: Begin with this step; those before it must be done.
        until: End with this step.
        dry_run: Print which steps would run and why; change nothing.
        recover: Only end what an interrupted run left behind, and bring the server back.
        init: Write a commented example to CONFIG, which must not exist.
        variables: NAME=VALUE: replace a value of `[variables]`; may be repeated.
        notify: Command to run at the end, with EBM_ENCODE_STATE (done, failed, interrupted),
            EBM_ENCODE_MESSAGE and EBM_ENCODE_SUMMARY (a JSON file) in its environment.
        quiet: Show no progress and no summary.
        json_summary: Print the summary as JSON on standard output.
    """
    from ebm_encode.cli import iterating  # noqa: PLC0415  (other commands need nothing of it)

    if init:
        return iterating.write_example(config)
    if recover and dry_run:
        raise ArgumentError("`recover` and `dry_run` exclude each other")
    iteration, notified = iterating.iteration_of(config, variables or [])
    if recover:
        told = iteration.recover()
        print(f"server: {told}" if told else "no [server] to bring back")  # noqa: T201
        return 0
    if dry_run:
        return iterating.show_plan(iteration, first, until, as_json=json_summary)
    return iterating.run(
        iteration, first, until, notify=notify or notified, quiet=quiet, as_json=json_summary
    )
