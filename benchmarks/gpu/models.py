"""Models with seeded random weights: small ones of many architectures, and the large one."""

import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[2] / "samples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "throughput"))
import contenders

import tiny_model

ARCHITECTURES = (
    "llama", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt_oss", "deepseek_v3", "mixtral",
    "gpt2", "falcon", "mpt", "mamba2",
)  # fmt: skip
SIZES = {"tiny": (64, 2, 128, 16), **contenders.SIZES}
"""Width, layers, width of the feed-forward part and of a head; 7b is DeepSeek-Prover-V2-7B's."""


def make_tokenizer(states: list[str], words: int, markers: list[str]) -> Any:
    """A tokenizer trained on some of the states, with the markers of a template."""
    tokenizer = tiny_model.train_tokenizer(states[:: max(len(states) // 4000, 1)], words)
    tokenizer.add_tokens(markers, special_tokens=True)
    tokenizer.pad_token = "</s>"
    tokenizer.model_max_length = contenders.LONGEST
    return tokenizer


def write_llama(
    root: Path, size: str, tokenizer: Any, *, vocabulary: int, dtype: str, device: str
) -> tuple[Path, dict[str, Any]]:
    """Makes a Llama of a size on the device, and saves it: its folder, and what that cost.

    The weights are drawn on the device: a CPU takes minutes for 7B. They go through a folder,
    because that is what each contender loads; in memory (/dev/shm) where there is room.
    """
    width, depth, inner, head = SIZES[size]
    config = transformers.LlamaConfig(
        hidden_size=width, num_hidden_layers=depth, intermediate_size=inner, head_dim=head,
        num_attention_heads=width // head, num_key_value_heads=width // head,
        max_position_embeddings=contenders.LONGEST, vocab_size=max(vocabulary, len(tokenizer)),
        bos_token_id=0, eos_token_id=1, pad_token_id=None,
    )  # fmt: skip
    start = time.perf_counter()
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    # So that hidden states of wide layers are as large as those of narrow ones.
    std = min(0.1, 2 * width**-0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=std, generator=generator)
            else:
                parameter.fill_(1.0)
    made = time.perf_counter()
    parameters = sum(p.numel() for p in model.parameters())
    size_in_bytes = sum(p.nbytes for p in model.parameters())
    folder = roomy(root, size_in_bytes) / "model"
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder, max_shard_size="4GB")
    tokenizer.save_pretrained(folder)
    return folder, {
        "size": size,
        "config": {
            "width": width,
            "layers": depth,
            "inner": inner,
            "vocabulary": config.vocab_size,
        },
        "parameters": parameters,
        "layer_parameters": sum(p.numel() for p in model.model.layers.parameters()),
        "bytes": size_in_bytes,
        "dtype": dtype,
        "seconds_to_make": round(made - start, 2),
        "seconds_to_save": round(time.perf_counter() - made, 2),
        "saved_in": str(folder.parent.parent),
    }


def roomy(root: Path, size: int) -> Path:
    """A new folder for files of so many bytes: in memory if that has twice the room, else in root.

    It is removed with `root`, to which it is linked.
    """
    memory = Path("/dev/shm")
    in_memory = memory.is_dir() and os.access(memory, os.W_OK)
    if in_memory and shutil.disk_usage(memory).free > 2 * size and _free_memory() > 2 * size:
        folder = Path(tempfile.mkdtemp(prefix="ebm-gpu-", dir=memory))
        (root / "in-memory").symlink_to(folder)
        return folder
    return Path(tempfile.mkdtemp(prefix="model-", dir=root))


def remove_roomy(root: Path) -> None:
    """Removes what `roomy` made in memory for a folder."""
    link = root / "in-memory"
    if link.is_symlink():
        shutil.rmtree(link.readlink(), ignore_errors=True)


def _free_memory() -> float:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    return math.inf
