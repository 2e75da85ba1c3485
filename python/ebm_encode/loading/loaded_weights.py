"""Whether a model runs on what its files hold: no weight initialised at random, none unused."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ebm_encode.errors import ModelError

# Tables that models used to save and now compute. Each is skipped only if it has the shape of one,
# so that no weight of the same name is: a causal mask `[1, 1, n, n]`, one number that stands for
# "not seen", positions.
_MASK = re.compile(r"(attn|attention|self_attention)\.(bias|causal_mask)$")
_OTHERS = re.compile(
    r"(masked_bias|inv_freq|position_ids|embed_positions|cos_cached|sin_cached|version)$"
)
_LAYER = re.compile(r"(^|\.)(layers|h|blocks)\.(\d+)\.")
# Layers for speculation (multi-token prediction) begin with one of these; no other layer has them.
_SPECULATES = ("eh_proj", "enorm", "hnorm")


def require_same_shapes(name: str, info: dict[str, Any]) -> None:
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


def require_weights(
    name: str, whole: Any, base: Any, info: dict[str, Any], files: Iterable[Path]
) -> None:
    """Refuses a model whose files lack weights or persistent buffers, or have others.

    Weights that transformers skips by its own lists, or that it only computes by now, are skipped
    here as well.

    Args:
        name: What the model is called in errors.
        whole: The model with its head.
        base: The part of it that runs.
        info: transformers' loading information.
        files: The weight files.

    Raises:
        ModelError: In either case; the weights are listed.
    """
    within = (path for path, module in whole.named_modules() if module is base)
    prefix = f"{next(within, whole.base_model_prefix)}."
    # All that is saved with a model and decides its numbers: parameters and persistent buffers,
    # such as a router's bias.
    own = set(base.state_dict())
    missing = {key.removeprefix(prefix) for key in info["missing_keys"]} & own
    missing |= {str(entry[0]) for entry in info.get("mismatched_keys", ())}
    unused = _unused(info["unexpected_keys"], prefix, base, files)
    if unused:
        raise ModelError(
            f"{name}: {len(unused)} weights of its files have no place in the model of its"
            f" config.json ({_some(unused)}); the model would run without them"
        )
    if missing:
        raise ModelError(
            f"{name}: {len(missing)} weights are not in its files or of another shape"
            f" ({_some(missing)}); they would be randomly initialised"
        )


def _unused(keys: Iterable[str], prefix: str, base: Any, files: Iterable[Path]) -> set[str]:
    children = {child for child, _ in base.named_children()}
    unused = {key.removeprefix(prefix) for key in keys}
    unused = {key for key in unused if key.partition(".")[0] in children}
    if not unused:
        return unused
    speculative = _speculative_layers(unused, base.config)
    shape_of = _shapes(files)
    return {
        key
        for key in unused
        if _layer(key) not in speculative and not _is_computed(key, shape_of(key))
    }


def _is_computed(key: str, shape: tuple[int, ...] | None) -> bool:
    if shape is None:
        return False
    if _MASK.search(key):
        return len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]  # noqa: PLR2004
    if key.endswith("masked_bias"):
        return shape in ((), (1,))
    return _OTHERS.search(key) is not None


def _speculative_layers(keys: set[str], config: Any) -> set[int | None]:
    """Numbers of the layers behind the last that only guess further tokens (DeepSeek-V3)."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    count = getattr(text, "num_nextn_predict_layers", None) or 0
    last = int(getattr(text, "num_hidden_layers", 0))
    return {
        number
        for key in keys
        if (number := _layer(key)) is not None
        and last <= number < last + int(count)
        and any(mark in key for mark in _SPECULATES)
    }


def _layer(key: str) -> int | None:
    found = _LAYER.search(key)
    return int(found.group(3)) if found else None


def _shapes(files: Iterable[Path]) -> Callable[[str], tuple[int, ...] | None]:
    """A function that gives the shape of a tensor of some files, by the end of its name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                names = tensors.keys()
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
        else:
            loaded = torch.load(file, map_location="meta", weights_only=True)
            shapes |= {name: tuple(t.shape) for name, t in loaded.items() if torch.is_tensor(t)}

    def shape_of(key: str) -> tuple[int, ...] | None:
        # Files may lack the base model's prefix, or have one more.
        return next((shape for name, shape in shapes.items() if name.endswith(key)), None)

    return shape_of


def _some(keys: set[str]) -> str:
    listed = sorted(keys)
    return ", ".join(listed[:3]) + (", …" if len(listed) > 3 else "")  # noqa: PLR2004
