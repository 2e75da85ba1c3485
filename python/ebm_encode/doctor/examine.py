"""Examines a server of whichever kind."""

from typing import TYPE_CHECKING, Any

from ebm_encode.doctor.diagnosis import Diagnosis
from ebm_encode.doctor.others import examine_remote, examine_vllm
from ebm_encode.doctor.sglang import examine_sglang
from ebm_encode.servers.http import ServerClient, making_sense
from ebm_encode.servers.kinds import kind_of
from ebm_encode.servers.sglang.transport import HttpTransport

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ebm_encode.doctor.sglang import Sequence32, StatesOf


def examine(
    url: str,
    *,
    token: str | None = None,
    exclusive: bool = False,
    model_path: str | None = None,
    adapter: str | None = None,
    dtype: str = "auto",
    timeout: float = 60.0,
) -> Diagnosis:
    """The verdict on a server.

    Args:
        url: The server.
        token: Its bearer token.
        exclusive: Whether nobody else uses it. Old SGLang servers are asked only then.
        model_path: The model that it serves, to compare with.
        adapter: A PEFT adapter to merge into that.
        dtype: Compute dtype of that.
        timeout: Seconds that a request may take.

    Raises:
        ServerError: If it cannot be reached, or is of no kind that this package knows.
    """
    client = ServerClient(url, token=token, timeout=timeout)
    with making_sense(client.url):
        loading = {"dtype": dtype, "adapter": adapter, "device": "cpu"}
        return _examine(
            client, token=token, exclusive=exclusive, model_path=model_path, loading=loading
        )


def _examine(
    client: ServerClient,
    *,
    token: str | None,
    exclusive: bool,
    model_path: str | None,
    loading: dict[str, Any],
) -> Diagnosis:
    kind = kind_of(client)
    if kind == "remote":
        encode = None
        if model_path is not None:
            from ebm_encode.encoder import Encoder  # noqa: PLC0415

            encode = Encoder.load(model_path, **loading).encode
        return examine_remote(client, token=token, timeout=client.timeout, encode=encode)
    states_of, computed = (None, None) if model_path is None else _states_of(model_path, loading)
    if kind == "vllm":
        return examine_vllm(client, states_of=states_of, dtype=computed)
    transport = HttpTransport(client)
    return examine_sglang(transport, exclusive=exclusive, states_of=states_of, dtype=computed)


def _states_of(model_path: str, loading: dict[str, Any]) -> "tuple[StatesOf, str]":
    """The model's own hidden states, at batch size 1 on the CPU, and its compute dtype."""
    from ebm_encode.engines.output import OutputSlots  # noqa: PLC0415  (torch)
    from ebm_encode.engines.padded import UnbatchedEngine  # noqa: PLC0415
    from ebm_encode.loading.model import load_model  # noqa: PLC0415

    model = load_model(model_path, **loading)
    reference = UnbatchedEngine(model, "mean", -1)

    def states(sequence: "Sequence32") -> "NDArray[np.float32]":
        slots = OutputSlots.new(1, reference.width(sequence))
        return reference.states([sequence], slots, [0])[0]

    return states, model.dtype
