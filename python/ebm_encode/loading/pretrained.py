"""A model as transformers loads it from its files, straight to its device, and checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from ebm_encode.errors import ModelError, one_line
from ebm_encode.loading.loaded_weights import require_same_shapes, require_weights
from ebm_encode.loading.naming import naming


@dataclass(frozen=True)
class Pretrained:
    """What is loaded, and how.

    Attributes:
        name: What the model is called in errors.
        folder: The folder with its files.
        weights: Its weight files.
        encodes: Whether it is an encoder-decoder, of which the encoder is taken.
        keep_head: Whether its language-model head has to be right, too.
        options: Options for transformers' `from_pretrained`.
    """

    name: str
    folder: Path
    weights: list[Path]
    encodes: bool
    keep_head: bool
    options: dict[str, Any]

    def load(self, dtype: torch.dtype | None, device: torch.device) -> tuple[Any, Any]:
        """The model with its head, and without it or its encoder; all weights are of its files.

        No weight is held by the host on its way to another device: each is read from its file,
        converted and copied on its own, so that a model may be larger than the host's memory.

        Args:
            dtype: Compute dtype; `None` is the one that `config.json` names, or else the one that
                the weights are stored in.
            device: Where the weights go.

        Raises:
            ModelError: If the files are damaged, lack weights or hold others, the device has no
                memory for them, or there is no head to keep.
        """
        with naming(self.name):
            whole, info = self._from_files(dtype, device)
            tensors = [*whole.parameters(), *whole.buffers()]
            if any(tensor.device.type != device.type for tensor in tensors):
                whole.to(device)  # for what a model's own code made elsewhere
            del tensors  # some are of the head
            base = whole.get_encoder() if self.encodes else _base_of(whole)
        if self.keep_head and (self.encodes or base is whole):
            kind = "an encoder-decoder" if self.encodes else "a model without a language-model head"
            raise ModelError(
                f"{self.name}: is {kind}, and cannot propose tactics here\n"
                "hint: use a causal language model, or a server with the http policy"
            )
        base = base.eval().requires_grad_(requires_grad=False)
        require_same_shapes(self.name, info)
        with naming(self.name):
            require_weights(self.name, whole, base, info, self.weights)
            if self.keep_head:
                whole = whole.eval().requires_grad_(requires_grad=False)
                require_weights(self.name, whole, whole, info, self.weights)
        return whole, base

    def _from_files(
        self, dtype: torch.dtype | None, device: torch.device
    ) -> tuple[Any, dict[str, Any]]:
        kind = (
            transformers.AutoModelForSeq2SeqLM
            if self.encodes
            else transformers.AutoModelForCausalLM
        )
        try:
            return kind.from_pretrained(  # type: ignore[no-any-return]
                self.folder,
                dtype=dtype or "auto",
                device_map={"": str(device)},  # by name, which quantisers compare
                output_loading_info=True,
                # Refused by `load`, with the reason in the error and not in a report that may be
                # hidden.
                ignore_mismatched_sizes=True,
                **self.options,
            )
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{self.name}: does not fit `device` {device}: {one_line(error)}\n"
                "hint: free its memory, or use a smaller dtype or another device"
            ) from error


def take_into_memory(base: Any) -> None:
    """Copies weights that are pages of their file, as a write to the file would change them.

    On a CPU transformers maps weights whose dtype is that of the file. Pages of a file are not
    counted as memory in use, so that this takes no more than was promised.
    """
    held: dict[tuple[Any, ...], torch.Tensor] = {}
    for tensor in [*base.parameters(), *base.buffers()]:
        if type(tensor.data) is not torch.Tensor or tensor.device.type != "cpu":
            continue
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if place not in held:  # tied weights stay one
            held[place] = tensor.data.clone()
        tensor.data = held[place]


def vocabulary(name: str, base: Any) -> int:
    """How many tokens a model has an embedding for.

    Raises:
        ModelError: If the model's code does not say.
    """
    try:
        embeddings = base.get_input_embeddings()
        return int(getattr(embeddings, "num_embeddings", None) or embeddings.weight.shape[0])
    except (NotImplementedError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{name}: {type(base).__name__} does not say which tokens it has embeddings for"
            f" (get_input_embeddings: {one_line(error)})\n"
            "hint: add get_input_embeddings to the model's code"
        ) from error


def without_settings(whole: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text; all other settings for generating text are dropped.

    They are for chats (a repetition penalty), and would fill whatever a call does not set.
    """
    settings = getattr(whole, "generation_config", None)
    whole.generation_config = transformers.GenerationConfig()
    own = getattr(settings, "eos_token_id", None)
    listed = [*own] if isinstance(own, list | tuple) else [own]
    listed.append(getattr(tokenizer, "eos_token_id", None))
    return frozenset(int(token) for token in listed if token is not None)


def _base_of(causal: Any) -> Any:
    """The model without its head."""
    if causal.base_model is not causal:
        return causal.base_model
    # It has none by the name that it states (Llama 4).
    inner = (m for m in causal.children() if isinstance(m, transformers.PreTrainedModel))
    return next(inner, causal)
