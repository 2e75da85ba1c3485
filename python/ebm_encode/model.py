"""A Hugging Face causal model, without its language-model head, and its tokenizer.

Knows nothing of templates, pooling or caches.
"""

import json
import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from numpy.typing import NDArray

from ebm_encode.errors import ArgumentError, ModelError

log = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_HUB_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("vocab.json", "vocab.txt", "tokenizer_config.json"),
)
# A tokenizer may say "no limit" with a very large number.
_NO_LIMIT = 10**9


@dataclass(frozen=True)
class Model:
    """A loaded model.

    Attributes:
        name: The path or hub id as given.
        folder: The folder with its files.
        base: The transformers base model, on its device, in inference mode; no head. Of an
            encoder-decoder it is the encoder.
        config: Its configuration.
        tokenizer: Its tokenizer.
        dtype: Name of the compute dtype.
        max_positions: Longest sequence in tokens, `None` if the model has no limit.
        stretches_after: Length in tokens beyond which a batch's longest sequence changes the rotary
            positions of all of it (dynamic NTK, LongRoPE); `None` if the model has no such.
        own_code: Whether code that came with the model was let run.
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

    def stretching(self, lengths: NDArray[np.int64]) -> list[int]:
        """Which sequences of such lengths would change the positions of others in their batch."""
        if self.stretches_after is None:
            return []
        return [int(i) for i in np.flatnonzero(lengths > self.stretches_after)]


def load_model(
    name: str, *, dtype: Dtype = "auto", device: str = "auto", trust_remote_code: bool = False
) -> Model:
    """Loads a model and its tokenizer from a folder or by hub id.

    Args:
        name: Folder, or hub id.
        dtype: Compute dtype; `auto` is the one the weights are stored in.
        device: Any torch device; `auto` is the first accelerator, else the CPU.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        ModelError: If anything about it keeps it from being used, weights that the files lack
            included (transformers would make them up).
    """
    transformers.utils.logging.disable_progress_bar()  # ours is the only one
    folder = find_folder(name, with_code=trust_remote_code)
    target = _device(device)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    with _naming(name):
        config = transformers.AutoConfig.from_pretrained(folder, **options)
    encodes = getattr(config, "is_encoder_decoder", False)
    kind = transformers.AutoModelForSeq2SeqLM if encodes else transformers.AutoModelForCausalLM
    with _naming(name):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        whole, info = kind.from_pretrained(
            folder,
            dtype=DTYPES.get(dtype, "auto"),
            output_loading_info=True,
            # Refused below, with the reason in the error and not in a report that may be hidden.
            ignore_mismatched_sizes=True,
            **options,
        )
        base = whole.get_encoder() if encodes else _base_of(whole)
    base = base.eval().requires_grad_(requires_grad=False)
    _require_same_shapes(name, info)
    _require_weights(name, whole, base, info)
    text_config = text_config_of(config)
    try:
        base = base.to(target)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"`device` {device}: {one_line(error)}") from error
    return Model(
        name=name,
        folder=folder,
        base=base,
        config=config,
        tokenizer=tokenizer,
        dtype=str(base.dtype).removeprefix("torch."),
        max_positions=_max_positions(text_config, tokenizer),
        stretches_after=_stretches_after(text_config),
        own_code=trust_remote_code and any(folder.glob("*.py")),
    )


def text_config_of(config: Any) -> Any:
    """The part of a configuration that says how deep the model is, and how far it reads.

    Of an encoder-decoder that is the encoder's, where it has one of its own.
    """
    own = getattr(config, "encoder", None) if getattr(config, "is_encoder_decoder", False) else None
    whole = own if isinstance(own, transformers.PretrainedConfig) else config
    return whole.get_text_config()


def _base_of(causal: Any) -> Any:
    """The model without its head."""
    if causal.base_model is not causal:
        return causal.base_model
    # It has none by the name that it states (Llama 4).
    inner = (m for m in causal.children() if isinstance(m, transformers.PreTrainedModel))
    return next(inner, causal)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged folder makes transformers raise anything
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{name}: needs code that comes with it\n"
                "hint: if you trust it, allow it with `trust_remote_code=True`"
            ) from error
        raise ModelError(f"{name}: cannot be loaded: {one_line(error)}") from error


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> tuple[Any, int | None]:
    """A model's tokenizer, and its longest sequence in tokens (`None`: no limit); no weights.

    Raises:
        ModelError: If they cannot be loaded.
    """
    folder = find_folder(name, with_code=trust_remote_code, with_weights=False)
    with _naming(name):
        options = {"trust_remote_code": trust_remote_code}
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    return tokenizer, _max_positions(text_config_of(config), tokenizer)


def silence_transformers() -> None:
    """Leaves transformers' warnings out; what matters of them is an error here anyway."""
    transformers.utils.logging.set_verbosity_error()


