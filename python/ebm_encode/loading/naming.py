"""Errors that name the model, and transformers' options for code that comes with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ebm_encode.errors import ModelError, one_line
from ebm_encode.loading.model_files import foreign_code

_COMMIT_DIGITS = 40


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Whatever is raised within becomes a `ModelError` that names the model."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # a damaged folder makes transformers raise anything
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{name}: requires custom code that comes with it\n"
                "hint: if you trust it, pass `trust_remote_code=True`"
            ) from error
        raise ModelError(f"{name}: cannot be loaded: {one_line(error)}") from error


def code_options(
    name: str, folder: Path, code_revision: str | None, *, trust_remote_code: bool
) -> dict[str, Any]:
    """The options of transformers for code that comes with a model.

    Raises:
        ModelError: If it comes from another repository, and not from one commit of it.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    foreign = foreign_code(folder, name) if trust_remote_code else []
    if code_revision is not None:
        if len(code_revision) != _COMMIT_DIGITS or set(code_revision) - set("0123456789abcdef"):
            raise ModelError(
                f"`code_revision` {code_revision}: expected a commit, 40 hex digits; branches and"
                " tags move"
            )
        options["code_revision"] = code_revision
    elif foreign:
        raise ModelError(
            f"{name}: its code comes from another repository ({', '.join(foreign)}), whatever that"
            " holds at the time\nhint: pin it with `code_revision`, or copy the files into"
            " the model's folder and take the repository out of auto_map"
        )
    return options
