"""The identity of an encoder, from a loaded model and the options that change its numbers."""

import json
from typing import Any

from ebm_encode._core import Identity
from ebm_encode.digests import digest_files, digest_json
from ebm_encode.errors import ModelError
from ebm_encode.model import Model, weight_files
from ebm_encode.templates import Template
from ebm_encode.tokens import SPECIAL_TOKENS_RULE

# Keys of config.json that change no number, but do change from one release of a library to the next
# or from one copy of a model to another.
_VOLATILE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}


def identify(
    model: Model,
    template: Template,
    *,
    pooling: str,
    layer: int,
    max_length: int | None,
    truncates: bool,
) -> Identity:
    """The identity of an encoder over `model`.

    Where no prompt is ever cut (`truncates` is false), the longest length changes no number and is
    left out.

    Raises:
        ModelError: If the model's files cannot be read.
    """
    quantization = getattr(model.config, "quantization_config", None)
    try:
        weights = digest_files(weight_files(model.folder))
        config = json.loads((model.folder / "config.json").read_bytes())
        code = digest_files(sorted(model.folder.glob("*.py"))) if model.own_code else None
    except (OSError, ValueError) as error:
        raise ModelError(f"{model.name}: {error}") from error
    fields = {
        "weights": weights,
        "config": digest_json({k: v for k, v in config.items() if k not in _VOLATILE}),
        "code": code,
        "tokenizer": digest_json(_tokenizer_as_it_runs(model.tokenizer)),
        "template": template.text,
        "special_tokens": SPECIAL_TOKENS_RULE,
        "pooling": pooling,
        "layer": layer,
        "dtype": model.dtype,
        "quantization": "none" if quantization is None else _canonical(quantization),
        "max_length": max_length if truncates else None,
        "truncation": "right" if truncates and max_length is not None else "none",
    }
    return Identity.from_json(json.dumps(fields))


def _tokenizer_as_it_runs(tokenizer: Any) -> Any:
    """All that decides the token ids; not the settings for padding and cutting, which we set."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        whole = json.loads(backend.to_str())
        return {key: value for key, value in whole.items() if key not in {"padding", "truncation"}}
    return {
        "class": type(tokenizer).__name__,
        "vocabulary": tokenizer.get_vocab(),
        "settings": {key: str(value) for key, value in sorted(tokenizer.init_kwargs.items())},
    }


def _canonical(quantization: Any) -> str:
    settings = quantization if isinstance(quantization, dict) else quantization.to_dict()
    return json.dumps(settings, sort_keys=True, default=str)
