"""`ebm-encode serve`: embeddings over HTTP."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from ebm_encode.cli.encode_options import EncoderOptions
from ebm_encode.cli.parameters import SECONDS, HubOptions, require_names, whole
from ebm_encode.cli.server_options import read_token
from ebm_encode.errors import ArgumentError, LibraryError, one_line, require_model_libraries
from ebm_encode.serve.options import ServeOptions

if TYPE_CHECKING:
    from ebm_encode._core import EmbeddingCache, MappedCache
    from ebm_encode.encoder import Encoder

_PORT = Parameter(validator=Number(gte=0, lte=65535))
_FRACTION = Parameter(validator=Number(gt=0, lte=1))
_AtLeastOne = whole(at_least=1)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """What the server takes.

    Attributes:
        max_texts: Most states of a request.
        max_body_mib: Longest body of a request, in MiB.
        queue_texts: Most states that wait or are being encoded; more get status 429.
        wait_ms: Milliseconds that a batch waits for other requests, where there were several of
            late. An idle server does not wait.
        batch_states: Most states of a batch of several requests.
        timeout: Seconds that a request may take.
        shutdown_seconds: Seconds that requests have to end when the server is stopped.
        memory_mib: Encoded embeddings that are kept in memory, in MiB.
    """

    max_texts: Annotated[int, _AtLeastOne] = 4096
    max_body_mib: Annotated[int, _AtLeastOne] = 16
    queue_texts: Annotated[int, _AtLeastOne] = 16384
    wait_ms: Annotated[float, Parameter(validator=Number(gte=0, lte=10_000))] = 3.0
    batch_states: Annotated[int, _AtLeastOne] = 256
    timeout: Annotated[float, SECONDS] = 300.0
    shutdown_seconds: Annotated[float, SECONDS] = 30.0
    memory_mib: Annotated[int, whole(at_least=0)] = 1024


def serve(
    *,
    model_path: str,
    host: str = "127.0.0.1",
    port: Annotated[int, _PORT] = 30001,
    token_file: Path | None = None,
    cache: str | None = None,
    append_to: str | None = None,
    memory_fraction: Annotated[float | None, _FRACTION] = None,
    encoding: EncoderOptions = EncoderOptions(overlong="error"),
    limits: LimitOptions = LimitOptions(),
    hub: HubOptions = HubOptions(),
) -> int:
    """Serve embeddings over HTTP: `/encode`, and `/v1/embeddings` as OpenAI has it.

    Ends with SIGTERM or Ctrl-C, once requests under way are answered.

    Example: `ebm-encode serve --model-path ./model --port 30001`

    Args:
        model_path: Hugging Face causal LM: a folder, or a hub id.
        host: Address to listen on. One that others can reach needs a token.
        port: Port to listen on; 0 for any that is free.
        token_file: File with the bearer token that requests must have; the environment variable
            EBM_ENCODE_TOKEN may hold it too.
        cache: Cache of the same encoder to serve embeddings from: a file or folder.
        append_to: Cache to append new embeddings to: a file or folder.
        memory_fraction: Largest share of the GPU's memory that this process takes.
        encoding: What embeddings are made with.
        limits: What the server takes.
        hub: Which version of a model on the hub.
    """
    require_names(model_path=model_path, cache=cache, append_to=append_to)
    require_names(adapter=encoding.adapter)
    options = ServeOptions(
        host=host,
        port=port,
        token=read_token(token_file, "token_file"),
        max_texts=limits.max_texts,
        max_body_bytes=limits.max_body_mib * 2**20,
        queue_texts=limits.queue_texts,
        wait=limits.wait_ms / 1000,
        batch_states=limits.batch_states,
        timeout=limits.timeout,
        shutdown_seconds=limits.shutdown_seconds,
        memory_bytes=limits.memory_mib * 2**20,
    )
    options.require_safe()
    require_model_libraries()
    try:
        from ebm_encode.serve.run import run  # noqa: PLC0415  (an extra, and torch)
        from ebm_encode.serve.service import Service  # noqa: PLC0415
    except ImportError as error:
        raise LibraryError(
            f"the server cannot start: {one_line(error)}\nhint: pip install 'ebm-encode[serve]'"
        ) from error

    arguments = encoding.arguments() | hub.arguments()

    def load() -> "tuple[Encoder, EmbeddingCache | MappedCache | None]":
        return _load(model_path, arguments, cache, memory_fraction)

    run(Service(options, load, append_to=append_to))
    return 0


def _load(
    model_path: str, arguments: dict[str, Any], cache: str | None, memory_fraction: float | None
) -> "tuple[Encoder, EmbeddingCache | MappedCache | None]":
    from ebm_encode.encoder import Encoder  # noqa: PLC0415
    from ebm_encode.opening import open_cache  # noqa: PLC0415

    opened = None if cache is None else open_cache(cache)
    if memory_fraction is not None:
        _limit_memory(memory_fraction)
    return Encoder.load(model_path, **arguments), opened


def _limit_memory(fraction: float) -> None:
    import torch  # noqa: PLC0415

    if not torch.cuda.is_available():
        raise ArgumentError("`memory_fraction`: this machine has no GPU that torch can use")
    for device in range(torch.cuda.device_count()):
        torch.cuda.set_per_process_memory_fraction(fraction, device)
