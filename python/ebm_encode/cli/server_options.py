"""The options of commands that use an inference server."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ebm_encode.cli.parameters import FLAG
from ebm_encode.errors import ArgumentError
from ebm_encode.options import Backend, is_token, require_backend

TOKEN_VARIABLE = "EBM_ENCODE_TOKEN"  # noqa: S105  (its name)
"""Environment variable with the bearer token of a server."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What computes the embeddings.

    Attributes:
        backend: hf: the model in this process. Or a server, whose replies are compared with that
            model: remote (`ebm-encode serve`), sglang, vllm. The model is then loaded on the CPU,
            unless --device says otherwise.
        server: URL of the server.
        server_token_file: File with the server's bearer token; the environment variable
            EBM_ENCODE_TOKEN may hold it too.
        server_exclusive: Nobody else uses the server. SGLang before 0.5.17 puts other people's rows
            into replies, and is refused without this.
    """

    backend: Backend = "hf"
    server: str | None = None
    server_token_file: Path | None = None
    server_exclusive: Annotated[bool, FLAG] = False

    def arguments(self) -> dict[str, Any]:
        """The values by name, as `Encoder.load` takes them."""
        if self.backend == "hf" and self.server_token_file is not None:
            raise ArgumentError(
                "`server_token_file`: goes with a `backend` that is a server: remote, sglang or"
                " vllm"
            )
        token = None if self.backend == "hf" else read_token(self.server_token_file)
        require_backend(self.backend, self.server, token=token, exclusive=self.server_exclusive)
        return {
            "backend": self.backend,
            "server": self.server,
            "server_token": token,
            "server_exclusive": self.server_exclusive,
        }


def read_token(file: Path | None, name: str = "server_token_file") -> str | None:
    """The bearer token in a file, else in the environment; `None` where neither has one.

    Args:
        file: The file.
        name: The argument that named it, for errors.

    Raises:
        ArgumentError: If the file cannot be read, or holds no token.
    """
    if file is None:
        token, where = os.environ.get(TOKEN_VARIABLE, "").strip(), TOKEN_VARIABLE
        if not token:
            return None
    else:
        where = f"`{name}` {file}"
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ArgumentError(f"{where}: {error}") from error
    if not is_token(token):
        raise ArgumentError(f"{where}: expected one token of ASCII characters, without spaces")
    return token
