"""One hidden state of a model, without making the others."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ebm_encode.errors import ModelError
from ebm_encode.loading.model import Model, text_config_of
from ebm_encode.torch_settings import inference


class _Reached(Exception):  # noqa: N818  (not an error)
    """The wanted layer is reached; the rest of the model need not run."""


class LayerTap:
    """Runs the base model and gives one hidden state, without making the others."""

    def __init__(self, model: Model, layer: int) -> None:
        self._base, self._rotary = model.base, model.rotary
        blocks = blocks_of(model)
        count = int(text_config_of(model.config).num_hidden_layers)
        if not -count - 1 <= layer <= count:
            raise ModelError(
                f"`layer` {layer}: the model has hidden states {-count - 1} to {count}"
            )
        index = layer if layer >= 0 else count + 1 + layer
        self._block = None
        if index < count:
            if blocks is None:
                raise ModelError(f"`layer` {layer}: cannot tell the layers of this model apart")
            self._block = blocks[index]
            self._require_same_as_transformers(model, layer, index)

    def _require_same_as_transformers(self, model: Model, layer: int, index: int) -> None:
        """Not every architecture records its hidden states before each block; Mamba does not."""
        ids = torch.arange(8, device=model.device)[None, :]  # (1, T)
        mask = torch.ones_like(ids)
        with inference():
            self._rotary.reset()
            states = self._base(
                input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True
            ).hidden_states
            same = torch.equal(self.hidden(ids, mask), states[index])
        if not same:
            raise ModelError(f"`layer` {layer}: only -1 is supported for this model")

    def hidden(
        self, input_ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The hidden state, (B, T) to (B, T, C); positions are 0, 1, ... unless given, (B, T)."""
        inputs = {"input_ids": input_ids, "attention_mask": mask}
        if positions is not None:
            inputs["position_ids"] = positions
        if self._block is None:
            return self._run(inputs)
        seen: list[torch.Tensor] = []
        with _stop_before(self._block, seen):
            self._run(inputs)
        return seen[0]

    def _run(self, inputs: dict[str, torch.Tensor]) -> Any:
        # Every pass of every engine comes by here: none may depend on the ones before.
        self._rotary.reset()
        try:
            output = self._base(**inputs, use_cache=False, return_dict=True)
        except _Reached:
            return None
        return output.last_hidden_state


@contextmanager
def _stop_before(block: Any, seen: list[torch.Tensor]) -> Iterator[None]:
    """Keeps what enters a block, which is the hidden state before it, and stops there."""

    def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        raise _Reached

    handle = block.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def blocks_of(model: Model) -> Any | None:
    """The model's list of layers: the one module list as long as the model is deep."""
    count = int(text_config_of(model.config).num_hidden_layers)
    lists = [
        module
        for module in model.base.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    return lists[0] if lists else None
