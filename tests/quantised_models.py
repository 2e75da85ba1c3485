"""Makes quantised checkpoints of small models: FP8 and MXFP4 files, and by each method's tools.

None is calibrated: each weight is rounded to what its method can hold.
"""

import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

_BLOCK = 32
_OF_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _copy(source, folder):
    return Path(shutil.copytree(source, folder))


def _save(folder, weights, **settings):
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | settings))
    return folder


def _is_linear(name):
    return name.removesuffix(".weight").endswith(_OF_LAYERS)


def stated(source, folder, settings):
    """A copy of a model whose `config.json` says that it is quantised; its weights are not."""
    copy = _copy(source, folder)
    return _save(copy, load_file(f"{source}/model.safetensors"), quantization_config=settings)


def fp8(source, folder, edit=lambda weights: weights):
    """As DeepSeek-V3 has it: blocks of float8_e4m3fn, each with a scale."""
    copy, weights = _copy(source, folder), {}
    for name, tensor in load_file(f"{source}/model.safetensors").items():
        if not _is_linear(name):
            weights[name] = tensor
            continue
        blocks = _in_blocks(tensor)
        scales = blocks.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
        scaled = blocks / scales[:, None, :, None]
        weights[name] = scaled.reshape(tensor.shape).to(torch.float8_e4m3fn)
        weights[f"{name}_scale_inv"] = scales
    settings = {"quant_method": "fp8", "weight_block_size": [_BLOCK, _BLOCK]}
    settings["activation_scheme"] = "dynamic"
    return _save(copy, edit(weights), quantization_config=settings)


def fp8_in_full(source, folder):
    """The same numbers, computed here, as an ordinary float32 checkpoint."""
    copy, quantised = _copy(source, folder), load_file(f"{source}/model.safetensors")
    weights = {}
    for name, tensor in quantised.items():
        scales = quantised.get(f"{name}_scale_inv")
        if scales is not None:
            blocks = _in_blocks(tensor.float()) * scales[:, None, :, None]
            weights[name] = blocks.reshape(tensor.shape)
        elif not name.endswith("_scale_inv"):
            weights[name] = tensor
    config = json.loads((copy / "config.json").read_bytes())
    del config["quantization_config"]
    (copy / "config.json").write_text(json.dumps(config))
    return _save(copy, weights)


def _in_blocks(tensor):
    rows, columns = tensor.shape
    return tensor.reshape(rows // _BLOCK, _BLOCK, columns // _BLOCK, _BLOCK)


def mxfp4(source, folder):
    """As gpt-oss has it: experts in pairs of 4-bit numbers, 32 of them with an exponent."""
    copy, weights = _copy(source, folder), {}
    generator = torch.Generator().manual_seed(0)
    for name, tensor in load_file(f"{source}/model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            weights[name] = tensor.to(torch.bfloat16)
            continue
        experts, columns, rows = tensor.shape  # (E, inputs, outputs)
        shape = (experts, rows, columns // 32)
        packed = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
        weights[f"{name}_blocks"] = packed
        weights[f"{name}_scales"] = torch.full(shape, 120, dtype=torch.uint8)
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head", "router"]}
    return _save(copy, weights, dtype="bfloat16", quantization_config=settings)


def compressed(source, folder, scheme):
    """By compressed-tensors, with one of its schemes."""
    from compressed_tensors.compressors import ModelCompressor  # noqa: PLC0415
    from compressed_tensors.quantization import (  # noqa: PLC0415
        QuantizationConfig,
        apply_quantization_config,
        preset_name_to_scheme,
    )
    from compressed_tensors.quantization.utils import calculate_qparams  # noqa: PLC0415

    copy = _copy(source, folder)
    whole = transformers.AutoModelForCausalLM.from_pretrained(source)
    group = preset_name_to_scheme(scheme, ["Linear"])
    if group.weights.group_size:
        group.weights.group_size = _BLOCK
    apply_quantization_config(
        whole,
        QuantizationConfig(
            config_groups={"all": group}, ignore=["lm_head"], quantization_status="frozen"
        ),
    )
    for module in whole.modules():
        if getattr(module, "quantization_scheme", None) is None:
            continue
        rows = module.weight.data
        grouped = rows.reshape(len(rows), -1, group.weights.group_size or rows.shape[1])
        scales, _ = calculate_qparams(grouped.amin(-1), grouped.amax(-1), group.weights)
        module.weight_scale.data.copy_(scales)
    compressor = ModelCompressor.from_pretrained_model(whole)
    compressor.compress_model(whole)
    whole.save_pretrained(copy)
    compressor.update_config(copy)
    return copy


def packed_4_bit(source, folder, method):
    """In the files of GPTQ or AWQ: symmetric 4-bit numbers in groups of 32, eight in an int32."""
    copy, weights = _copy(source, folder), {}
    for name, tensor in load_file(f"{source}/model.safetensors").items():
        if not _is_linear(name):
            weights[name] = tensor.half()
            continue
        groups = tensor.reshape(len(tensor), -1, _BLOCK)
        scales = groups.abs().amax(-1) / 7  # (outputs, groups)
        rounded = torch.round(groups / scales[..., None]) + 8
        numbers = rounded.clamp(0, 15).to(torch.int32).reshape(tensor.shape).T  # (inputs, outputs)
        count, path = scales.shape[1], name.removesuffix("weight")
        if method == "gptq":
            weights[f"{path}qweight"] = _packed(numbers.T, range(8)).T
            # Its files hold one less than the zero point.
            zeros = torch.full((count, len(tensor)), 7, dtype=torch.int32)
            weights[f"{path}qzeros"] = _packed(zeros, range(8))
            weights[f"{path}g_idx"] = (torch.arange(tensor.shape[1]) // _BLOCK).to(torch.int32)
        else:
            order = (0, 2, 4, 6, 1, 3, 5, 7)
            weights[f"{path}qweight"] = _packed(numbers, order)
            zeros = torch.full((count, len(tensor)), 8, dtype=torch.int32)
            weights[f"{path}qzeros"] = _packed(zeros, order)
        weights[f"{path}scales"] = scales.T.half()
    settings = {"quant_method": method, "bits": 4, "group_size": _BLOCK}
    if method == "gptq":
        settings |= {"desc_act": False, "sym": True, "checkpoint_format": "gptq"}
    else:
        settings |= {"zero_point": True, "version": "gemm"}
    return _save(copy, weights, dtype="float16", quantization_config=settings)


def _packed(numbers, order):
    """Eight numbers of a row in each int32."""
    packed = torch.zeros(len(numbers), numbers.shape[1] // 8, dtype=torch.int32)
    for place, column in enumerate(order):
        packed |= numbers[:, column::8] << (4 * place)
    return packed


def by_transformers(source, folder, settings):
    """Quantised by transformers itself, as it is loaded, and saved (bitsandbytes, torchao)."""
    copy = _copy(source, folder)
    whole = transformers.AutoModelForCausalLM.from_pretrained(
        source, quantization_config=settings, device_map={"": "cpu"}
    )
    whole.save_pretrained(copy)
    return copy
