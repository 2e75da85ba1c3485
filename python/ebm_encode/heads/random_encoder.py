"""The model of a cache with random weights: what an untrained encoder already gives a head."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from ebm_encode._core import CacheWriter, EmbeddingCache, Identity, MappedCache
from ebm_encode.bulk.progress import EncodingProgress
from ebm_encode.bulk.run import BulkRun
from ebm_encode.description import describe_encoder
from ebm_encode.encoder import Encoder
from ebm_encode.errors import ModelError
from ebm_encode.loading.model import silence_transformers
from ebm_encode.opening import open_cache

_SMALL = 2**30


def model_path_of(cache: EmbeddingCache | MappedCache) -> str | None:
    """The model folder or hub id that a cache's provenance names, if it does."""
    for run in reversed(cache.provenance):
        encoder = run.get("encoder", run) if isinstance(run, dict) else {}
        if isinstance(path := encoder.get("model"), str):
            return path
    return None


def make_random_model(model_path: str, folder: Path, seed: int) -> Path:
    """Saves the architecture and tokenizer of a model with weights as before any training.

    Args:
        model_path: The model: a folder, or a hub id.
        folder: Where the random one goes.
        seed: Of its weights.

    Raises:
        ModelError: If the model's configuration or tokenizer cannot be loaded.
    """
    silence_transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(model_path)
        tokenizer = transformers.AutoTokenizer.from_pretrained(model_path)
        for part in (config, config.get_text_config()):
            if hasattr(part, "quantization_config"):
                del part.quantization_config  # random weights are not quantised
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = transformers.AutoModelForCausalLM.from_config(config)
        disable_progress_bar()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"{model_path}: cannot make a copy with random weights: {error}\n"
            "hint: name the model with `model_path`, or give its random cache with `random_cache`"
        ) from error
    return folder


def encoder_options(identity: Identity) -> dict[str, Any]:
    """Options of `Encoder.load` that make the same prompts and pooling as an identity's."""
    fields = json.loads(identity.to_json())
    return {
        "template": fields["template"],
        "pooling": fields["pooling"],
        "layer": fields["layer"],
        "dtype": fields["dtype"],
        "max_length": fields["max_length"],
        "overlong": "truncate" if fields["truncation"] != "none" else "skip",
    }


def encode_texts(
    model_path: str, identity: Identity, texts: list[str], output: Path, *, device: str = "auto"
) -> None:
    """Encodes texts with a model and an identity's options into a cache; resumes if stopped.

    Args:
        model_path: The model: a folder.
        identity: Whose template, pooling, layer, dtype and longest prompt are used.
        texts: The states.
        output: The cache, a Parquet file. What it has is kept.
        device: Torch device.
    """
    template = output.with_suffix(".template.txt")
    options = encoder_options(identity)
    template.write_text(options["template"], "utf-8", newline="")
    writer = CacheWriter(output)
    try:
        encoder = Encoder.load(model_path, device=device, **options | {"template": str(template)})
        # Other versions of torch draw other weights.
        other = output.exists() and open_cache(output).identity != encoder.identity
        writer.open(encoder.identity, encoder.dim, overwrite=other)
        run = BulkRun(encoder, writer, str(output), overwrite=other)
        todo = run.adopt([], texts)
        size = sum(len(text.encode()) for text in todo)
        with EncodingProgress(len(todo), size, quiet=True, console=Console()) as progress:
            run.encode(todo, progress)
        run.finish(describe_encoder(encoder))
    finally:
        writer.close()


def is_small(model_path: str) -> bool:
    """Whether a model is a folder here with weights of less than 1 GiB."""
    weights = [*Path(model_path).glob("*.safetensors"), *Path(model_path).glob("*.bin")]
    return bool(weights) and sum(file.stat().st_size for file in weights) < _SMALL
