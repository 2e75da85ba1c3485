"""Numbers on the command line, with their bounds."""

from collections.abc import Sequence

from cyclopts import Parameter, Token
from cyclopts.validators import Number

_LARGEST = 2**62
"""Above this a number no longer fits what counts rows and tokens."""


def whole(*, at_least: int) -> Parameter:
    """A whole number; `1.5` is refused, not rounded."""
    return Parameter(converter=_whole, validator=Number(gte=at_least, lte=_LARGEST))


def _whole(_: type, tokens: Sequence[Token]) -> int:
    try:
        return int(tokens[0].value)
    except ValueError as error:
        raise ValueError("expected a whole number") from error


SECONDS = Parameter(validator=Number(gt=0, lte=10**9))
PER_SECOND = Parameter(validator=Number(gt=0, lte=10**15))
