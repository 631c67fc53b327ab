"""Reward models: what they are told, that padding and batches change nothing, and which models are refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from fusion.errors import CheckpointError, FusionError, RecipeError
from fusion.rewards import RewardModel, RewardParams
from tests.fusion.tiny_models import conversations, model_folder, tokenizer_folder

CODE = """
import torch
from transformers import LlamaForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

class Scored(LlamaForSequenceClassification):
    def forward(self, input_ids=None, attention_mask=None, **rest):
        said = super().forward(input_ids=input_ids, attention_mask=attention_mask, **rest)
        said["score"] = attention_mask.sum(1).float()
        return said
"""


def reward_model(folder: Path, *, labels: int = 1, pad: int | None = 3, length: int = 512, seed: int = 0) -> Path:
    """Write a random Llama with a head of so many labels, and its tokenizer."""
    tokenizer_folder(folder, size=400)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(folder)),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=length,
        bos_token_id=1,
        eos_token_id=5,
        pad_token_id=pad,
        num_labels=labels,
        initializer_range=0.3,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return reward_model(tmp_path_factory.mktemp("models") / "reward")


def values(model: Path, chats, **params) -> list[float | None]:
    asked = RewardModel(model, RewardParams(**params), device="cpu")
    found = {number: rewarded.value for batch in asked(chats) for number, rewarded in batch}
    return [found[number] for number in range(len(chats))]


@pytest.mark.parametrize("pad", [3, None, 5], ids=["pad token", "none", "pad is eos"])
def test_a_conversation_has_the_same_reward_alone_as_in_a_batch(tmp_path, pad):
    folder, chats = reward_model(tmp_path / "model", pad=pad), conversations(9)
    alone, together = values(folder, chats, batch_size=1), values(folder, chats, batch_size=4)
    assert together == pytest.approx(alone, abs=1e-5)
    assert len({round(value, 4) for value in alone}) == 9


@pytest.mark.parametrize("pad", [3, None])
def test_the_reward_is_the_logit_of_the_models_own_chat_template(tmp_path, pad):
    folder, chats = reward_model(tmp_path / "model", pad=pad), conversations(3)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    classifier = LlamaForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        ids = [tokenizer.apply_chat_template(chat, return_tensors="pt")["input_ids"] for chat in chats]
        logits = [classifier(one).logits.item() for one in ids]
    assert values(folder, chats) == pytest.approx(logits, abs=1e-5)


def test_a_conversation_that_is_too_long_has_no_reward_and_says_why(model):
    short, long = conversations(1), [{"role": "user", "content": "cat " * 200}]
    asked = RewardModel(model, RewardParams(max_length=90), device="cpu")
    found = {number: rewarded for batch in asked([long, *short]) for number, rewarded in batch}
    assert found[0].value is None and "more than 90" in found[0].why
    assert found[1].value is not None and not found[1].why


def test_the_models_own_length_is_a_bound_too(tmp_path):
    folder = reward_model(tmp_path / "model", length=16)
    assert values(folder, [[{"role": "user", "content": "cat " * 50}]]) == [None]


def test_a_models_own_code_is_run_only_where_it_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = reward_model(tmp_path / "model", labels=5)
    (folder / "own.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "own.Scored"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match=r"own\.Scored.*trust_remote_code: true"):
        RewardModel(folder)
    chats = conversations(3)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lengths = [len(tokenizer.apply_chat_template(chat)["input_ids"]) for chat in chats]
    assert values(folder, chats, trust_remote_code=True) == lengths


def test_several_labels_without_a_score_are_an_error(tmp_path):
    with pytest.raises(RecipeError, match="5 labels apart and gives no score"):
        values(reward_model(tmp_path / "model", labels=5), conversations(1))


def test_a_chat_model_is_no_reward_model(tmp_path):
    with pytest.raises(CheckpointError, match=r"lacks score\.weight .*no trained reward"):
        values(model_folder(tmp_path / "chat"), conversations(1))


def test_a_model_without_a_chat_template_is_refused(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "bare")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(RecipeError, match="no chat template"):
        RewardModel(folder)


def test_a_reward_that_is_no_number_is_an_error(tmp_path, monkeypatch):
    folder = reward_model(tmp_path / "model")
    monkeypatch.setattr(RewardModel, "_values", lambda _, batch: [math.nan] * len(batch))
    with pytest.raises(FusionError, match="gives nan for conversation"):
        values(folder, conversations(1))


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"max_length": -1}, {"dtype": "int8"}])
def test_parameters_that_make_no_sense_are_refused(bad):
    with pytest.raises(RecipeError, match=next(iter(bad))):
        RewardParams(**bad)


def test_a_missing_model_and_half_a_character_are_named(model, tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        RewardModel(tmp_path / "none")
    with pytest.raises(RecipeError, match="conversation 2"):
        values(model, [*conversations(1), [{"role": "user", "content": "\ud800"}]])


@pytest.mark.slow
def test_a_real_model_with_a_fresh_head_gives_the_same_rewards_in_any_batch(smollm2, tmp_path):
    from transformers import AutoModelForSequenceClassification

    from fusion.quiet import quiet_libraries

    folder = tmp_path / "model"
    torch.manual_seed(0)
    with quiet_libraries():
        made = AutoModelForSequenceClassification.from_pretrained(smollm2, num_labels=1, dtype=torch.float32)
    made.save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
    chats = conversations(6)
    alone, together = values(folder, chats, batch_size=1), values(folder, chats, batch_size=4)
    assert together == pytest.approx(alone, abs=1e-4) and len(set(alone)) == 6
