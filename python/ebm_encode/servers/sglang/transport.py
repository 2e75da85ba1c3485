"""How a SGLang server is reached: over HTTP, or as an engine in this process."""

import importlib.metadata
import threading
from dataclasses import asdict, is_dataclass
from typing import Any, Protocol

from ebm_encode.errors import ServerError, one_line
from ebm_encode.servers.http import ServerClient


class Transport(Protocol):
    """A way to a server.

    Attributes:
        where: The server, for errors.
    """

    where: str

    def get(self, path: str) -> dict[str, Any] | None:
        """The JSON object at a path; `None` where there is none."""

    def generate(self, body: dict[str, Any]) -> Any:
        """The reply to a request for generation.

        Raises:
            ServerError: If the server cannot be reached, went away, or answered with an error.
        """

    def running(self) -> int:
        """Requests that the server works on or has in its queue; 0 where it does not say."""


class HttpTransport:
    """A server at a URL."""

    def __init__(self, client: ServerClient) -> None:
        self.where = client.url
        self._client = client

    def get(self, path: str) -> dict[str, Any] | None:
        """The JSON object at a path; `None` where there is none."""
        return self._client.get_json(path, missing_ok=True)

    def generate(self, body: dict[str, Any]) -> Any:
        """The reply to a request for generation; never repeated, as it may have ended the server.

        Raises:
            ServerError: If the server cannot be reached, went away, or answered with an error.
        """
        return self._client.post_json("/generate", body, retry=False)

    def running(self) -> int:
        """Requests that the server works on or has in its queue; 0 where it does not say."""
        loads = self.get("/v1/loads")
        if loads is not None:
            entries = [entry for entry in loads.get("loads", []) if isinstance(entry, dict)]
            names = ("num_running_reqs", "num_waiting_reqs")
            return sum(int(entry.get(name) or 0) for entry in entries for name in names)
        load = self.get("/get_load")
        return int(load.get("load") or 0) if load is not None else 0


class InProcess:
    """An `sglang.Engine` of this process.

    Args:
        engine: The engine. It must have been made with `enable_return_hidden_states=True`.
    """

    where = "sglang.Engine"

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        # It runs its event loop, which one caller may do at a time.
        self._lock = threading.Lock()

    def get(self, path: str) -> dict[str, Any] | None:
        """What a server would answer at a path; `None` where nothing is known."""
        arguments = self._engine.server_args
        settings: dict[str, Any] = (
            asdict(arguments) if is_dataclass(arguments) else dict(vars(arguments))  # type: ignore[arg-type]
        )
        if path == "/model_info":
            generates = not settings.get("is_embedding")
            return {"model_path": settings.get("model_path"), "is_generation": generates}
        if path == "/server_info":
            return settings | {"version": importlib.metadata.version("sglang")}
        return None

    def generate(self, body: dict[str, Any]) -> Any:
        """The engine's answer.

        Raises:
            ServerError: If it fails.
        """
        arguments = {k: v for k, v in body.items() if k != "rid"}
        try:
            with self._lock:
                found = self._engine.generate(**arguments)
        except Exception as error:  # the engine's own kinds
            raise ServerError(f"{self.where}: {one_line(error)}") from error
        # It makes other ids; the order of the answer is that of the prompts.
        for item, request_id in zip(found, body["rid"], strict=False):
            if isinstance(item, dict) and isinstance(item.get("meta_info"), dict):
                item["meta_info"]["id"] = request_id
        return found

    def running(self) -> int:
        """0: an engine of this process has no other callers."""
        return 0
