"""What a vLLM server says of itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ebm_encode.errors import ServerError

Get = Callable[[str], dict[str, Any] | None]


@dataclass(frozen=True)
class VllmInfo:
    """A server's own words.

    Attributes:
        version: Its version.
        model: The name by which requests ask for the model.
        root: The model, a path or name on the server's machine.
        longest: Longest prompt in tokens; `None` where it does not say.
        dtype: What it computes in; `None` where it does not say, as without developer mode.
        pooling: How it pools, as it says; `None` where it does not say.
    """

    version: str
    model: str
    root: str
    longest: int | None
    dtype: str | None
    pooling: str | None


def read_info(get: Get, where: str) -> VllmInfo:
    """Asks a server what it is, with `GET` requests only.

    Raises:
        ServerError: If it is no vLLM server, or serves no model, or several.
    """
    version, models = get("/version"), get("/v1/models")
    if version is None or models is None or "version" not in version:
        raise ServerError(f"{where}: is no vLLM server: it does not answer /version and /v1/models")
    served = [model for model in models.get("data", []) if not model.get("parent")]
    if len(served) != 1:
        names = ", ".join(str(model.get("id")) for model in served) or "none"
        raise ServerError(f"{where}: serves {len(served)} models ({names}), expected one")
    (model,) = served
    settings = get("/server_info?config_format=json") or {}
    config = settings.get("vllm_config", settings)
    pooler = (
        config.get("pooler_config") or config.get("model_config", {}).get("pooler_config") or {}
    )
    pooling = pooler.get("seq_pooling_type") or pooler.get("pooling_type")
    dtype = str(config.get("model_config", {}).get("dtype", "")).removeprefix("torch.")
    longest = model.get("max_model_len")
    return VllmInfo(
        version=str(version["version"]),
        model=str(model["id"]),
        root=str(model.get("root", "")),
        longest=int(longest) if isinstance(longest, int) and longest > 0 else None,
        dtype=dtype if dtype in ("float32", "bfloat16", "float16") else None,
        pooling=None if pooling is None else str(pooling),
    )
