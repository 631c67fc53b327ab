"""Families by name."""

import pytest

from evals.records import Model
from judges.self_preference import families, family


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-4-1106-preview", "OpenAI"), ("o1-mini", "OpenAI"), ("o3-mini-2025-01-31", "OpenAI"),
        ("openai/gpt-4o", "OpenAI"),
        ("claude-v1", "Anthropic"), ("gemma-2b-it", "Google"), ("Qwen2.5-7B-Instruct", "Qwen"), ("QwQ-32B", "Qwen"),
        ("Meta-Llama-3.1-8B-Instruct-Turbo", "Llama"), ("FuseChat-Llama-3.1-8B-Instruct", "Llama"), ("LLaMA2", "Llama"),
        ("phi-3-dpo", "Phi"), ("Phi3", "Phi"), ("DeepSeek-R1-Distill-Llama-8B", "DeepSeek"), ("SmolLM2-135M", "SmolLM"),
        ("Yi-34B", "Yi"), ("yield-7b", None), ("sce", None), ("", None), ("philosopher", None), ("audio1", None),
    ],
)  # fmt: skip
def test_a_name_speaks_of_its_family(name, expected):
    assert family(name) == expected


def test_given_families_hold_over_names_and_the_unknown_have_none():
    models = [Model("1", "sce", "merge", ""), Model("2", "gpt-4", "published", ""), Model("3", "mine", "merge", "")]
    assert families(models) == {"2": "OpenAI"}
    assert families(models, given={"sce": "Fuse", "gpt-4": "Fuse"}) == {"1": "Fuse", "2": "Fuse"}
