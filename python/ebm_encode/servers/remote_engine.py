"""The embeddings of `ebm-encode serve` as an engine."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebm_encode._core import Identity
from ebm_encode.engines.server import ServerEngine
from ebm_encode.errors import IdentityMismatchError
from ebm_encode.options import Pooling
from ebm_encode.servers.remote import RemoteEncoder


class RemoteEngine(ServerEngine):
    """Runs token sequences through a server of this package.

    A sequence that it has no valid embedding for becomes NaN, and so goes to the encoder's own
    model at batch size 1.

    Args:
        url: The server.
        pooling: As the encoder's.
        token: The bearer token it wants, if any.
    """

    name = "remote"

    def __init__(self, url: str, *, pooling: Pooling, token: str | None) -> None:
        self._remote = RemoteEncoder(url, token=token)
        super().__init__(
            pooling,
            request_tokens=None,
            request_sequences=self._remote.max_texts,
            longest=None,
            gives_states=False,
            requests=2,
        )
        self._url = url

    def require_identity(self, identity: Identity) -> None:
        """Refuses a server with another encoder: its embeddings are the encoder's own, or wrong.

        Raises:
            IdentityMismatchError: With what differs.
        """
        differences = identity.differences(self._remote.identity)
        if differences:
            listed = "; ".join(
                f"{name}: {here} here, {there} there" for name, here, there in differences
            )
            raise IdentityMismatchError(
                f"{self._url}: serves another encoder: {listed}\nhint: give the same options here"
                " as to `ebm-encode serve`"
            )

    def describe(self) -> dict[str, Any]:
        """The server, for provenance; JSON values only."""
        return {"server": self._url, "engine": self._remote.info.get("engine")}

    def ask(self, sequences: Sequence[NDArray[np.uint32]]) -> list[NDArray[np.float32]]:
        """The embeddings of some prompts, float32 `[dim]` each; NaN where there is none."""
        return list(self._remote.encode_tokens(sequences))
