"""A Hugging Face causal model, its language-model head only if asked for, and its tokenizer.

Knows nothing of templates, pooling or caches.
"""

import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from ebm_encode.errors import ArgumentError, ModelError, one_line
from ebm_encode.loading.adapter import merge, require_mergeable, take_weights
from ebm_encode.loading.adapter_files import Adapter, find_adapter
from ebm_encode.loading.loaded_weights import require_same_shapes, require_weights
from ebm_encode.loading.model_files import (
    FileStates,
    commit_of,
    find_folder,
    foreign_code,
    weight_files,
)
from ebm_encode.loading.rotary import RotaryState, max_positions, stretches_after
from ebm_encode.options import Dtype

log = logging.getLogger(__name__)

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
        return _vocabulary(self.name, self.base)

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
    options = _code_options(name, folder, code_revision, trust_remote_code=trust_remote_code)
    target = _device(device)
    weights = weight_files(folder)
    added = None if adapter is None else find_adapter(adapter)
    files = FileStates.of_folder(folder, [*weights, *(() if added is None else added.files)])
    with _naming(name):
        config = transformers.AutoConfig.from_pretrained(folder, **options)
    if added is not None:
        require_mergeable(added, name, config)
    tokenizer = _tokenizer(name, folder, options)
    encodes = getattr(config, "is_encoder_decoder", False)
    load = partial(_loaded, name, folder, options, weights, encodes=encodes, keep_head=keep_head)
    whole, base = load(dtype)
    with _naming(name):
        quantization = _quantization(whole, base)
    kept = whole if keep_head else None
    eos = _without_settings(kept, tokenizer) if keep_head else frozenset()
    del whole  # without its head where none is wanted
    _vocabulary(name, base)  # now, so that a model that does not say is refused here
    text_config = text_config_of(config)
    part = base if kept is None else kept
    if target.type == "cpu" or added is not None:  # what is written to must not be a file's pages
        _take_into_memory(part)
    if added is not None:
        _take_merged(added, name, part, load("float32"), with_head=keep_head)
    try:
        base = base.to(target)
        if kept is not None:
            kept.to(target)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"`device` {device}: {one_line(error)}") from error
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


def _loaded(
    name: str,
    folder: Path,
    options: dict[str, Any],
    weights: list[Path],
    dtype: Dtype,
    *,
    encodes: bool,
    keep_head: bool,
) -> tuple[Any, Any]:
    """The model with its head, and without it or its encoder; all weights are of its files."""
    kind = transformers.AutoModelForSeq2SeqLM if encodes else transformers.AutoModelForCausalLM
    with _naming(name):
        whole, info = kind.from_pretrained(
            folder,
            dtype=DTYPES.get(dtype, "auto"),
            output_loading_info=True,
            # Refused below, with the reason in the error and not in a report that may be hidden.
            ignore_mismatched_sizes=True,
            **options,
        )
        base = whole.get_encoder() if encodes else _base_of(whole)
    if keep_head and (encodes or base is whole):
        kind_of = "an encoder-decoder" if encodes else "a model without a language-model head"
        raise ModelError(
            f"{name}: is {kind_of}, and cannot propose tactics here\n"
            "hint: use a causal language model, or a server with the http policy"
        )
    base = base.eval().requires_grad_(requires_grad=False)
    require_same_shapes(name, info)
    with _naming(name):
        require_weights(name, whole, base, info, weights)
        if keep_head:
            whole = whole.eval().requires_grad_(requires_grad=False)
            require_weights(name, whole, whole, info, weights)
    return whole, base


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


def _without_settings(whole: Any, tokenizer: Any) -> frozenset[int]:
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


def _vocabulary(name: str, base: Any) -> int:
    try:
        embeddings = base.get_input_embeddings()
        return int(getattr(embeddings, "num_embeddings", None) or embeddings.weight.shape[0])
    except (NotImplementedError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{name}: {type(base).__name__} does not say which tokens it has embeddings for"
            f" (get_input_embeddings: {one_line(error)})\n"
            "hint: add get_input_embeddings to the model's code"
        ) from error


def _quantization(whole: Any, base: Any) -> dict[str, Any] | None:
    """What the loader made of a quantised checkpoint on this machine.

    That is not what `config.json` says: FP8, for one, is dequantised where the hardware has none.
    """
    settings = getattr(whole.config, "quantization_config", None)
    if settings is None:
        return None
    held = {str(t.dtype).removeprefix("torch.") for t in base.state_dict().values()}
    whole_settings = settings if isinstance(settings, dict) else settings.to_dict()
    return {"settings": whole_settings, "held_as": sorted(held)}


def _take_into_memory(base: Any) -> None:
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


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # a damaged folder makes transformers raise anything
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{name}: requires custom code that comes with it\n"
                "hint: if you trust it, pass `trust_remote_code=True`"
            ) from error
        raise ModelError(f"{name}: cannot be loaded: {one_line(error)}") from error


def _code_options(
    name: str, folder: Path, code_revision: str | None, *, trust_remote_code: bool
) -> dict[str, Any]:
    """The options of transformers for code that comes with a model.

    Raises:
        ModelError: If it comes from another repository, and not from one commit of it.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    foreign = foreign_code(folder, name) if trust_remote_code else []
    if code_revision is not None:
        if len(code_revision) != 40 or set(code_revision) - set("0123456789abcdef"):  # noqa: PLR2004
            raise ModelError(
                f"`code_revision` {code_revision}: expected a commit, 40 hex digits; branches and"
                " tags move"
            )
        options["code_revision"] = code_revision
    elif foreign:
        raise ModelError(
            f"{name}: its code comes from another repository ({', '.join(foreign)}), whatever that"
            " holds at the time\nhint: pin it with `code_revision`, or copy the files into"
            " the model's folder and take the repository out of auto_map"
        )
    return options


def _tokenizer(name: str, folder: Path, options: dict[str, Any]) -> Any:
    with _naming(name):
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
    options = _code_options(name, folder, code_revision, trust_remote_code=trust_remote_code)
    with _naming(name):
        config = transformers.AutoConfig.from_pretrained(folder, **options)
    tokenizer = _tokenizer(name, folder, options)
    return tokenizer, max_positions(text_config_of(config), tokenizer)


def silence_transformers() -> None:
    """Silences transformers' warnings; what matters of them is an error here anyway."""
    transformers.utils.logging.set_verbosity_error()


def _device(device: str) -> torch.device:
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if accelerator is None else accelerator
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"`device` {device}: {one_line(error)}") from error
    if found.type == "meta":
        raise ModelError("`device` meta: computes nothing")
    return found


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
