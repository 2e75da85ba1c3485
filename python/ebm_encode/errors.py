"""Every exception this package raises on purpose, under one base class.

The extension raises the same classes, so `except EbmEncodeError` catches all of them.
"""

import sys
from importlib import import_module


class EbmEncodeError(Exception):
    """Base class. `exit_code` is what the command line exits with."""

    exit_code = 2


class ArgumentError(EbmEncodeError, ValueError):
    """An option or argument has no meaning or does not fit the others."""


class InputError(EbmEncodeError):
    """An input file is missing, unreadable, of another type, or empty."""


class TemplateError(EbmEncodeError):
    """A template is missing or has no place for the state."""


class ModelError(EbmEncodeError):
    """A model cannot be loaded, does not run, or is not one that this package can use."""


class AdapterError(ModelError):
    """An adapter cannot be read, does not fit its base model, or cannot be merged into it."""


class StateFormatError(EbmEncodeError):
    """States are not in the printed form that they are said to be in, or cannot be converted."""


class EncodingError(EbmEncodeError):
    """A state cannot be encoded: too long, without tokens, or too large for the memory."""


class TextFailedError(EncodingError):
    """The model fails on a text at batch size 1 too, and works on others."""


class ServerError(EbmEncodeError):
    """An inference server cannot be reached, went away, or answered with an error."""


class PipelineError(EbmEncodeError):
    """A step of an iteration failed, or a process of it cannot be started or ended."""

    exit_code = 1


class UnreachableServerError(ServerError):
    """Nothing answers at a server's address."""


class LibraryError(EbmEncodeError, ImportError):
    """A library that models need is missing, or cannot be imported."""


class CacheNotFoundError(EbmEncodeError, FileNotFoundError):
    """There is no cache at the path."""


class UnknownStateError(EbmEncodeError, LookupError):
    """A cache was asked for states that it does not have."""


class CacheIOError(EbmEncodeError, OSError):
    """The operating system refused to read or write a cache (a full disk, a missing right)."""


class CacheFormatError(EbmEncodeError):
    """The file is not a cache: not Parquet, damaged, or of another schema."""


class HeadNotFoundError(EbmEncodeError, FileNotFoundError):
    """There is no head file at the path."""


class HeadFormatError(EbmEncodeError):
    """The file is not a head, is damaged, or is of a later version."""


class IdentityMismatchError(EbmEncodeError):
    """Two things made by different encoders were about to be combined."""


class OutputLockedError(EbmEncodeError):
    """Another process is writing the same output."""


class OutputConflictError(OutputLockedError):
    """Another process changed the output after this one opened it; nothing was replaced."""


class TrainingError(EbmEncodeError):
    """Training a head came to nothing: the loss or the energies are no numbers."""


class CheckFailedError(EbmEncodeError):
    """A check of embeddings failed: wrong numbers, not wrong use. A base class."""

    exit_code = 1


class BadRowsError(CheckFailedError):
    """Embeddings are bad: NaN or infinite, zero, norm outliers, or another state's."""


class RejectedRowsError(CheckFailedError):
    """An earlier run's embeddings failed verification and may not be resumed."""


class UnsafeServerError(CheckFailedError):
    """An inference server's replies are wrong, or may be; none of them is used."""


class VerificationError(CheckFailedError):
    """Embeddings of this run differ from the unbatched reference."""


def one_line(error: BaseException) -> str:
    """What an exception of other software says, on one line, with its kind unless that is clear."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else ""
    return first if first and isinstance(error, OSError) else f"{type(error).__name__}: {first}"


def require_model_libraries() -> None:
    """Imports torch and transformers, before anything that would fail within them.

    Raises:
        LibraryError: If one cannot be imported; with the reason.
    """
    for name in ("torch", "transformers"):
        try:
            import_module(name)
        except Exception as error:  # a library that is half installed raises anything
            raise LibraryError(
                f"{name} cannot be imported by {sys.executable}: {one_line(error)}\n"
                "hint: install ebm-encode and what it needs in this environment again"
            ) from error
