"""What decides the token ids of a tokenizer, wherever its files are."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ebm_encode.digests import digest_files, digest_json

# Where a tokenizer was found and how it was fetched; none of it changes an id.
_PLACES = {
    *("name_or_path", "is_local", "local_files_only", "cache_dir", "token", "_commit_hash"),
    *("revision", "code_revision", "trust_remote_code", "auto_map", "processor_class"),
    *("added_tokens_decoder", "_from_auto", "subfolder", "files_loaded", "vocab", "merges"),
    *("chat_template", "model_max_length", "padding_side", "truncation_side"),
}

# Texts that tokenizers treat differently: spaces, line ends, cases, accents as one sign or two,
# signs beyond 16 bits, digits, and what only normalisation tells apart.
_TEXTS = (
    *("⊢ True", "n : ℕ\n⊢ n + 0 = n", " ⊢ a", "  two  spaces ", "\ttab", "\r\n", "\n\n\n", ""),
    *("case h.inl\nα : Type u_1\ninst✝ : CommRing α\nI J : Ideal α\nh : I ≤ J\n⊢ I ⊓ J = I",),
    *("x₁ xˢ x⁻¹ ℝ 𝓕 𝔽 ∑ ∏ ∫ ∀ ∃ λ ↦ ⟨a, b⟩ ‖x‖", "CAPITALS and small", "0 12 345 6789 3.14159"),
    *("é e\u0301 ﬁ ½ Å", "a\u200bb\u00a0c\ufeffd\u3000e", "日本語 한국어 العربية", "🙂 👩‍👩‍👧"),
    *("don't won't it's", "<s> </s> <unk> <pad> <|endoftext|> [CLS] [MASK] <|im_start|>"),
    *("\x00\x07\x7f", "snake_case camelCase Foo.bar.baz", "-- a comment /- another -/ `tick`"),
)


def tokenizer_as_it_runs(tokenizer: Any, folder: Path) -> Any:
    """All that decides the token ids, but for the settings outside of a fast tokenizer's JSON.

    Not the settings for padding and cutting, which are ours.

    Args:
        tokenizer: The tokenizer.
        folder: Where its files are.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        whole = json.loads(backend.to_str())
        return {key: value for key, value in whole.items() if key not in {"padding", "truncation"}}
    # The vocabulary says nothing of a sentencepiece model's scores and normaliser: its file does.
    names = getattr(tokenizer, "vocab_files_names", {}) or {}
    files = [folder / str(name) for name in names.values()]
    files += [*folder.glob("*.model"), *folder.glob("*.tiktoken")]
    return {
        "class": type(tokenizer).__name__,
        "vocabulary": tokenizer.get_vocab(),
        "files": digest_files(sorted({file for file in files if _decides(file)})),
        "added": {str(n): _plain(t) for n, t in tokenizer.added_tokens_decoder.items()},
        "settings": {
            key: _plain(value)
            for key, value in sorted(tokenizer.init_kwargs.items())
            if key not in _PLACES and not key.endswith(("_file", "_path"))
        },
    }


def digest_of_ids(tokenizer: Any) -> str:
    """Digest of the ids of fixed texts, with and without special tokens.

    So whatever decides ids counts, also where no file and no setting known here says it: code,
    libraries, `split_special_tokens`. The tokenizer's own special tokens are among the texts.
    """
    special = sorted({str(token) for token in tokenizer.all_special_tokens})
    texts = [*_TEXTS, *(f"a {token} b{token}c" for token in special)]
    return digest_json([_ids(tokenizer, texts, special=with_them) for with_them in (False, True)])


def _ids(tokenizer: Any, texts: Iterable[str], *, special: bool) -> list[list[int]]:
    encoded = tokenizer([*texts], add_special_tokens=special, verbose=False)
    return [[int(number) for number in ids] for ids in encoded["input_ids"]]


def _decides(file: Path) -> bool:
    """Whether a file holds vocabulary; settings are compared as they are in memory."""
    return file.is_file() and file.name not in {"tokenizer_config.json", "special_tokens_map.json"}


def _plain(value: Any) -> Any:
    """A setting in JSON; added tokens with all their attributes."""
    if hasattr(value, "__getstate__") and hasattr(value, "content"):
        return {name: getattr(value, name) for name in _ATTRIBUTES}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in sorted(value.items(), key=str)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


_ATTRIBUTES = ("content", "lstrip", "rstrip", "single_word", "normalized", "special")
