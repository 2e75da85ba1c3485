"""Which kind of server is at a URL."""

from typing import Literal

from ebm_encode.errors import ServerError
from ebm_encode.servers.http import ServerClient

Kind = Literal["remote", "sglang", "vllm"]


def kind_of(client: ServerClient) -> Kind:
    """Finds out by `GET` requests only.

    Raises:
        ServerError: If it cannot be reached, or is none of the kinds that this package knows.
    """
    info = client.get_json("/info", missing_ok=True)
    if info is not None and info.get("software") == "ebm-encode":
        return "remote"
    if any(client.get_json(path, missing_ok=True) for path in ("/model_info", "/get_model_info")):
        return "sglang"
    if client.get_json("/version", missing_ok=True) is not None:
        return "vllm"
    raise ServerError(
        f"{client.url}: is no server that this package knows: neither SGLang (/model_info), vLLM"
        " (/version) nor `ebm-encode serve` (/info)"
    )
