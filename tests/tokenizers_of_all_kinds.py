"""Small tokenizers of the families that causal models use, trained on given texts."""

from pathlib import Path

import transformers
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SPECIAL = ["<s>", "</s>", "<unk>"]


def _around(tokenizer, single):
    """Puts special tokens around every text."""
    ids = [(token, tokenizer.token_to_id(token)) for token in SPECIAL[:2]]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)


def byte_level(texts, *, single="<s> $A", more=()):
    """As of Llama 3, Qwen and DeepSeek; `more` are added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([*more])
    _around(tokenizer, single)
    return tokenizer


def byte_fallback(texts):
    """As of Llama 2 and Mistral: spaces are signs, one is put before, unknown signs are bytes."""
    # All that lead to `</s>` by merges are words of it, as with those converted from sentencepiece.
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))],
        show_progress=False,
    )
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.train_from_iterator([*texts, "</s> </s> <s>" * 9], trainer)
    _around(tokenizer, "<s> $A")
    return tokenizer


def unigram(texts):
    """As of T5, Gemma and other sentencepiece models; control tokens are pieces like others."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=500, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    _around(tokenizer, "$A </s>")
    return tokenizer


def word_pieces(texts):
    """As of BERT."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    _around(tokenizer, "<s> $A </s>")
    return tokenizer


def words(texts):
    """Whole words: a control token is one of them."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _fast(tokenizer):
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def byt5(folder):
    """A tokenizer in Python, of bytes."""
    folder = Path(folder) / "byt5"
    transformers.ByT5Tokenizer().save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def all_kinds(texts, folder):
    """Tokenizers by name."""
    spaces = [AddedToken(" " * n, normalized=False) for n in (2, 4, 8)]
    thinking = [AddedToken("<think>", special=False), AddedToken("ℕ", special=False)]
    kinds = {
        "byte-level": byte_level(texts),
        "byte-level, both ends": byte_level(texts, single="<s> $A </s>"),
        "byte-level, nothing added": byte_level(texts, single="$A"),
        "byte-level, spaces added": byte_level(texts, more=spaces),
        "byte-level, a marker that is not special": byte_level(texts, more=thinking),
        "byte fallback": byte_fallback(texts),
        "unigram": unigram(texts),
        "word pieces": word_pieces(texts),
        "words": words(texts),
    }
    return {name: _fast(tokenizer) for name, tokenizer in kinds.items()} | {"byt5": byt5(folder)}
