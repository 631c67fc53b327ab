"""Tiny models with tokenizers of their own, trained on the spot, and conversations in their language."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

WORDS = (
    *("the", "a", "cat", "dog", "red", "blue", "sun", "moon", "sees", "eats", "likes", "finds"),
    *("big", "small", "house", "tree", "and", "or", "never", "always"),
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def conversations(count: int, *, seed: int = 0) -> list[list[dict[str, str]]]:
    """Some short conversations, each of one to three turns."""
    import random

    draw = random.Random(seed)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(3, 12))).capitalize() + draw.choice(
            [".", "!", " é…", " 你好"]
        )

    return [
        [{"role": role, "content": text()} for _ in range(draw.randint(1, 3)) for role in ("user", "assistant")]
        for _ in range(count)
    ]


def tokenizer_folder(folder: Path, *, size: int, unigram: bool = False, texts: Iterable[str] | None = None) -> Path:
    """Train a tokenizer with a chat template: byte-level BPE, or Unigram with byte fallback."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = list(texts or [m["content"] for c in conversations(200, seed=1) for m in c])
    specials = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    if unigram:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        trainer = trainers.UnigramTrainer(
            vocab_size=size,
            special_tokens=[*specials, *(f"<0x{byte:02X}>" for byte in range(256))],
            unk_token="<unk>",
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        import json

        told = json.loads(tokenizer.to_str())
        told["model"]["byte_fallback"] = True
        told["added_tokens"] = [t for t in told["added_tokens"] if not t["content"].startswith("<0x")]
        tokenizer = Tokenizer.from_str(json.dumps(told))
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        pad_token="<pad>",
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


def model_folder(
    folder: Path, *, size: int = 400, unigram: bool = False, seed: int = 0, hidden_size: int = 32, heads: int = 4
) -> Path:
    """Write a random Llama of two layers with its tokenizer; vLLM's CPU kernels need 32 of ``hidden_size`` a head."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer_folder(folder, size=size, unigram=unigram)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(folder)),
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=5,
        pad_token_id=3,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
