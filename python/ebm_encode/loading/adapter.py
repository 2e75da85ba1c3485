"""An adapter merged into its base model, in float32, by peft.

Nothing that peft does is taken on trust: it skips tensors that fit no module, starts those that are
missing at random, and may merge what does something else unmerged. So the tensors are compared
before and after, and the merged model with the unmerged one.
"""

import dataclasses
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ebm_encode.errors import AdapterError, LibraryError, ModelError, one_line
from ebm_encode.loading.adapter_files import Adapter, some
from ebm_encode.loading.quantization import require_full_weights
from ebm_encode.torch_settings import inference

log = logging.getLogger(__name__)

MERGED_KINDS = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT")
"""Kinds of adapters that become weights of the base model. DoRA and rsLoRA are of LORA."""

# These start from a changed base model, which the adapter alone does not have.
_CHANGES_ITS_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")

_PROBE_TOKENS = 32
# Of a token's hidden state. Rounding of float32 is a hundredth of it in deep models; what comes of
# an adapter in the wrong weight is far more.
_TOLERANCE = 1e-3

_HINT = "\nhint: merge it with the software that made it, save that model, and give its folder"


def require_mergeable(adapter: Adapter, model: str, config: Any) -> None:
    """Refuses what cannot be merged, before any weight is loaded.

    Args:
        adapter: The adapter.
        model: What its base model is called in errors.
        config: The base model's configuration.

    Raises:
        LibraryError: If peft is not installed.
        AdapterError: If the adapter is of another kind, or the base model is quantised.
    """
    _peft()
    if adapter.kind not in MERGED_KINDS:
        raise AdapterError(
            f"{adapter.config}: is a {adapter.kind} adapter, which is not merged here; kinds that"
            f" are: {', '.join(MERGED_KINDS)}{_HINT}"
        )
    start = str(adapter.settings.get("init_lora_weights"))
    if start.startswith(_CHANGES_ITS_BASE):
        raise AdapterError(
            f"{adapter.config}: init_lora_weights is {start}: it was trained on a changed base"
            " model\nhint: save it with peft's path_initial_model_for_weight_conversion, or merge"
            " it where it was trained"
        )
    try:
        require_full_weights(model, config, "adapters are merged")
    except ModelError as error:
        raise AdapterError(f"`adapter` {adapter.name}: {error}") from error
    stated = adapter.stated_base
    if stated is not None and Path(stated).name.lower() != Path(model).name.lower():
        # Only a note: paths differ from machine to machine.
        log.warning("adapter %s: was trained on %s, the model is %s", adapter.name, stated, model)


def merge(
    adapter: Adapter, model: str, whole: Any, base: Any, *, with_head: bool
) -> frozenset[str]:
    """Merges an adapter into a float32 model on the CPU, in place.

    Args:
        adapter: The adapter.
        model: What its base model is called in errors.
        whole: The model with its head.
        base: The part of it that gives hidden states.
        with_head: Whether what the head says must be right too.

    Returns:
        The names of its tensors, without peft's prefix: the path of a module and what is trained.

    Raises:
        AdapterError: If a tensor of the adapter has no place in the model, the model wants one that
            the adapter lacks, or has one of another shape; if peft cannot merge it, or the merged
            model computes something else than the unmerged one.
    """
    peft = _peft()
    tensors = adapter.tensors()
    with _of_peft(adapter, model):
        wrapped = peft.PeftModel(whole, _config(peft, adapter), low_cpu_mem_usage=True).eval()
        _require_same(adapter, model, tensors, _expected(peft, wrapped, tensors))
        peft.set_peft_model_state_dict(wrapped, tensors, low_cpu_mem_usage=True)
        held = _expected(peft, wrapped, tensors)
        unlike = [name for name in tensors if not torch.equal(tensors[name], held[name])]
        if unlike:
            raise AdapterError(f"{adapter.file}: peft did not load {some(unlike)} as stored")
        before = _outputs(whole, base, with_head=with_head)
        wrapped.merge_and_unload(safe_merge=True)
        after = _outputs(whole, base, with_head=with_head)
    for what, unmerged, merged in zip(("hidden states", "logits"), before, after, strict=False):
        off = _distance(merged, unmerged)
        if not off <= _TOLERANCE:
            raise AdapterError(
                f"`adapter` {adapter.name}: merged into {model}, it gives other {what} than"
                f" unmerged (relative distance {off:.1e}){_HINT}"
            )
    return frozenset(name.removeprefix("base_model.model.") for name in tensors)


