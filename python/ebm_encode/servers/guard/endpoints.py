"""How servers give their memory back and take it again, and when they may be asked to.

What their calls do and say, in which versions, stands in `docs/servers.md`.
"""

import time
from abc import ABC, abstractmethod

from ebm_encode.errors import ServerError, UnsafeServerError
from ebm_encode.servers.http import ServerClient
from ebm_encode.servers.sglang.transport import HttpTransport

_POLL_SECONDS = 0.2


class MemoryEndpoints(ABC):
    """The calls of one server.

    Args:
        client: The server.
        patience: Seconds to wait until it is idle, or answers again.

    Attributes:
        resume_is_harmless: Whether it may be resumed where it is not known to have released.
    """

    resume_is_harmless: bool

    def __init__(self, client: ServerClient, *, patience: float) -> None:
        self.client = client
        self._patience = patience

    @abstractmethod
    def require_able(self) -> None:
        """Reads the server's options.

        Raises:
            UnsafeServerError: If it would not give memory back, or would lose its weights.
        """

    def read_options(self) -> None:  # noqa: B027  (most need none)
        """Reads what `resume` needs to know of a release by another process."""

    def wait_until_idle(self) -> None:  # noqa: B027  (most need not wait)
        """Waits where giving memory back while it works would end the server.

        Raises:
            ServerError: If it works for too long.
        """

    @abstractmethod
    def release(self) -> None:
        """Has the server give memory back."""

    @abstractmethod
    def resume(self) -> None:
        """Has the server take it again."""

    @abstractmethod
    def answers(self) -> None:
        """Sends a real request of one token; health alone says nothing.

        Raises:
            ServerError: If there is no right answer.
        """

    def until_it_answers(self) -> None:
        """Waits until a real request is answered.

        Raises:
            ServerError: If it is not in time.
        """
        end = time.monotonic() + self._patience
        while True:
            try:
                return self.answers()
            except ServerError as error:
                if time.monotonic() > end:
                    raise ServerError(
                        f"{self.client.url}: has its memory back and does not answer ({error})"
                        "\nhint: restart it"
                    ) from error
            time.sleep(_POLL_SECONDS)


class SglangMemory(MemoryEndpoints):
    """`/release_memory_occupation` and `/resume_memory_occupation`.

    Weights are released only where the server keeps a copy of them; the KV cache always may be.
    """

    resume_is_harmless = False
    _tags: tuple[str, ...] = ()

    def require_able(self) -> None:
        """Reads `/server_info`."""
        get = HttpTransport(self.client).get
        info = get("/server_info") or get("/get_server_info") or {}
        if info.get("enable_memory_saver") is not True:
            raise UnsafeServerError(
                f"{self.client.url}: was started without --enable-memory-saver: it would say that"
                " it gave memory back, and give none, or end\nhint: start it with"
                " --enable-memory-saver; with --enable-weights-cpu-backup it releases weights too"
            )
        weights = ("weights",) if info.get("enable_weights_cpu_backup") is True else ()
        self._tags = ("kv_cache", *weights)

    def read_options(self) -> None:
        """Which tags were released depends on the options that it was started with."""
        self.require_able()

    def wait_until_idle(self) -> None:
        """Waits until nothing runs and nothing is queued."""
        transport, end = HttpTransport(self.client), time.monotonic() + self._patience
        while running := transport.running():
            if time.monotonic() > end:
                raise ServerError(
                    f"{self.client.url}: still works on {running} requests after"
                    f" {self._patience:.0f} s, and giving memory back now would end it\nhint: stop"
                    " what sends them"
                )
            time.sleep(_POLL_SECONDS)

    def release(self) -> None:
        """Releases the tags that lose nothing."""
        self.client.post_json("/release_memory_occupation", {"tags": list(self._tags)}, retry=False)

    def resume(self) -> None:
        """With the tags of the release: resuming anything else ends the server."""
        self.client.post_json("/resume_memory_occupation", {"tags": list(self._tags)}, retry=False)

    def answers(self) -> None:
        """Generates one token."""
        reply = self.client.post_json(
            "/generate",
            {"input_ids": [1], "sampling_params": {"temperature": 0, "max_new_tokens": 1}},
            retry=False,
        )
        if not isinstance(reply, dict) or "meta_info" not in reply:
            raise ServerError(f"{self.client.url}: does not generate")


class VllmMemory(MemoryEndpoints):
    """`/sleep` and `/wake_up` at level 1, which keeps a copy of the weights."""

    resume_is_harmless = True

    def require_able(self) -> None:
        """Reads `/is_sleeping` and `/server_info`, which only developer mode has."""
        sleeping = self.client.get_json("/is_sleeping", missing_ok=True)
        info = self.client.get_json("/server_info?config_format=json", missing_ok=True)
        if sleeping is None or info is None:
            raise UnsafeServerError(
                f"{self.client.url}: has no /sleep and /server_info\nhint: start it with"
                " VLLM_SERVER_DEV_MODE=1 and --enable-sleep-mode, on a loopback address"
            )
        config = info.get("vllm_config", info).get("model_config", {})
        if config.get("enable_sleep_mode") is not True:
            raise UnsafeServerError(
                f"{self.client.url}: was started without --enable-sleep-mode: it would say that it"
                " sleeps, and give no memory back\nhint: start it with --enable-sleep-mode"
            )
        if sleeping.get("is_sleeping"):
            raise ServerError(
                f"{self.client.url}: sleeps already; somebody else has its memory\nhint: wake it"
                " with POST /wake_up if nobody does"
            )

    def release(self) -> None:
        """Requests under way are finished first."""
        self.client.post("/sleep?level=1&mode=wait", {})

    def resume(self) -> None:
        """Wakes it; harmless where it does not sleep."""
        self.client.post("/wake_up", {})

    def answers(self) -> None:
        """Runs one token, by whichever endpoint it has: an embedding, or a generated token."""
        models = self.client.get_json("/v1/models") or {}
        model = models["data"][0]["id"]
        body = {"model": model, "input": [[1]]}
        if self.client.post_json("/v1/embeddings", body, missing_ok=True) is not None:
            return
        self.client.post_json("/v1/completions", {"model": model, "prompt": [1], "max_tokens": 1})
