"""What is written down of a server: before it is touched, and when it is started."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ebm_encode.pipeline.records import read_known

INTENT = "intent.json"
STARTED = "started.json"
STOPPING = "stopping.json"


@dataclass(frozen=True)
class Intent:
    """What is written down before a server is touched.

    Attributes:
        free: How its memory is freed.
        names: What it called its model before; none if it did not answer.
        free_before: Free bytes of the GPUs before; -1 if not measured.
    """

    free: str
    names: tuple[str, ...]
    free_before: int = -1

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The intent of a folder; `None` if there is none.

        Of a damaged one it is only known that it was there: nothing is resumed by it.

        Raises:
            InputError: If the file cannot be read.
        """
        path = folder / INTENT
        found = read_known(path, cls)
        return cls("unknown", ()) if found is None and path.exists() else found


@dataclass(frozen=True)
class Start:
    """With which model a server was started here.

    Attributes:
        model: The model; empty where `start` does not say which.
        digest: Digest of its folder at that time; empty for hub ids.
        url: Where it was to answer; empty if not known.
    """

    model: str = ""
    digest: str = ""
    url: str = ""
