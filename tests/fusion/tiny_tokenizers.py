"""Tokenizers of several families, trained on the spot on any text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>", "<|turn|>", "<|end|>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
FROM_MARKS = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


def wrapped(tokenizer: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    """As transformers has it, with special tokens and a chat template."""
    tokenizer.add_special_tokens(list(SPECIAL))
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named | options)


def byte_level(texts: Sequence[str], size: int = 300, *, bos: bool = False, **options: Any) -> PreTrainedTokenizerFast:
    """GPT-2's way: BPE over bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return wrapped(tokenizer, **options)


def unigram(texts: Sequence[str], size: int = 300, *, prefix: str = "never", **options: Any) -> PreTrainedTokenizerFast:
    """SentencePiece's way: Unigram with marks for spaces and single bytes for what it does not know."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix)
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), unk_token="<unk>", show_progress=False
    )
    trained.train_from_iterator([*texts, "a b"], trainer)
    learnt = [(piece, score) for piece, score in json.loads(trained.to_str())["model"]["vocab"] if piece not in SPECIAL]
    vocabulary = [(piece, 0.0) for piece in (*SPECIAL, *BYTES)] + learnt
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=prefix)])
    return wrapped(tokenizer, **options)


def byte_fallback(texts: Sequence[str], size: int = 400, *, legacy: bool = False) -> PreTrainedTokenizerFast:
    """Gemma's way, BPE with marks for spaces; with ``legacy`` Llama-2's, which puts a space before each part."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        if legacy
        else normalizers.Replace(" ", "▁")
    )
    tokenizer.decoder = FROM_MARKS
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[*SPECIAL, *BYTES], limit_alphabet=30, show_progress=False
    )
    tokenizer.train_from_iterator([*texts, "a b c " * 99], trainer)  # the mark itself must be a piece
    told = json.loads(tokenizer.to_str())
    told["added_tokens"] = [token for token in told["added_tokens"] if token["content"] not in BYTES]
    return wrapped(Tokenizer.from_str(json.dumps(told)))


def normalising(texts: Sequence[str], size: int = 300) -> PreTrainedTokenizerFast:
    """Changes the text: compatibility characters, accents, capitals; byte-level beneath."""
    tokenizer = byte_level(texts, size).backend_tokenizer
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    return wrapped(tokenizer)


FAMILIES = {
    "byte-level": byte_level,
    "Unigram": unigram,
    "Unigram with a prefix": lambda texts, size=300: unigram(texts, size, prefix="always"),
    "byte fallback": byte_fallback,
    "legacy byte fallback": lambda texts, size=400: byte_fallback(texts, size, legacy=True),
}
EXACT = ("byte-level", "Unigram", "byte fallback")  # their pieces make up every text
