"""Runs the server until it is stopped."""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import uvicorn

from ebm_encode.errors import EbmEncodeError, ServerError, one_line
from ebm_encode.serve.app import make_app
from ebm_encode.serve.connections import Connections, raise_file_limit
from ebm_encode.serve.service import Service

log = logging.getLogger(__name__)

_BODIES = 16
"""Bodies of the greatest length that may be held at a time, unsent answers among them."""


def run(service: Service) -> None:
    """Listens, loads the encoder meanwhile, and returns when the server was stopped.

    SIGTERM or Ctrl-C: nothing new is taken, what is under way is finished, and what was appended
    is saved. A second signal ends requests at once.

    Raises:
        ServerError: If it cannot listen, or the encoder fails while it runs.
        EbmEncodeError: If the encoder cannot be loaded.
    """
    options = service.options
    options.require_safe()
    listening = _listen(options.host, options.port)
    host, port = listening.getsockname()[:2]
    connections = Connections(raise_file_limit(), _BODIES * options.max_body_bytes)
    config = uvicorn.Config(
        make_app(service, connections),
        http=connections.protocol(),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=round(options.shutdown_seconds),
        # What clients of ours keep open is closed by them.
        timeout_keep_alive=75,
        server_header=False,
        ws="none",
    )
    server = _Server(config, service)
    service.stop = server.end
    log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    service.start()
    with listening:
        server.run(sockets=[listening])  # in uvloop
    rows = service.finish()
    if rows is not None:
        log.info("%d embeddings in the cache that was appended to", rows)
    failure = service.failure
    if isinstance(failure, EbmEncodeError):
        raise failure
    if failure is not None:
        raise ServerError(f"the encoder failed: {one_line(failure)}") from failure


class _Server(uvicorn.Server):
    """Ends by signals or when the encoder fails, and leaves signals to nobody else."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None

    def end(self) -> None:
        """Stops it, from any thread."""
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals stop the server; the process goes on behind it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                with suppress(ValueError):
                    loop.remove_signal_handler(number)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal stops the server in good order, another one at once."""
        del frame
        if self.should_exit:
            self.force_exit = True
            return
        log.info("stopping (%s)", signal.Signals(sig).name)
        if self._service.state == "ready":
            self._service.state = "stopping"
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host.strip("[]"), port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise ServerError(f"cannot listen on {host}:{port}: {one_line(error)}") from error
    listening.setblocking(False)  # noqa: FBT003
    return listening
