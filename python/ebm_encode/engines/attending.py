"""Which attention and mask functions a model's own code uses, for the time of a pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def attending_by(base: Any, name: str) -> Iterator[None]:
    """Lets a model attend by the functions that transformers knows by a name."""
    configs = {id(module.config): module.config for module in base.modules() if _configured(module)}
    before = {key: config._attn_implementation for key, config in configs.items()}  # noqa: SLF001
    try:
        for config in configs.values():
            config._attn_implementation = name  # noqa: SLF001
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]  # noqa: SLF001


def _configured(module: Any) -> bool:
    return hasattr(getattr(module, "config", None), "_attn_implementation")
