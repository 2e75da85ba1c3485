"""Makes a small causal LM with seeded random weights, and a tokenizer trained on real states.

    python samples/tiny_model.py FOLDER [--architecture llama] [--states samples]

The model has learned nothing, but it is complete: it is loaded, run and pooled like any other.
"""

import argparse
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SAMPLES = Path(__file__).parent

# The shape of all architectures, in the names that most of them use.
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
}
_SLIDING = SHAPE | {"sliding_window": 24}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": SHAPE,
    "qwen2": SHAPE,
    "qwen3": SHAPE,
    "olmo2": SHAPE,
    "stablelm": SHAPE,
    "gpt_neox": SHAPE,
    "mistral": _SLIDING,
    "phi3": _SLIDING,
    "starcoder2": _SLIDING,
    "gemma2": _SLIDING | {"query_pre_attn_scalar": 16},
    "gemma3_text": _SLIDING | {"query_pre_attn_scalar": 16},
    "mixtral": SHAPE | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen3_moe": SHAPE | _EXPERTS | {"num_experts": 4},
    "gpt_oss": _SLIDING | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "llama4_text": SHAPE
    | {"attention_chunk_size": 24, "num_local_experts": 4, "intermediate_size_mlp": 64},
    "deepseek_v3": SHAPE
    | _EXPERTS
    | {"num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
    | {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16}
    | {"v_head_dim": 16, "head_dim": 8, "first_k_dense_replace": 1},
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 2048},
    "gptj": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 2048, "rotary_dim": 8},
    "opt": {"hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    | {"word_embed_proj_dim": 64, "max_position_embeddings": 2048},
    "falcon": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    | {"alibi": False, "max_position_embeddings": 2048},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": 2048},
    "bloom": {"hidden_size": 64, "n_layer": 3, "n_head": 4},
    "mamba": {"hidden_size": 64, "num_hidden_layers": 3, "state_size": 4},
    "mamba2": {"hidden_size": 64, "num_hidden_layers": 3, "state_size": 8}
    | {"num_heads": 8, "head_dim": 16, "n_groups": 2},
}


def train_tokenizer(texts: list[str], vocabulary: int = 2048) -> Any:
    """A byte-level BPE tokenizer that puts `<s>` before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
    )


def make_model(
    folder: Path,
    tokenizer: Any,
    architecture: str = "llama",
    *,
    seed: int = 0,
    std: float = 0.1,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Path:
    """Saves a model of an architecture with random weights, and the tokenizer, in a folder.

    The standard deviation is above the usual 0.02, so that each layer changes the hidden states.
    """
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    tokens |= {"vocab_size": len(tokenizer)}
    options = ARCHITECTURES.get(architecture, SHAPE) | tokens | changes
    config = transformers.AutoConfig.for_model(architecture, **options)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=std)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sample_states(folder: Path = SAMPLES) -> list[str]:
    """The distinct states of the Parquet files in a folder."""
    columns = [pq.read_table(file)["state_pp"] for file in sorted(folder.glob("*.parquet"))]
    return [s for s in dict.fromkeys(s for column in columns for s in column.to_pylist()) if s]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--architecture", default="llama", choices=sorted(ARCHITECTURES))
    parser.add_argument("--states", type=Path, default=SAMPLES, help="Parquet files to train on")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer = train_tokenizer(sample_states(arguments.states))
    make_model(arguments.folder, tokenizer, arguments.architecture, seed=arguments.seed)
    print(f"made a random {arguments.architecture} model in {arguments.folder}")


if __name__ == "__main__":
    main()