def take_weights(
    adapter: Adapter, trained: frozenset[str], target: Any, merged: Any, prefix: str
) -> None:
    """Takes the weights that an adapter changed into a model of any dtype.

    All others are, bit by bit, those of the model's files in that dtype.

    Args:
        adapter: The adapter.
        trained: The names of its tensors, without peft's prefix.
        target: The model as it is loaded in its compute dtype.
        merged: The same part of the same model in float32, with the adapter merged.
        prefix: Path of that part in the whole model, with a dot behind it unless it is empty.

    Raises:
        AdapterError: If weights would change that the adapter does not train.
    """
    held, values, changed = target.state_dict(), merged.state_dict(), 0

    def wanted(name: str) -> torch.Tensor:
        # One at a time: all of them are a model more. Rounded first, so that half is copied.
        return values[name].to(held[name].dtype).to(held[name].device)

    for name, tensor in held.items():
        module = f"{prefix}{name}".rpartition(".")[0]
        if any(key.startswith(f"{module}.") for key in trained):
            changed += not torch.equal(tensor, wanted(name))
            tensor.copy_(wanted(name))
    # Again from the first one: two names may be one tensor, and hold what was copied last.
    unlike = [name for name, tensor in held.items() if not torch.equal(tensor, wanted(name))]
    if unlike:
        raise AdapterError(
            f"`adapter` {adapter.name}: merged, {some(unlike)} would need a value of its own, and"
            " is one weight with another in this model\nhint: train input and output embeddings as"
            " one (peft: ensure_weight_tying); or give the folder of the merged model, which peft"
            " unties (merge_and_unload, save_pretrained)"
        )
    if changed:
        log.info("adapter %s (%s): merged, %d weights changed", adapter.name, adapter.kind, changed)
    else:
        log.warning("adapter %s: changes no weight; was it trained?", adapter.name)


def _peft() -> Any:
    try:
        import peft  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise LibraryError(
            f"adapters need peft: {one_line(error)}\nhint: pip install 'ebm-encode[adapter]'"
        ) from error
    return peft


@contextmanager
def _of_peft(adapter: Adapter, model: str) -> Iterator[None]:
    """In float32 as it is, whatever a host has set; what peft raises is an error of the adapter."""
    with inference(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they warn of is checked here
        try:
            yield
        except AdapterError:
            raise
        except Exception as error:  # what does not fit makes peft raise anything
            raise AdapterError(
                f"{adapter.folder}: cannot be merged into {model}: {one_line(error)}{_HINT}"
            ) from error


def _config(peft: Any, adapter: Adapter) -> Any:
    """The settings, as peft takes them; without those for training only."""
    kind = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[adapter.kind]
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = {k for k, v in adapter.settings.items() if k not in known and v not in _NOT_SET}
    if unknown:
        raise AdapterError(
            f"{adapter.config}: has settings that peft {peft.__version__} does not know:"
            f" {some([*unknown])}\nhint: upgrade peft to the version that saved it"
        )
    settings = {name: value for name, value in adapter.settings.items() if name in known}
    return kind(**kind.check_kwargs(**settings) | {"inference_mode": True})


_NOT_SET: tuple[Any, ...] = (None, False, [], {})


def _expected(peft: Any, wrapped: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The adapter's tensors as they are in the model, by the names in its file."""
    own = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    if tensors.keys() <= own.keys():
        return dict(own)
    # Files may hold the embeddings of the base model, too.
    return dict(peft.get_peft_model_state_dict(wrapped, save_embedding_layers=True))


def _require_same(
    adapter: Adapter,
    model: str,
    tensors: dict[str, torch.Tensor],
    expected: dict[str, torch.Tensor],
) -> None:
    unused, missing = [*tensors.keys() - expected.keys()], [*expected.keys() - tensors.keys()]
    stated = f" (it states {adapter.stated_base})" if adapter.stated_base else ""
    hint = f"\nhint: is it the adapter of another base model{stated}?"
    if unused:
        raise AdapterError(
            f"{adapter.file}: {len(unused)} of {len(tensors)} tensors have no place in {model} with"
            f" its adapter_config.json: {some(unused)}{hint}"
        )
    if missing:
        raise AdapterError(
            f"{adapter.file}: lacks {len(missing)} of {len(expected)} tensors that {model} has a"
            f" place for: {some(missing)}{hint}"
        )
    shapes = [
        f"{name} is {[*tensor.shape]}, expected {[*expected[name].shape]}"
        for name, tensor in tensors.items()
        if tensor.shape != expected[name].shape
    ]
    if shapes:
        raise AdapterError(
            f"{adapter.file}: {len(shapes)} of {len(tensors)} tensors do not have the shapes that"
            f" {model} wants: {'; '.join(sorted(shapes)[:3])}{hint}"
        )


def _outputs(whole: Any, base: Any, *, with_head: bool) -> list[torch.Tensor]:
    """Hidden states of some tokens, (T, C), and their logits if asked for."""
    count = whole.get_input_embeddings().weight.shape[0]
    ids = torch.linspace(0, count - 1, _PROBE_TOKENS).long()[None]  # (1, T)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    options = {"use_cache": False, "return_dict": True}
    outputs = [base(**inputs, **options).last_hidden_state[0]]
    return outputs + ([whole(**inputs, **options).logits[0]] if with_head else [])


def _distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The relative distance of the median token: rounding may send single ones to other experts."""
    off = (found - wanted).double().norm(dim=-1) / wanted.double().norm(dim=-1)
    return float(off.median())
