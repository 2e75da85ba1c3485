"""Parameters of the commands: names, numbers with their bounds, flags, engines."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from cyclopts import Parameter, Token
from cyclopts.validators import Number

from ebm_encode.errors import ArgumentError
from ebm_encode.options import EngineName, engine_name

MANY = Parameter(consume_multiple=True, negative="")
FLAG = Parameter(negative="", show_default=False)
JSON = Parameter(name="--json", negative="", show_default=False)
SECONDS = Parameter(validator=Number(gt=0, lte=10**9))
PER_SECOND = Parameter(validator=Number(gt=0, lte=10**15))

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


def _engine(_: type, tokens: Sequence[Token]) -> EngineName:
    return engine_name(tokens[0].value)


ENGINE = Parameter(converter=_engine)
"""An engine, also by a name that earlier versions had for it."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """Which version of a model on the hub is loaded, and whether its own code may run.

    Attributes:
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run code that comes with the model.
        code_revision: Commit of that code, if it is in another repository than the model.
    """

    revision: str | None = None
    trust_remote_code: Annotated[bool, FLAG] = False
    code_revision: str | None = None

    def arguments(self) -> dict[str, Any]:
        """The values by name, as `Encoder.load` and `load_tokenizer` take them."""
        return asdict(self)


def require_names(**given: str | Sequence[str] | None) -> None:
    """Refuses empty names of files, which would be the working folder.

    Raises:
        ArgumentError: With the name of the argument.
    """
    for argument, names in given.items():
        if "" in ([names] if isinstance(names, str) else names or []):
            raise ArgumentError(
                f"`{argument}`: is empty, expected a name\nhint: is a shell variable not set?"
            )
