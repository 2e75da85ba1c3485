"""A Hugging Face causal model, its language-model head only if asked for, and its tokenizer.

Knows nothing of templates, pooling or caches.
"""

import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from ebm_encode.errors import ArgumentError
from ebm_encode.loading.adapter import merge, require_mergeable, take_weights
from ebm_encode.loading.adapter_files import Adapter, find_adapter
from ebm_encode.loading.device import find_device
from ebm_encode.loading.model_files import FileStates, commit_of, find_folder, weight_files
from ebm_encode.loading.naming import code_options, naming
from ebm_encode.loading.pretrained import (
    Pretrained,
    take_into_memory,
    vocabulary,
    without_settings,
)
from ebm_encode.loading.quantization import require_usable, stdout_kept
from ebm_encode.loading.quantized_weights import decision, unpack
from ebm_encode.loading.rotary import RotaryState, max_positions, stretches_after
from ebm_encode.options import Dtype

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Model:
    """A loaded model.

    Attributes:
        name: The path or hub id as given.
        folder: The folder with its files.
        base: The transformers base model, on its device, in inference mode; no head. For
            encoder-decoder models it is the encoder.
        config: The configuration that it was made from, as it stands in the files.
        tokenizer: Its tokenizer. Encoders use a copy.
        dtype: Name of the compute dtype.
        max_positions: Longest sequence in tokens, `None` if the model has no limit.
        stretches_after: Length in tokens beyond which a batch's longest sequence changes the rotary
            positions of all of it (dynamic NTK, LongRoPE); `None` if the model has no such.
        own_code: Whether code that came with the model was let run.
        quantization: How the weights are held, as the loader decided: its settings, and the
            dtypes in memory; `None` if they are not quantised.
        files: How its files were before they were loaded.
        rotary: Its rotary tables; every pass resets them.
        whole: The model with its head, whose base is `base`, if it was loaded to generate text. It
            has no settings of its own for that.
        eos: The tokens that end a text, by the model's files; empty unless `whole` is there.
        adapter: The adapter that is merged into its weights, if any.
    """

    name: str
    folder: Path
    base: Any
    config: Any
    tokenizer: Any
    dtype: str
    max_positions: int | None
    stretches_after: int | None
    own_code: bool
    quantization: dict[str, Any] | None = None
    files: FileStates = field(default_factory=lambda: FileStates(()), repr=False)
    rotary: RotaryState = field(default_factory=RotaryState, repr=False)
    whole: Any = field(default=None, repr=False)
    eos: frozenset[int] = frozenset()
    adapter: Adapter | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(self.base.device)

    @property
    def device_name(self) -> str:
        """The kind of device, and which it is."""
        if self.device.type == "cuda":
            return f"cuda ({torch.cuda.get_device_name(self.device)})"
        return f"{self.device.type} ({platform.machine()})"

    @property
    def vocabulary(self) -> int:
        """How many tokens it has an embedding for.

        Raises:
            ModelError: If the model's code does not say.
        """
        return vocabulary(self.name, self.base)

    @property
    def commit(self) -> str | None:
        """The commit of the hub's, if it came from there."""
        return commit_of(self.folder)

    def stretching(self, lengths: NDArray[np.int64]) -> list[int]:
        """Which sequences of such lengths would change the positions of others in their batch."""
        if self.stretches_after is None:
            return []
        return [int(i) for i in np.flatnonzero(lengths > self.stretches_after)]


