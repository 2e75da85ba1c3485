"""Templates: the text around a state.

Knows nothing of tokenizers except which markers one may know as special tokens.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from ebm_encode.errors import TemplateError

PLACE = "{state}"

_NAMED = {
    "raw": PLACE,
    "deepseek-prover-v2": (
        "<｜begin▁of▁sentence｜><｜User｜>Complete the following Lean 4 code:\n\n"
        "```lean4\n/- tactic state:\n{state}\n-/\n```<｜Assistant｜>"
    ),
}

# What looks like a control marker: <|…|> in either kind of bar, also with the angle brackets lost;
# <s>, </s>, <start_of_turn>; [INST].
_MARKER = re.compile(r"<?[|｜][^\s|｜<>{}]+[|｜]>?|</?[a-z_]+>|\[/?[A-Z_]{3,}\]")


@dataclass(frozen=True)
class Template:
    """A text with `{state}` in it once or more; everything else stands as it is.

    Attributes:
        name: A name of ours, or the path of the file it came from.
        text: The whole text.
    """

    name: str
    text: str

    @classmethod
    def load(cls, name_or_path: str) -> "Template":
        """Takes a template by name, or from a UTF-8 file, byte for byte.

        Raises:
            TemplateError: If there is neither, or no `{state}` in it.
        """
        if name_or_path in _NAMED:
            return cls(name_or_path, _NAMED[name_or_path])
        try:
            text = Path(name_or_path).read_bytes().decode("utf-8")
        except OSError as error:
            names = ", ".join(_NAMED)
            raise TemplateError(
                f"`template` {name_or_path}: neither a file ({error.strerror}) nor one of {names}"
            ) from error
        except UnicodeDecodeError as error:
            raise TemplateError(f"`template` {name_or_path}: not UTF-8: {error}") from error
        return cls(name_or_path, text)

    def __post_init__(self) -> None:
        if PLACE not in self.text:
            raise TemplateError(f"`template` {self.name}: has no {PLACE}, the place for the state")

    def prompt(self, state: str) -> str:
        """The prompt of a state. Braces in the state or elsewhere mean nothing."""
        return self.text.replace(PLACE, state)

    def markers(self) -> list[str]:
        """What in the text looks like a control marker, each once, in order."""
        return list(dict.fromkeys(_MARKER.findall(self.text)))


def looks_like_marker(text: str) -> bool:
    """Whether the whole text looks like a control marker."""
    return _MARKER.fullmatch(text) is not None
