"""What a SGLang server says of itself, and whether its hidden states can be used.

Facts of versions: `docs/servers.md`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from packaging.version import InvalidVersion, Version

from ebm_encode.errors import ServerError, UnsafeServerError

PER_REQUEST = Version("0.4.6")
"""Requests ask for hidden states; before, a flag of the server did so for everybody."""
EXTRA_KEY = Version("0.5.3")
"""A request can keep its prompts out of the prefix cache."""
NO_CRASH = Version("0.5.14")
"""Requests with and without hidden states in one batch no longer end the server."""
OWN_ROWS = Version("0.5.17")
"""Each reply holds only the rows of its prompt, whatever else the server works on."""

_TORCH_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class SglangInfo:
    """A server's own words.

    Attributes:
        version: Its version.
        model_path: The model, a path or name on the server's machine.
        dtype: What it computes in; `None` where it does not say.
        chunk: Prompts beyond this many tokens in sum are computed in parts, and only the last
            part's rows are returned; `None`: never.
        longest: Longest prompt in tokens; `None` where it does not say.
        settings: The values that tell whether hidden states can be used.
    """

    version: Version
    model_path: str
    dtype: str | None
    chunk: int | None
    longest: int | None
    settings: dict[str, Any]

    @property
    def keeps_rows_apart(self) -> bool:
        """Whether other requests cannot change what a reply holds."""
        return self.version >= OWN_ROWS

    @property
    def may_end(self) -> bool:
        """Whether a request for hidden states may end the server, if others generate."""
        return self.version < NO_CRASH

    @property
    def has_extra_key(self) -> bool:
        """Whether a request can keep its prompts out of the prefix cache."""
        return self.version >= EXTRA_KEY


Get = Callable[[str], dict[str, Any] | None]
"""Reads a path of the server; `None` where there is no such path."""

_SETTINGS = (
    "enable_return_hidden_states",
    "return_hidden_states_mode",
    "quantization",
    "speculative_algorithm",
    "kv_cache_dtype",
    "disable_radix_cache",
    "chunked_prefill_size",
    "page_size",
    "tp_size",
    "dp_size",
    "attention_backend",
    "weight_version",
)


def read_info(get: Get, where: str) -> SglangInfo:
    """Asks a server what it is, with `GET` requests only.

    Args:
        get: Reads a path.
        where: The server, for errors.

    Raises:
        ServerError: If it is no SGLang server, or of a version that is not known.
        UnsafeServerError: If it serves embeddings: a request for hidden states would end it.
    """
    model = get("/model_info") or get("/get_model_info")
    server = get("/server_info") or get("/get_server_info")
    if model is None or server is None or "version" not in server:
        raise ServerError(
            f"{where}: is no SGLang server: it does not answer /model_info and /server_info"
        )
    if model.get("is_generation") is False:
        raise UnsafeServerError(
            f"{where}: serves embeddings; a request for hidden states would end it"
            "\nhint: its own embeddings are those of the last token, normalised; start it without"
            " --is-embedding"
        )
    try:
        version = Version(str(server["version"]))
    except InvalidVersion as error:
        raise ServerError(f"{where}: SGLang of unknown version {server['version']!r}") from error
    return SglangInfo(
        version=version,
        model_path=str(model.get("model_path", server.get("model_path", ""))),
        dtype=_dtype(server.get("dtype")),
        chunk=_positive(server.get("chunked_prefill_size")),
        longest=_longest(get, server),
        settings={name: server[name] for name in _SETTINGS if name in server},
    )


def refusals(info: SglangInfo, *, dtype: str | None, exclusive: bool) -> list[str]:
    """Why a server's hidden states cannot be used, each with a `hint:` line; empty if they can.

    Args:
        info: What the server says.
        dtype: The encoder's compute dtype; `None`: any.
        exclusive: Whether nobody else uses the server, as the user says.
    """
    settings, found = info.settings, []
    if info.version < PER_REQUEST:
        found.append(
            f"SGLang {info.version} gives hidden states to all requests or none\nhint: SGLang"
            f" {OWN_ROWS} or newer"
        )
    elif not _gives_states(settings):
        found.append(
            "it was started without hidden states\nhint: start it with"
            " --enable-return-hidden-states"
        )
    if dtype is not None and info.dtype is not None and info.dtype != dtype:
        found.append(
            f"it computes in {info.dtype}, this encoder in {dtype}\nhint: use --dtype {info.dtype},"
            f" or start the server with --dtype {dtype}"
        )
    if settings.get("quantization") not in (None, "", "none"):
        found.append(
            f"its weights are quantised ({settings['quantization']})\nhint: start it without"
            " --quantization"
        )
    if settings.get("speculative_algorithm") not in (None, "", "none"):
        found.append(
            f"it decodes speculatively ({settings['speculative_algorithm']}), which changes what is"
            " returned\nhint: start it without --speculative-algorithm"
        )
    if not info.keeps_rows_apart and not exclusive:
        ends = ", and a request for states may end it" if info.may_end else ""
        found.append(
            f"SGLang {info.version} puts rows of other people's prompts into replies, with the"
            f" right count{ends}\nhint: SGLang {OWN_ROWS} or newer; or, if nobody else uses it,"
            " --server-exclusive"
        )
    return found


def _gives_states(settings: dict[str, Any]) -> bool:
    mode = settings.get("return_hidden_states_mode")
    if mode not in (None, "", "none", "off"):
        return bool(mode == "full")
    # Versions before the flag needed none.
    return bool(settings.get("enable_return_hidden_states", True))


def _dtype(value: Any) -> str | None:
    name = str(value).removeprefix("torch.")
    name = {"half": "float16", "float": "float32", "bf16": "bfloat16"}.get(name, name)
    return name if name in _TORCH_DTYPES else None


def _positive(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and value > 0 else None


def _longest(get: Get, server: dict[str, Any]) -> int | None:
    models = get("/v1/models") or {}
    lengths = [_positive(model.get("max_model_len")) for model in models.get("data", [])]
    known = [length for length in lengths if length]
    return known[0] if known else _positive(server.get("context_length"))