def load_model(
    name: str,
    *,
    dtype: Dtype = "auto",
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    code_revision: str | None = None,
    keep_head: bool = False,
    adapter: str | None = None,
) -> Model:
    """Loads a model and its tokenizer from a folder or by hub id.

    Args:
        name: Folder, or hub id.
        dtype: Compute dtype; `auto` is the one that `config.json` names, or else the one that the
            weights are stored in.
        device: Any torch device; `auto` is the first accelerator, else the CPU.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Whether code that comes with the model may run.
        code_revision: Commit of that code where `auto_map` takes it from another repository.
        keep_head: Whether its language-model head stays in memory, so that it can generate text.
        adapter: Folder or hub id of a PEFT adapter, which is merged into it in float32, before the
            weights become the compute dtype.

    Raises:
        AdapterError: If the adapter cannot be merged into this model.
        LibraryError: If there is an adapter, and no peft.
        ModelError: If anything about it keeps it from being used; also if its files lack weights or
            persistent buffers (transformers would make them up), or change meanwhile.
    """
    transformers.utils.logging.disable_progress_bar()  # ours is the only one
    folder = find_folder(name, revision=revision, with_code=trust_remote_code)
    options = code_options(name, folder, code_revision, trust_remote_code=trust_remote_code)
    target = find_device(device)
    weights = weight_files(folder)
    added = None if adapter is None else find_adapter(adapter)
    files = FileStates.of_folder(folder, [*weights, *(() if added is None else added.files)])
    with naming(name):
        config = transformers.AutoConfig.from_pretrained(folder, **options)
    if added is not None:
        require_mergeable(added, name, config)
    computed = DTYPES.get(dtype)
    quantized = require_usable(name, config, target, computed)
    tokenizer = _tokenizer(name, folder, options)
    source = Pretrained(
        name,
        folder,
        weights,
        encodes=getattr(config, "is_encoder_decoder", False),
        keep_head=keep_head,
        options=options | (quantized.options if quantized else {}),
    )
    with stdout_kept(quantized):
        whole, base = source.load(computed, target)
    with naming(name):
        unpack(whole)
        quantization = decision(name, quantized, whole, base)
    kept = whole if keep_head else None
    eos = without_settings(kept, tokenizer) if keep_head else frozenset()
    del whole  # without its head where none is wanted
    vocabulary(name, base)  # now, so that a model that does not say is refused here
    part = base if kept is None else kept
    if quantized is None:
        take_into_memory(part)
    if added is not None:
        in_full = source.load(torch.float32, torch.device("cpu"))
        _take_merged(added, name, part, in_full, with_head=keep_head)
        del in_full  # twice the model, or more
    text_config = text_config_of(config)
    stretches = stretches_after(text_config)
    return Model(
        name=name,
        folder=folder,
        base=base,
        config=config,
        tokenizer=tokenizer,
        dtype=str(base.dtype).removeprefix("torch."),
        max_positions=max_positions(text_config, tokenizer),
        stretches_after=stretches,
        own_code=trust_remote_code,
        quantization=quantization,
        files=files,
        rotary=RotaryState(base if stretches is not None else None),
        whole=kept,
        eos=eos,
        adapter=added,
    )


def text_config_of(config: Any) -> Any:
    """The part of a configuration that says how deep the model is, and how far it reads.

    Of an encoder-decoder that is the encoder's, where it has a separate one.
    """
    own = getattr(config, "encoder", None) if getattr(config, "is_encoder_decoder", False) else None
    whole = own if isinstance(own, transformers.PretrainedConfig) else config
    return whole.get_text_config()


def _take_merged(
    adapter: Adapter, name: str, part: Any, source: tuple[Any, Any], *, with_head: bool
) -> None:
    """Gives a loaded model, or its base, the weights of `source` with the adapter merged.

    The model was loaded in its compute dtype before, so that whatever an adapter does not change
    (buffers, layers that stay in float32) is as it is without one.
    """
    whole, base = source
    trained = merge(adapter, name, whole, base, with_head=with_head)
    same = whole if with_head else base
    path = next((path for path, module in whole.named_modules() if module is same), "")
    take_weights(adapter, trained, part, same, f"{path}." if path else "")


def _tokenizer(name: str, folder: Path, options: dict[str, Any]) -> Any:
    with naming(name):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        if isinstance(tokenizer.model_max_length, str):  # transformers compares it with numbers
            tokenizer.model_max_length = int(float(tokenizer.model_max_length))
    return tokenizer


def load_tokenizer(
    name: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    code_revision: str | None = None,
) -> tuple[Any, int | None]:
    """A model's tokenizer, and its longest sequence in tokens (`None`: no limit); no weights.

    Raises:
        ModelError: If they cannot be loaded.
    """
    folder = find_folder(name, revision=revision, with_code=trust_remote_code, with_weights=False)
    options = code_options(name, folder, code_revision, trust_remote_code=trust_remote_code)
    with naming(name):
        config = transformers.AutoConfig.from_pretrained(folder, **options)
    tokenizer = _tokenizer(name, folder, options)
    return tokenizer, max_positions(text_config_of(config), tokenizer)


def silence_transformers() -> None:
    """Silences transformers' warnings; what matters of them is an error here anyway."""
    transformers.utils.logging.set_verbosity_error()


def longest_prompt(limit: int | None, max_length: int | None) -> int | None:
    """How long prompts may be in tokens: what was asked for, or the model's limit.

    Raises:
        ArgumentError: If the model does not read that much.
    """
    if max_length is None:
        return limit
    if max_length < 1:
        raise ArgumentError(f"`max_length` {max_length}: must be at least 1")
    if limit is not None and max_length > limit:
        raise ArgumentError(f"`max_length` {max_length}: the model reads at most {limit} tokens")
    return max_length
