"""What a server may take and how long it may take. Imports nothing heavy."""

import ipaddress
from dataclasses import dataclass

from ebm_encode.errors import ArgumentError


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Limits and address of a server.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 for any that is free.
        token: Bearer token that requests must have; `None`: none.
        max_texts: Most states of a request.
        max_body_bytes: Longest body of a request.
        queue_texts: Most states that wait or are being encoded; requests beyond get 429.
        wait: Seconds that a batch waits for other requests, where recent ones had several.
        batch_states: Most states of a batch.
        timeout: Seconds that a request may take.
        shutdown_seconds: Seconds that requests under way have to end when the server is stopped.
        memory_bytes: Most bytes of encoded embeddings that are kept.
    """

    host: str = "127.0.0.1"
    port: int = 30001
    token: str | None = None
    max_texts: int = 4096
    max_body_bytes: int = 16 * 2**20
    queue_texts: int = 16384
    wait: float = 0.003
    batch_states: int = 256
    timeout: float = 300.0
    shutdown_seconds: float = 30.0
    memory_bytes: int = 2**30

    def require_safe(self) -> None:
        """Refuses an address that others can reach, unless they need a token.

        Raises:
            ArgumentError: With the way out.
        """
        if self.token is None and not is_loopback(self.host):
            raise ArgumentError(
                f"`host` {self.host}: others can reach it, and there is no token\nhint: give one by"
                " --token-file, or listen on 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
