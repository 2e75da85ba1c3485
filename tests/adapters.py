"""Adapters for tests, made by plain peft, and what plain peft and transformers make of them."""

import warnings
from pathlib import Path

import torch
import transformers

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""The attention and MLP projections of a llama."""


def plain_model(folder, dtype=torch.float32):
    """The model of a folder, by plain transformers."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def train(base, folder, config=None, *, seed=1, scale=0.02, dtype=torch.float32):
    """Saves an adapter whose every weight has moved, as after a training; returns its folder."""
    import peft  # noqa: PLC0415  (slow)

    config = config or peft.LoraConfig(r=16, lora_alpha=32, target_modules=LINEAR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = peft.get_peft_model(plain_model(base), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(scale * torch.randn_like(parameter))
        if dtype != torch.float32:
            model = model.to(dtype)
        model.save_pretrained(folder)
    return str(folder)


def unmerged(base, adapter):
    """The model with the adapter beside its weights, by plain peft, in float32."""
    import peft  # noqa: PLC0415  (slow)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(plain_model(base), adapter).eval()


def export(base, adapter, folder):
    """Saves the model with the adapter merged in float32, by plain peft; returns its folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unmerged(base, adapter).merge_and_unload().save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return str(Path(folder))