def find_folder(name: str, *, with_code: bool = False, with_weights: bool = True) -> Path:
    """The folder of a model: the one named, or the hub's files, fetched if need be.

    Args:
        name: Folder, or hub id.
        with_code: Whether code that comes with the model is needed.
        with_weights: Whether its weights are needed.

    Raises:
        ModelError: If there is no such folder and the hub does not have it or cannot be reached.
    """
    if not name:
        raise ModelError("`model_path`: is empty, expected a model's folder or hub id")
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            _require_files(path)
            if with_weights:
                weight_files(path)
            return path
        exists = path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, no such home
        raise ModelError(f"`model_path` {name[:80]}: {one_line(error)}") from error
    if exists:
        raise ModelError(f"{name}: is a file, expected a model's folder or hub id")
    patterns = [
        *_HUB_FILES,
        *(["*.py"] if with_code else []),
        *(["*.safetensors"] if with_weights else []),
    ]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except HFValidationError as error:
        raise ModelError(f"{name}: no such folder, and not a hub id") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{name}: no such folder, and not to be had from the hub: {one_line(error)}"
        ) from error


def _require_files(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: the folder has no config.json; is it a model's folder?")
    if (folder / "adapter_config.json").exists():
        raise ModelError(f"{folder}: has an adapter, which is not supported; merge it first")
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise ModelError(
            f"{folder}: has no tokenizer; expected one of {', '.join(_TOKENIZER_FILES)}"
        )


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers loads weights from.

    Raises:
        ModelError: If there are none.
    """
    files: list[Path] = []
    for kind in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{kind}.index.json"
        if (folder / kind).is_file():
            files = [folder / kind]
        elif index.is_file():
            files = [folder / shard for shard in _shards(index)]
        if files:
            break
    if not files:
        raise ModelError(f"{folder}: has neither model.safetensors nor pytorch_model.bin")
    return files


def _shards(index: Path) -> list[str]:
    try:
        parsed = json.loads(index.read_bytes())
        shards = sorted({str(shard) for shard in parsed["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: is no index of weight files: {one_line(error)}") from error
    absent = [shard for shard in shards if not (index.parent / shard).is_file()]
    if absent or not shards:
        raise ModelError(f"{index}: names {', '.join(absent[:3]) or 'no file'}, not to be found")
    return shards


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


def _require_same_shapes(name: str, info: dict[str, Any]) -> None:
    """Refuses weights of other shapes than the model's; transformers would make them up."""
    mismatched = sorted((str(key), *shapes) for key, *shapes in info.get("mismatched_keys", ()))
    if mismatched:
        some = "; ".join(
            f"{key} is {[*held]}, expected {[*wanted]}" for key, held, wanted in mismatched[:3]
        )
        raise ModelError(
            f"{name}: {len(mismatched)} weights in its files do not have the shapes of its"
            f" config.json: {some}\nhint: was the vocabulary resized and config.json not saved with"
            " the weights, or the other way round?"
        )


def _require_weights(name: str, whole: Any, base: Any, info: dict[str, Any]) -> None:
    """Refuses a model some of whose weights the files do not have."""
    own = {parameter for parameter, _ in base.named_parameters()}
    within = (path for path, module in whole.named_modules() if module is base)
    prefix = f"{next(within, whole.base_model_prefix)}."
    missing = {key.removeprefix(prefix) for key in info["missing_keys"]} & own
    missing |= {str(entry[0]) for entry in info.get("mismatched_keys", ())}
    rooms = {child for child, _ in base.named_children()}
    unused = {key.removeprefix(prefix) for key in info["unexpected_keys"]}
    unused = {key for key in unused if key.partition(".")[0] in rooms and "inv_freq" not in key}
    if unused:
        some = ", ".join(sorted(unused)[:3])
        raise ModelError(
            f"{name}: {len(unused)} weights of its files have no place in the model of its"
            f" config.json ({some}, …); the model would run without them"
        )
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise ModelError(
            f"{name}: {len(missing)} weights are not in its files or of another shape ({some}, …);"
            " the model would run on made-up numbers"
        )


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


def _max_positions(config: Any, tokenizer: Any) -> int | None:
    limits = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    known = [int(n) for n in limits if isinstance(n, int | float) and 0 < n < _NO_LIMIT]
    return min(known, default=None)


def _stretches_after(config: Any) -> int | None:
    ropes = getattr(config, "rope_parameters", None) or {}
    layered = ropes.values() if all(isinstance(rope, dict) for rope in ropes.values()) else [ropes]
    limits = [
        rope.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings
        for rope in layered
        if rope.get("rope_type") in {"dynamic", "longrope"}
    ]
    return min(map(int, limits), default=None)


def one_line(error: BaseException) -> str:
    """What an exception of other software says, on one line, with its kind unless that is clear."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else ""
    return first if first and isinstance(error, OSError) else f"{type(error).__name__}: {first}"
