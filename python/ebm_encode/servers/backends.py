"""Which engine an encoder has for a backend: a server's, or those of this package."""

from collections.abc import Sequence
from typing import Any

from ebm_encode._core import Identity
from ebm_encode.engines.budget import Budget
from ebm_encode.engines.engine import Engine
from ebm_encode.engines.selection import EngineFactory
from ebm_encode.engines.server import ServerEngine
from ebm_encode.errors import ArgumentError
from ebm_encode.loading.model import Model, text_config_of
from ebm_encode.options import Backend, Pooling, require_backend
from ebm_encode.servers.http import ServerClient


def server_engines(
    backend: Backend, server: Any, *, token: str | None, exclusive: bool
) -> EngineFactory | None:
    """Makes the engine of a backend; `None` for `hf`, which needs no server.

    Args:
        backend: The kind of server.
        server: Its URL; for `sglang` also an `sglang.Engine`.
        token: What it wants as bearer token.
        exclusive: Whether nobody else uses it, as the user says.

    Raises:
        ArgumentError: If the options do not fit each other.
    """
    require_backend(backend, server, token=token, exclusive=exclusive)
    if backend == "hf":
        return None

    def engines(model: Model, pooling: Pooling, layer: int, budget: Budget) -> Sequence[Engine]:
        del budget  # how a server batches is its own affair
        _require_last_layer(backend, layer, int(text_config_of(model.config).num_hidden_layers))
        return [_engine(backend, server, model, pooling, token=token, exclusive=exclusive)]

    return engines


def requiring_identity(engines: EngineFactory, identity: Identity) -> EngineFactory:
    """The same engines, once a server among them is known to have the same encoder."""

    def checked(model: Model, pooling: Pooling, layer: int, budget: Budget) -> Sequence[Engine]:
        found = engines(model, pooling, layer, budget)
        for engine in found:
            if isinstance(engine, ServerEngine):
                engine.require_identity(identity)
        return found

    return checked


def _engine(
    backend: Backend,
    server: Any,
    model: Model,
    pooling: Pooling,
    *,
    token: str | None,
    exclusive: bool,
) -> Engine:
    dim = int(text_config_of(model.config).hidden_size)
    if backend == "sglang":
        # Here, so that the other backends do not bring it in.
        from ebm_encode.servers.sglang.engine import SglangEngine  # noqa: PLC0415
        from ebm_encode.servers.sglang.transport import HttpTransport, InProcess  # noqa: PLC0415

        return SglangEngine(
            HttpTransport(ServerClient(server, token=token))
            if isinstance(server, str)
            else InProcess(server),
            dim=dim,
            dtype=model.dtype,
            pooling=pooling,
            exclusive=exclusive,
        )
    if backend == "vllm":
        from ebm_encode.servers.vllm.engine import VllmEngine  # noqa: PLC0415

        client = ServerClient(server, token=token)
        return VllmEngine(client, dim=dim, dtype=model.dtype, pooling=pooling)
    from ebm_encode.servers.remote_engine import RemoteEngine  # noqa: PLC0415

    return RemoteEngine(server, pooling=pooling, token=token)


def _require_last_layer(backend: Backend, layer: int, layers: int) -> None:
    """Inference servers return the last layer only; ours, what it was started with."""
    if backend != "remote" and layer not in (-1, layers):
        raise ArgumentError(f"`layer` {layer}: a {backend} server gives the last one only (-1)")
