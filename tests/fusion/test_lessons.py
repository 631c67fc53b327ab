from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from fusion.errors import RecipeError
from fusion.lessons import Collator, Lengths, write_lessons
from fusion.sparse import Sparse
from fusion.target_shards import TargetRow

K = 2


def row(chat: str, supervised: list[int]) -> TargetRow:
    """Tokens 10, 11, …; at position t the target is tokens 10 t and 10 t + 1 with 0.5 and 0.25."""
    n = len(supervised)
    ids = np.stack([10 * np.arange(n), 10 * np.arange(n) + 1], 1).astype(np.int32)
    probs = np.tile(np.array([[0.5, 0.25]], np.float32), (n, 1))
    sparse = Sparse(ids, probs, np.full(n, 0.25, np.float32))
    return TargetRow(chat, np.arange(10, 10 + n, dtype=np.int32), np.array(supervised, bool), sparse)


def written(rows: list[TargetRow], file: Path, *, max_length: int = 99) -> tuple[Lengths, list[dict[str, object]]]:
    lengths = write_lessons(rows, file, k=K, max_length=max_length, vocabulary=100)
    with pa.memory_map(str(file)) as source:
        return lengths, pa.ipc.open_stream(source).read_all().to_pylist()


def test_a_batch_has_each_target_before_the_token_it_speaks_of(tmp_path: Path):
    lengths, lessons = written([row("a", [0, 1, 1, 0]), row("b", [1, 0])], tmp_path / "lessons.arrow")
    assert lengths == Lengths(2, 0, 0)
    batch = Collator(pad_token_id=7, k=K)(lessons)
    assert batch["input_ids"].tolist() == [[10, 11, 12, 13], [10, 11, 7, 7]]
    assert batch["labels"].tolist() == [[-100, -100, 12, 13], [-100, 11, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    nothing = [-1, -1]
    assert batch["target_ids"].tolist() == [
        [nothing, [10, 11], [20, 21], nothing],
        [[0, 1], nothing, nothing, nothing],
    ]
    assert batch["target_probs"].sum(-1).tolist() == [[0, 0.75, 0.75, 0], [0.75, 0, 0, 0]]
    assert batch["target_tail"].tolist() == [[1, 0.25, 0.25, 1], [0.25, 1, 1, 1]]


def test_without_targets_it_is_trls_own_batch(tmp_path: Path):
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    _, lessons = written([row("a", [0, 1, 1, 0]), row("b", [1, 0])], tmp_path / "lessons.arrow")
    plain = [{"input_ids": lesson["input_ids"], "labels": lesson["labels"]} for lesson in lessons]
    theirs = DataCollatorForLanguageModeling(pad_token_id=7)(plain)
    ours = Collator(pad_token_id=7, k=K, targets=False)(lessons)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_long_chat_is_cut_and_one_with_nothing_left_to_learn_is_left_out(tmp_path: Path):
    rows = [row("a", [1, 1, 1, 0]), row("b", [0, 0, 1, 0]), row("c", [0, 0, 0])]
    lengths, [lesson] = written(rows, tmp_path / "lessons.arrow", max_length=3)
    assert lengths == Lengths(3, 1, 2)
    assert (lesson["input_ids"], lesson["labels"]) == ([10, 11, 12], [-100, 11, 12])
    assert np.frombuffer(lesson["ids"], np.int32).tolist() == [0, 1, 10, 11]
    with pytest.raises(RecipeError, match="max_length is 1: none of the 3 conversations has something to learn"):
        written(rows, tmp_path / "lessons.arrow", max_length=1)


def test_a_token_that_the_model_does_not_know_is_told(tmp_path: Path):
    with pytest.raises(RecipeError, match="chat a: token 101 is not in the model's vocabulary of 100"):
        written([row("a", [1] * 11 + [0])], tmp_path / "lessons.arrow")
