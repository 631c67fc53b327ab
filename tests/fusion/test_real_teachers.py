"""SmolLM2 as a teacher: what is stored is what it says, in few bytes, and vLLM says the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fuseval.demo
from fusion.chats import Chat, render
from fusion.quiet import quiet_libraries
from fusion.teachers import Teacher, TeacherParams, distributions

pytestmark = pytest.mark.slow

K = 10


@pytest.fixture(scope="module")
def chats(smollm2: Path) -> list[Chat]:
    """The demonstration's conversations, six to a chat."""
    folder = Path(fuseval.demo.__path__[0])
    lines = (folder / "arithmetic.jsonl").read_text(encoding="utf-8").splitlines()
    turns = [json.loads(line)["messages"] for line in lines[:48]]
    with quiet_libraries():
        tokenizer = AutoTokenizer.from_pretrained(smollm2)
    groups = [turns[first : first + 6] for first in range(0, len(turns), 6)]
    return render([[turn for talk in group for turn in talk] for group in groups], tokenizer)


@pytest.fixture(scope="module")
def teacher(smollm2: Path, chats: list[Chat], tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return distributions(smollm2, chats, tmp_path_factory.mktemp("smollm2"), TeacherParams(k=K), device="cpu")


def test_what_is_read_back_is_smollm2s_own(smollm2: Path, chats: list[Chat], teacher: Teacher):
    with quiet_libraries(), torch.inference_mode():
        tokenizer = AutoTokenizer.from_pretrained(smollm2)
        model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
        for chat in chats[:2]:
            row, ids = teacher.row(chat.id), tokenizer(chat.text)["input_ids"]
            assert row.ids.tolist() == ids
            own = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            np.testing.assert_allclose(row.top_logprobs, own.topk(K).values, rtol=1.1 * 2**-11, atol=1e-3)
            said = own[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            np.testing.assert_allclose(row.next_logprob[:-1], said, atol=1e-3)


def test_a_token_takes_at_most_48_bytes_on_disk(teacher: Teacher):
    assert teacher.tokens > 1500
    folder = teacher.manifest.folder
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 48 * teacher.tokens
    assert teacher.manifest.bytes <= 40 * teacher.tokens


@pytest.mark.filterwarnings("default")  # vLLM warns of itself
def test_vllm_says_the_same(smollm2: Path, chats: list[Chat], teacher: Teacher, tmp_path: Path):
    from fusion.teachers_vllm import vllm_prompt_logprobs

    params = TeacherParams(k=K, max_length=512)
    engine = vllm_prompt_logprobs(smollm2, params)
    with quiet_libraries():
        other = distributions(smollm2, chats[:3], tmp_path / "t", params, engine=engine)
    assert (other.manifest.settings["engine"], other.manifest.settings["dtype"]) == ("vllm", "float32")
    for row in other:
        own = teacher.row(row.chat)
        np.testing.assert_array_equal(row.ids, own.ids)
        np.testing.assert_allclose(row.top_logprobs, own.top_logprobs, rtol=1.1 * 2**-10, atol=2e-3)
        np.testing.assert_allclose(row.next_logprob[:-1], own.next_logprob[:-1], atol=2e-3)
        assert np.isnan(row.next_logprob[-1])
        assert (row.top_ids == own.top_ids).mean() > 0.99  # the others are ties, or nearly
