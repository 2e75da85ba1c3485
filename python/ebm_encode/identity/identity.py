"""The identity of an encoder, from a loaded model and the options that change its numbers."""

import json
import sys
from pathlib import Path
from typing import Any

from ebm_encode._core import Identity
from ebm_encode.digests import digest_file, digest_files, digest_json
from ebm_encode.errors import ModelError
from ebm_encode.identity.tokenizer import digest_of_ids, tokenizer_as_it_runs
from ebm_encode.loading.model import Model
from ebm_encode.loading.model_files import weight_files
from ebm_encode.prompts.tokens import FORMER_SPECIAL_TOKENS_RULE, SPECIAL_TOKENS_RULE, Prompts
from ebm_encode.state_formats import AS_GIVEN, FIELD

# Keys of config.json that change no number, but do change from one release of a library to the next
# or from one copy of a model to another.
_VOLATILE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}

# Where transformers imports the code that comes with models.
_OWN_MODULES = "transformers_modules."

# What the identity of earlier versions does not have, or says by another rule. `tokenizer` is as it
# was for all tokenizers that have a fast form.
_NEW = ("tokenizer_ids", "special_tokens", "max_length", "truncation")


def identify(
    model: Model,
    prompts: Prompts,
    *,
    pooling: str,
    layer: int,
    state_format: str = AS_GIVEN,
) -> Identity:
    """The identity of an encoder over `model`.

    Where no prompt is ever cut, the longest length changes no number and is `null`.

    Args:
        model: The model.
        prompts: How states become tokens: the template, and the cut.
        pooling: `mean` or `last`.
        layer: Index of the hidden state as in Hugging Face `hidden_states`.
        state_format: The printed form of its states, with its version.

    Raises:
        ModelError: If the model's files cannot be read, or have changed since they were loaded.
    """
    try:
        weights = digest_files([*weight_files(model.folder), *_extra_files(model)])
        config = json.loads((model.folder / "config.json").read_bytes())
        code = _code(model) if model.own_code else None
        tokenizer = digest_json(tokenizer_as_it_runs(prompts.tokenizer, model.folder))
        adapter = None if model.adapter is None else model.adapter.digest()
    except (OSError, ValueError) as error:
        raise ModelError(f"{model.name}: {error}") from error
    fields = {
        "weights": weights,
        "config": digest_json({k: v for k, v in config.items() if k not in _VOLATILE}),
        "code": code,
        "tokenizer": tokenizer,
        "tokenizer_ids": digest_of_ids(prompts.tokenizer),
        "template": prompts.template.text,
        "special_tokens": SPECIAL_TOKENS_RULE,
        "pooling": pooling,
        "layer": layer,
        "dtype": model.dtype,
        "quantization": "none" if model.quantization is None else _canonical(model.quantization),
        "max_length": None if prompts.cut == "none" else prompts.max_length,
        "truncation": _truncation(prompts),
    }
    # Absent for texts as given, so that identities from before there were formats stay the same.
    if state_format != AS_GIVEN:
        fields[FIELD] = state_format
    # The same: absent without an adapter.
    if adapter is not None:
        fields["adapter"] = adapter
    # After everything was read: what is digested is what was loaded only if nothing has changed.
    model.files.require_unchanged(model.name)
    return Identity.from_json(json.dumps(fields))


def with_backend(identity: Identity, backend: dict[str, str]) -> Identity:
    """The identity of an encoder whose embeddings an inference server computes.

    Args:
        identity: That of the same encoder without the server.
        backend: What the server adds, by field.
    """
    return Identity.from_json(json.dumps(json.loads(identity.to_json()) | backend))


def is_former_form(former: Identity, present: Identity) -> bool:
    """Whether an identity is this encoder's in the form of an earlier version.

    Then the embeddings of all states whose tokens are the same by the former rule and the present
    one are the same; which these are, `former_tokens` tells.
    """
    before, now = json.loads(former.to_json()), json.loads(present.to_json())
    if before.get("special_tokens") != FORMER_SPECIAL_TOKENS_RULE or "tokenizer_ids" in before:
        return False
    return _without(before, _NEW) == _without(now, _NEW)


def former_longest(former: Identity) -> int | None:
    """Where an identity of an earlier version says that prompts were cut; `None` for nowhere."""
    fields = json.loads(former.to_json())
    longest = fields.get("max_length")
    return int(longest) if longest is not None and fields.get("truncation") != "none" else None


def _without(fields: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def _truncation(prompts: Prompts) -> str:
    if prompts.cut == "none" or prompts.max_length is None:
        return "none"
    if prompts.cut == "hypotheses":
        return "hypotheses"
    return f"{prompts.side}, special tokens kept" if prompts.keeps_end else prompts.side


def _extra_files(model: Model) -> list[Path]:
    """Weight files that an architecture has beside the usual ones."""
    names = getattr(type(model.config), "extra_files", ())
    return [file for name in names if (file := model.folder / name).is_file()]


def _code(model: Model) -> str | None:
    """Digest of the modules that came with a model and are imported, wherever they come from.

    By their names within their packages: where transformers keeps them depends on the name of the
    model's folder and on where that is.
    """
    kinds = [type(model.base), type(model.config), type(model.tokenizer)]
    kinds += [type(module) for module in model.base.modules()]
    packages = {
        kind.__module__.rpartition(".")[0]
        for kind in kinds
        if kind.__module__.startswith(_OWN_MODULES)
    }
    files: dict[str, list[str]] = {}
    for name, module in [*sys.modules.items()]:
        package = next((p for p in packages if name.startswith(f"{p}.")), None)
        file = getattr(module, "__file__", None)
        if package is not None and file is not None and Path(file).name != "__init__.py":
            files.setdefault(name.removeprefix(f"{package}."), []).append(digest_file(Path(file)))
    files = {name: sorted(digests) for name, digests in files.items()}  # two packages may share one
    return digest_json(files) if files else None


def _canonical(quantization: dict[str, Any]) -> str:
    return json.dumps(quantization, sort_keys=True, default=str)
