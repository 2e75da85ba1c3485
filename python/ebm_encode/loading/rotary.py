"""Positions: how far a model reads, and rotary positions that depend on the length of a pass.

Dynamic NTK and LongRoPE turn all positions of a pass by its longest sequence. transformers keeps
what it computed for the last long pass, so that a pass depends on those before it; `RotaryState`
takes that back.
"""

from collections.abc import Iterator
from typing import Any

import torch

# A tokenizer may say "no limit" with a very large number.
_NO_LIMIT = 10**9
# By their definitions these read `factor` times the length that they were trained with.
_BY_FACTOR = {"dynamic", "longrope", "yarn", "llama3"}


def max_positions(config: Any, tokenizer: Any) -> int | None:
    """Longest sequence in tokens; `None`: no limit.

    Args:
        config: A text configuration.
        tokenizer: The tokenizer, which may have a smaller limit.
    """
    base = _number(getattr(config, "max_position_embeddings", None))
    reach = max([base or 0, *(_reach(rope, config) for rope in _ropes(config))]) or None
    own = _number(getattr(tokenizer, "model_max_length", None))
    if own == base:  # the number of config.json, not a limit of the tokenizer's own
        own = reach
    return min((n for n in (reach, own) if n is not None), default=None)


def stretches_after(config: Any) -> int | None:
    """Length beyond which the longest sequence of a pass changes the positions of all of it.

    `None` for models without such positions.
    """
    limits = []
    for rope in _ropes(config):
        kind = _kind(rope)
        if kind == "dynamic":
            limits.append(_number(getattr(config, "max_position_embeddings", None)))
        elif kind == "longrope":
            limits.append(_trained(rope, config))
    return min((n for n in limits if n is not None), default=None)


def _reach(rope: dict[str, Any], config: Any) -> int:
    factor = rope.get("factor")
    trained = (
        _number(getattr(config, "max_position_embeddings", None))
        if _kind(rope) == "dynamic"
        else _number(rope.get("original_max_position_embeddings"))
    )
    if _kind(rope) not in _BY_FACTOR or trained is None or not isinstance(factor, int | float):
        return 0
    return int(trained * factor)


def _trained(rope: dict[str, Any], config: Any) -> int | None:
    return _number(
        rope.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or getattr(config, "max_position_embeddings", None)
    )


def _ropes(config: Any) -> Iterator[dict[str, Any]]:
    """The rotary settings, one for each kind of layer; older code names them otherwise."""
    for name in ("rope_parameters", "rope_scaling"):
        ropes = getattr(config, name, None)
        if not isinstance(ropes, dict) or not ropes:
            continue
        layered = ropes.values() if all(isinstance(r, dict) for r in ropes.values()) else [ropes]
        yield from layered
        return


def _kind(rope: dict[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _number(value: Any) -> int | None:
    """A length, also where a file holds it as text; `None` for what is no limit."""
    try:
        number = int(float(value))
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 < number < _NO_LIMIT else None


class RotaryState:
    """The rotary tables of a model as they were when it was loaded.

    Args:
        base: The model; `None` if no pass changes its tables, so that there is nothing to reset.
    """

    def __init__(self, base: torch.nn.Module | None = None) -> None:
        modules = () if base is None else base.modules()
        self._kept = [
            (module, _tables(module), _numbers(module))
            for module in modules
            if any(name.endswith("max_seq_len_cached") for name in vars(module))
        ]

    def reset(self) -> None:
        """Makes the next pass independent of the ones before."""
        for module, tables, numbers in self._kept:
            for name, table in tables.items():
                # A copy: LongRoPE writes into the table that it finds.
                module._buffers[name] = table.clone()  # noqa: SLF001  (as `register_buffer` does)
            for name, number in numbers.items():
                setattr(module, name, number)


def _tables(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: table.clone()
        for name, table in module.named_buffers(recurse=False)
        if table is not None
    }


def _numbers(module: torch.nn.Module) -> dict[str, Any]:
    """What the module notes beside its tables: lengths and scales, not its settings."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, int | float) and name != "training" and not name.startswith("_")
    }
