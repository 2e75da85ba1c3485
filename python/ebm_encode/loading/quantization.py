"""Quantised checkpoints: whether this machine can load one.

transformers decides, and loads. What it decides differs from machine to machine, and some of it
only shows in a warning: FP8 and MXFP4 become 16-bit weights where the hardware or a package is
missing. So it is asked before any weight is read; `quantized_weights` says what became of them.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers.quantizers import AutoHfQuantizer

from ebm_encode.errors import ModelError, one_line

# By method: what has to be importable, each with what to install for it. The versions are checked
# by transformers.
_BY_GPTQMODEL = {"gptqmodel": "gptqmodel"}
_PACKAGES: dict[str, dict[str, str]] = {
    "aqlm": {"aqlm": "'aqlm[gpu,cpu]'"},
    "auto-round": {"auto_round": "auto-round"},
    "awq": _BY_GPTQMODEL,
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
    "eetq": {"kernels": "kernels"},
    "fbgemm_fp8": {"fbgemm_gpu": "fbgemm-gpu"},
    "fouroversix": {"fouroversix": "fouroversix"},
    "fp_quant": {"fp_quant": "fp_quant"},
    "gptq": {"optimum": "optimum"} | _BY_GPTQMODEL,
    "higgs": {"flute": "flute-kernel", "fast_hadamard_transform": "fast_hadamard_transform"},
    "hqq": {"hqq": "hqq"},
    "quanto": {"optimum.quanto": "optimum-quanto"},
    "quark": {"quark": "amd-quark"},
    "sinq": {"sinq": "sinq"},
    "spqr": {"spqr_quant": "'spqr_quant[gpu]'"},
    "torchao": {"torchao": "torchao"},
    "vptq": {"vptq": "vptq"},
}
# Without an accelerator these compute nothing; transformers asks whether the machine has one, not
# whether the model goes there.
_ON_ACCELERATORS = ("eetq", "fbgemm_fp8", "fp_quant", "higgs", "hqq", "nvfp4", "spqr", "vptq")
_FP8 = ("fp8", "mxfp8")
_HOLDS_FP8 = ("cuda", "xpu")

_FULL = "or give the checkpoint with its full weights"


@dataclass(frozen=True)
class Quantized:
    """A quantised checkpoint that this machine can load.

    Attributes:
        method: Its method, as `config.json` calls it.
        settings: What `config.json` says of it.
        options: Options for transformers' `from_pretrained`.
    """

    method: str
    settings: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)


def settings_of(config: Any) -> dict[str, Any] | None:
    """What a configuration says of quantised weights, its own or its text model's; `None`: none."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else None
    found = (getattr(part, "quantization_config", None) for part in (config, text))
    settings = next((value for value in found if value is not None), None)
    if settings is None:
        return None
    return dict(settings if isinstance(settings, dict) else settings.to_dict())


def require_full_weights(name: str, config: Any, what: str) -> None:
    """Refuses a quantised checkpoint for what is done in float32 only.

    Args:
        name: What the model is called in errors.
        config: Its configuration.
        what: What that is, with its verb: `adapters are merged`.

    Raises:
        ModelError: If the checkpoint is quantised.
    """
    settings = settings_of(config)
    if settings is not None:
        raise ModelError(
            f"{name} is quantised ({_method(name, settings)}), and {what} in float32\n"
            "hint: give the model that was quantised, with its full weights"
        )


def require_usable(
    name: str, config: Any, target: torch.device, dtype: torch.dtype | None
) -> Quantized | None:
    """Refuses a quantised checkpoint that cannot be used here, before any weight is read.

    Args:
        name: What the model is called in errors.
        config: Its configuration.
        target: Where it goes.
        dtype: The compute dtype that was asked for, if any.

    Returns:
        How to load it; `None` if it is not quantised.

    Raises:
        ModelError: If transformers does not know the method, if a package or the hardware for it
            is missing, or if it does not compute in that dtype; with the way out.
    """
    settings = settings_of(config)
    if settings is None:
        return None
    method = _method(name, settings)
    on = target.type
    if method in _ON_ACCELERATORS and on == "cpu":
        raise ModelError(
            f"{name}: is quantised ({method}), and {method} computes on accelerators only\n"
            f"hint: load it on one (`device`), {_FULL}"
        )
    _require_packages(name, method, _PACKAGES.get(method, {}))
    # On a CPU scales and packed weights would be pages of their file, held where no list of a
    # model's parameters names them; a write to the file would change them.
    options: dict[str, Any] = {"disable_mmap": True} if on == "cpu" else {}
    with _naming_method(name, method):
        if method in _FP8 and on not in _HOLDS_FP8:
            # As transformers does where there is no GPU at all, so that a CPU is a CPU anywhere.
            chosen = transformers.FineGrainedFP8Config.from_dict(settings | {"dequantize": True})
            options["quantization_config"] = chosen
        merged = AutoHfQuantizer.merge_quantization_configs(
            dict(settings), options.get("quantization_config")
        )
        quantizer = AutoHfQuantizer.from_config(merged, pre_quantized=True)
        quantizer.validate_environment(device_map={"": str(target)}, weights_only=True)
        computed = dtype if dtype is None else quantizer.update_dtype(dtype)
    if computed != dtype:
        raise ModelError(
            f"{name}: is quantised ({method}), which computes in {dtype_name(computed)} here, not"
            f" in {dtype_name(dtype)}\nhint: leave `dtype` out, {_FULL}"
        )
    if method in _FP8 and not merged.dequantize:
        # transformers asks for it in the first pass only.
        _require_packages(name, method, {"kernels": "kernels"})
    return Quantized(method, settings, options)


@contextmanager
def stdout_kept(quantized: Quantized | None) -> Iterator[None]:
    """What packages print within goes to stderr; stdout is for what a command says."""
    if quantized is None:
        yield
    else:
        with redirect_stdout(sys.stderr):
            yield


def dtype_name(dtype: torch.dtype | None) -> str:
    """A dtype's name, as options have it."""
    return str(dtype).removeprefix("torch.")


def _method(name: str, settings: dict[str, Any]) -> str:
    """The method, as `config.json` calls it."""
    stated = settings.get("quant_method")
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        stated = "bitsandbytes"  # old releases state no method
    method = None if stated is None else str(getattr(stated, "value", stated))
    if method is None or not AutoHfQuantizer.supports_quant_method(settings):
        # transformers would load it as if it were not quantised.
        what = "states no quant_method" if method is None else f"is quantised by {method}"
        raise ModelError(
            f"{name}: its config.json {what}, which transformers {transformers.__version__} does"
            f" not know\nhint: upgrade transformers if a newer release does, {_FULL}"
        )
    return method


def _require_packages(name: str, method: str, packages: dict[str, str]) -> None:
    missing = [package for package in packages if not _is_there(package)]
    if missing:
        raise ModelError(
            f"{name}: is quantised ({method}), which needs {' and '.join(missing)}\n"
            f"hint: pip install {' '.join(packages[package] for package in missing)}"
        )


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # the package that it is in
        return False


@contextmanager
def _naming_method(name: str, method: str) -> Iterator[None]:
    """What transformers refuses, with the method and a way out."""
    try:
        with redirect_stdout(sys.stderr):  # packages greet where they are imported
            yield
    except Exception as error:  # a missing package, a version, the hardware, damaged settings
        out = "install that" if isinstance(error, ImportError) else "use a device that it runs on"
        raise ModelError(
            f"{name}: is quantised ({method}), and cannot be loaded here: {one_line(error)}\n"
            f"hint: {out}, {_FULL}"
        ) from error
