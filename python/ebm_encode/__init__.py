"""Checked embeddings of proof states, and energy heads that score them.

The readers and `RemoteEncoder` load without torch; `Encoder` and `EmbeddingDataset` bring it in on
first use.
"""

import os
from importlib import metadata
from typing import TYPE_CHECKING, Any

from ebm_encode import _core
from ebm_encode._core import EmbeddingCache, EnergyHead, Identity, MappedCache
from ebm_encode.errors import EbmEncodeError
from ebm_encode.opening import open_cache

if TYPE_CHECKING:
    from ebm_encode.dataset import EmbeddingDataset
    from ebm_encode.encoder import Encoder
    from ebm_encode.servers.remote import RemoteEncoder

__all__ = [
    "EbmEncodeError",
    "EmbeddingCache",
    "EmbeddingDataset",
    "Encoder",
    "EnergyHead",
    "Identity",
    "MappedCache",
    "RemoteEncoder",
    "__version__",
    "open_cache",
]

__version__ = _core.__version__

if "OMP_WAIT_POLICY" not in os.environ:
    # Between two operations torch's threads wait in a loop, for about 15 ms unless told otherwise,
    # and hold the cores that attention needs; 10,000 turns take half a millisecond. Read by torch's
    # OpenMP when it is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if metadata.version("ebm-encode") != __version__:
    _installed = metadata.version("ebm-encode")
    _message = f"ebm-encode {_installed} found an extension of version {__version__}; reinstall it"
    raise ImportError(_message)


def __getattr__(name: str) -> Any:
    """Imports what needs torch when it is first asked for."""
    if name == "Encoder":
        from ebm_encode.encoder import Encoder  # noqa: PLC0415

        return Encoder
    if name == "RemoteEncoder":
        from ebm_encode.servers.remote import RemoteEncoder  # noqa: PLC0415

        return RemoteEncoder
    if name == "EmbeddingDataset":
        from ebm_encode.dataset import EmbeddingDataset  # noqa: PLC0415

        return EmbeddingDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
