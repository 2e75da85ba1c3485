"""Which model answers at a server's address."""

import ipaddress
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import urllib3

from ebm_encode.errors import InputError, ServerError, UnreachableServerError
from ebm_encode.pipeline.config import placed
from ebm_encode.pipeline.processes import run_briefly
from ebm_encode.servers.http import ServerClient, making_sense

_ASK_SECONDS = 10.0
_SHOWN = 300


@dataclass(frozen=True)
class Answer:
    """What a server said.

    Attributes:
        state: `down`: nothing answers; `starting`: something does, without saying which model.
        names: What it calls its model.
        why: Why it is not up.
    """

    state: Literal["down", "starting", "up"]
    names: tuple[str, ...] = ()
    why: str = ""

    def __str__(self) -> str:
        """For messages."""
        return f"answers with {', '.join(self.names)}" if self.names else self.why


def ask(url: str, token: str | None, health: Sequence[str] | None, directory: Path) -> Answer:
    """Asks a server which model it has.

    Args:
        url: The server.
        token: Its bearer token.
        health: The user's command that asks it, if not these endpoints: `/info`, `/v1/models`,
            `/model_info`, `/get_model_info`.
        directory: Working directory of the command.
    """
    if health is not None:
        return _by_command(health, directory)
    client = ServerClient(url, token=token, timeout=_ASK_SECONDS, tries=1)
    try:
        names = _names(client)
    except UnreachableServerError as error:
        return Answer("down", why=_first_line(error))
    except ServerError as error:
        return Answer("starting", why=_first_line(error))
    finally:
        client.close()
    if not names:
        return Answer("starting", why=f"{url}: does not say which model it has")
    return Answer("up", tuple(dict.fromkeys(names)))


def read_token(file: str | None, directory: Path) -> str | None:
    """A server's bearer token from a file; `None` if there is none.

    Raises:
        InputError: If it cannot be read.
    """
    if file is None:
        return None
    path = placed(directory, file)
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def is_model(names: Sequence[str], expected: str, directory: Path) -> bool:
    """Whether one of a server's names is that of a model: equal, or the same path."""
    path = placed(directory, expected).resolve()
    return any(name == expected or placed(directory, name).resolve() == path for name in names)


def listens_since(url: str) -> float | None:
    """When the process was started that listens at a URL here; `None` if not known."""
    parsed = urllib3.util.parse_url(url)
    with suppress(psutil.Error, OSError):
        addresses = _addresses_here((parsed.host or "").strip("[]"))
        for one in psutil.net_connections("tcp") if addresses else []:
            here = one.laddr and one.laddr.port == parsed.port and one.laddr.ip in addresses
            if one.status == psutil.CONN_LISTEN and here and one.pid:
                return float(psutil.Process(one.pid).create_time())
    return None


def _addresses_here(host: str) -> set[str]:
    """The addresses at which a host's server listens on this machine; none if it is another."""
    asked = {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
    interfaces = psutil.net_if_addrs().values()
    own = {address.address.split("%")[0] for one in interfaces for address in one}
    found = {one for one in asked if one in own or ipaddress.ip_address(one).is_loopback}
    mapped = {f"::ffff:{one}" for one in found}
    return found | mapped | {"0.0.0.0", "::"} if found else set()  # noqa: S104  (compared)


def _names(client: ServerClient) -> list[str]:
    found: list[Any] = []
    with making_sense(client.url):
        info = client.get_json("/info", missing_ok=True) or {}
        if info.get("software") == "ebm-encode":
            return [str(info["model"])]
        models = client.get_json("/v1/models", missing_ok=True) or {}
        for model in models.get("data") or []:
            found += [model.get("root"), model.get("id")]
        for path in ("/model_info", "/get_model_info"):
            told = client.get_json(path, missing_ok=True) or {}
            found += [told.get("model_path"), told.get("served_model_name")]
    return [name for name in found if isinstance(name, str) and name and "\0" not in name]


def _by_command(command: Sequence[str], directory: Path) -> Answer:
    try:
        code, printed = run_briefly(command, seconds=_ASK_SECONDS, directory=directory)
    except OSError as error:
        raise ServerError(f"[server] health: cannot be started: {error}") from error
    if code is None:
        return Answer("starting", why=f"`{command[0]}` does not end within {_ASK_SECONDS:.0f} s")
    if code != 0:
        return Answer("down", why=f"`{command[0]}` exits with {code}: {printed[:_SHOWN]}")
    if not printed:
        why = f"`{command[0]}` prints nothing, and should print the model that answers"
        return Answer("starting", why=why)
    return Answer("up", (printed.splitlines()[-1].strip().replace("\0", ""),))


def _first_line(error: ServerError) -> str:
    return str(error).splitlines()[0]
