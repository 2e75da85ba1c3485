"""Names of files on the command line, which are never empty."""

from collections.abc import Sequence

from cyclopts import Parameter

from ebm_encode.errors import ArgumentError

MANY = Parameter(consume_multiple=True, negative="")


def require_names(**named: str | Sequence[str] | None) -> None:
    """Refuses empty names, which would be the working folder.

    Raises:
        ArgumentError: With the name of the argument.
    """
    for argument, names in named.items():
        if "" in ([names] if isinstance(names, str) else names or []):
            raise ArgumentError(
                f"`{argument}`: is empty, expected a name\nhint: is a shell variable not set?"
            )
