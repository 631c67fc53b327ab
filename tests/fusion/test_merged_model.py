"""Merges of a real model, in the two libraries that people run them with: transformers and vLLM."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusion.publish import merge_to_folder
from fusion.recipe import MergeRecipe

# vLLM and xgrammar warn of themselves.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

METHODS = {"sce": {"select_topk": 0.1}, "ties": {"density": 0.2}, "varm": {"granularity": "layer"}}
QUESTION = "What is the capital of France?"


def nudged(model: Path, folder: Path, *, seed: int, share: float) -> Path:
    """Copy a checkpoint with noise of a share of each matrix's deviation, as a light fine-tuning leaves it."""
    shutil.copytree(model, folder)
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.dim() == 2:
            noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std() * share
            tensors[name] = (tensor.float() + noise).to(tensor.dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def merged(smollm2: Path, tmp_path_factory) -> dict[str, Path]:
    """Return the merges of two variants of SmolLM2-135M-Instruct by their methods."""
    place = tmp_path_factory.mktemp("merged")
    one, two = (nudged(smollm2, place / str(seed), seed=seed, share=0.003 * seed) for seed in (1, 2))
    for method, params in METHODS.items():
        merge_to_folder(MergeRecipe(method, smollm2, (one, two), params), place / method, title=method)
    return {method: place / method for method in METHODS}


@functools.cache
def next_tokens(folder: Path) -> torch.Tensor:
    """Return transformers' log-probabilities of the token after the question."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": QUESTION}]
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", tokenize=True, return_dict=False
    )
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return model(ids).logits[0, -1].log_softmax(-1)


def test_merges_load_in_transformers_and_think_nearly_as_their_base_does(smollm2: Path, merged: dict[str, Path]):
    base = next_tokens(smollm2)
    for method, folder in merged.items():
        found = next_tokens(folder)
        assert found.isfinite().all(), method
        assert found.argmax() == base.argmax(), method
        assert 0 < torch.nn.functional.kl_div(found, base, log_target=True, reduction="sum") < 0.05, method


def test_merges_take_turns_in_one_vllm_engine_and_answer_sensibly(smollm2: Path, merged: dict[str, Path]):
    from evals.chat import ChatRequest
    from evals.engine import EngineSettings
    from evals.local import LocalModel
    from evals.records import Message, Sampling

    asked = ChatRequest((Message("user", QUESTION),), Sampling(temperature=0.0, max_tokens=12), top_logprobs=1)
    engine = LocalModel(smollm2, identity="base", settings=EngineSettings(max_model_len=256, kv_cache_gib=0.25))
    try:
        for method, folder in merged.items():
            engine.load(folder, identity=method)
            [(_, reply)] = engine.chat([asked])
            assert "Paris" in reply.text, method
            [(_, logprob)] = reply.top_logprobs
            assert logprob == pytest.approx(float(next_tokens(folder).max()), abs=2e-3), method
    finally:
        engine.close()
