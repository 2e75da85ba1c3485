"""Every option with its values, once, for the library and the command line. Imports nothing heavy.

A value that is not one of an option's is refused by `require`; former spellings of engines are
understood by `engine_name`.
"""

from typing import Any, Literal, cast, get_args

from ebm_encode.errors import ArgumentError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""Compute dtype; `auto` is the one in the model's `config.json`, else that of its weights."""

EngineName = Literal["auto", "shared-prefix", "shared-prefix-flex", "packed", "padded", "unbatched"]
"""Execution strategy; `auto` is the fastest one that is exact for the model."""

Backend = Literal["hf", "remote", "sglang", "vllm"]
"""What computes embeddings: the model in this process, or a server of a kind."""

Compile = Literal["auto", "on", "off"]
"""Whether torch compiles the model's layers; `auto`: where calibration finds that it pays."""

Pooling = Literal["mean", "last"]
"""How the hidden states of a prompt's tokens become one embedding."""

Decoding = Literal["sample", "beam"]
"""How a policy finds tactics: independent samples, or a beam search."""

Overlong = Literal["error", "skip", "truncate", "truncate-state"]
"""What is done about prompts longer than the longest length."""

StateFormat = Literal["as-given", "lean", "pantograph", "burnqed"]
"""The printed form of the states that are encoded; `as-given`: texts are taken as they are."""

PrintedFormat = Literal["lean", "pantograph", "burnqed"]
"""The printed form that states are in, where it is known."""

InvalidRows = Literal["error", "skip"]
"""What is done about input rows that hold no text."""

OpenMode = Literal["auto", "memory", "mapped"]
"""Where the embeddings of an opened cache are: in this process, or in the file's pages."""

DEFAULT_COLUMN = "state_pp"
"""The column or JSON field that holds the state."""

_FORMER_ENGINES = {"alone": "unbatched"}
_REMOVED_ENGINES = {
    "shared-prefix-mask": "it was removed: use auto, which takes padded for the models that had it"
}


def require(name: str, value: Any, option: Any) -> None:
    """Refuses a value that is not one of an option's.

    Args:
        name: Of the argument.
        value: What was given for it.
        option: One of the `Literal` types of this module.

    Raises:
        ArgumentError: Listing the values there are.
    """
    if value not in get_args(option):
        *others, last = get_args(option)
        raise ArgumentError(f"{name} {value!r}: expected {', '.join(others)} or {last}")


def require_backend(backend: str, server: Any, *, token: str | None, exclusive: bool) -> None:
    """Refuses options of servers that do not fit each other.

    Args:
        backend: A kind of server, or `hf` for none.
        server: Its URL, or for `sglang` an engine of this process.
        token: Its bearer token.
        exclusive: Whether nobody else uses it.

    Raises:
        ArgumentError: Naming the argument.
    """
    require("backend", backend, Backend)
    servers = "a `backend` that is a server: remote, sglang or vllm"
    if backend == "hf":
        if server is not None:
            raise ArgumentError(f"`server` {server}: goes with {servers}")
        if token is not None:
            raise ArgumentError(f"`server_token`: goes with {servers}")
    elif server is None or server == "":
        raise ArgumentError(f"`backend` {backend}: needs a server\nhint: give its URL as `server`")
    elif not isinstance(server, str) and backend != "sglang":
        raise ArgumentError(f"`server`: expected a URL, got a {type(server).__name__}")
    if exclusive and backend != "sglang":
        raise ArgumentError(f"`server_exclusive` goes with `backend` sglang, not {backend}")


def is_token(token: str) -> bool:
    """Whether a text can be sent as bearer token."""
    return token.isascii() and token.isprintable() and token != "" and " " not in token


def engine_name(given: str) -> EngineName:
    """The engine of a name, also of one that earlier versions had for it.

    Raises:
        ArgumentError: If there is no such engine.
    """
    name = _FORMER_ENGINES.get(given, given)
    if name in _REMOVED_ENGINES:
        raise ArgumentError(f"engine {given!r}: there is none\nhint: {_REMOVED_ENGINES[name]}")
    require("engine", name, EngineName)
    return cast("EngineName", name)
