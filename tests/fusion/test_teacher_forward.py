from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, PretrainedConfig

from fusion import teacher_forward
from fusion.errors import RecipeError
from fusion.quiet import quiet_libraries
from fusion.teacher_forward import ForwardScorer, batches, largest

VOCABULARY = 300
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
FAMILIES = {
    "llama": LlamaConfig(vocab_size=VOCABULARY, intermediate_size=32, **TINY),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "gemma2, whose logits are capped": Gemma2Config(
        vocab_size=VOCABULARY, intermediate_size=32, head_dim=8, final_logit_softcapping=0.05, **TINY
    ),
}


def model_folder(folder: Path, config: PretrainedConfig) -> Path:
    torch.manual_seed(0)
    with quiet_libraries():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def own_logprobs(folder: Path, ids: np.ndarray, *, temperature: float = 1.0) -> torch.Tensor:
    with quiet_libraries(), torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return (model(torch.from_numpy(ids)[None].long()).logits[0] / temperature).log_softmax(-1)


def sequences(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCABULARY, length).astype(np.int32) for length in lengths]


def scorer(folder: Path, **options: object) -> ForwardScorer:
    return ForwardScorer(folder, **{"k": 5, "batch_tokens": 24, "device": "cpu", **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_on_a_few_positions_gives_the_models_own_log_probabilities(tmp_path: Path, family: str, monkeypatch):
    monkeypatch.setattr(teacher_forward, "CHUNK_BYTES", {"cpu": 4 * VOCABULARY * 3})  # three positions at a time
    folder, asked = model_folder(tmp_path, FAMILIES[family]), sequences(7, 1, 12, 7, 30)
    score = scorer(folder)
    found = dict(score(asked))
    body, _ = score._loaded()
    with torch.inference_mode():
        states = body(torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3, dtype=torch.bool))
    assert states.shape == (1, 3, 16)  # hidden states and not logits: the model was taken apart
    assert sorted(found) == [0, 1, 2, 3, 4]
    for number, ids in enumerate(asked):
        own, scores = own_logprobs(folder, ids), found[number]
        top = own.topk(5, dim=1)
        np.testing.assert_allclose(scores.top_logprobs, top.values, atol=1e-5)
        np.testing.assert_allclose(own.gather(1, torch.from_numpy(scores.top_ids).long()), top.values, atol=1e-5)
        said = own[torch.arange(len(ids) - 1), torch.from_numpy(ids[1:]).long()]
        np.testing.assert_allclose(scores.next_logprob[:-1], said, atol=1e-5)
        assert np.isnan(scores.next_logprob[-1])


def test_a_model_that_cannot_be_taken_apart_is_run_whole(tmp_path: Path):
    folder = model_folder(tmp_path, FAMILIES["llama"])
    [ids] = sequences(9)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.base_model_prefix = "nothing_of_that_name"
    body, head = teacher_forward._split(model, torch.arange(8))
    with torch.inference_mode():
        logits = head(body(torch.from_numpy(ids)[None].long(), torch.ones(1, 9, dtype=torch.bool))[0])
    np.testing.assert_allclose(logits.log_softmax(-1), own_logprobs(folder, ids), atol=1e-5)


def test_the_temperature_softens_what_is_kept_and_not_the_real_tokens_probability(tmp_path: Path):
    folder = model_folder(tmp_path, FAMILIES["llama"])
    [ids] = sequences(9)
    [(_, warm)], [(_, plain)] = scorer(folder, temperature=2.0)([ids]), scorer(folder)([ids])
    np.testing.assert_allclose(warm.top_logprobs, own_logprobs(folder, ids, temperature=2.0).topk(5).values, atol=1e-5)
    np.testing.assert_array_equal(warm.next_logprob, plain.next_logprob)


def test_more_entries_than_tokens_are_refused(tmp_path: Path):
    with pytest.raises(RecipeError, match="has only 300 tokens"):
        next(scorer(model_folder(tmp_path, FAMILIES["llama"]), k=301)(sequences(3)))


@pytest.mark.parametrize("columns", [40, 128 * 30, 128 * 30 + 17])
def test_the_largest_entries_are_topks(columns: int):
    logits = torch.randn(6, columns)
    values, places = largest(logits, 10)
    top = logits.topk(10, dim=1)
    assert torch.equal(values, top.values)
    assert torch.equal(places, top.indices)


def test_batches_hold_every_sequence_once_and_keep_to_the_budget():
    lengths = np.random.default_rng(1).integers(1, 60, 200).tolist()
    groups = batches(lengths, 100)
    assert sorted(number for group in groups for number in group) == list(range(200))
    assert all(len(group) * max(lengths[n] for n in group) <= 100 for group in groups)
    padded = sum(len(group) * max(lengths[n] for n in group) for group in groups)
    assert padded < 1.05 * sum(lengths)
    assert batches([500, 3], 100) == [[0], [1]]
