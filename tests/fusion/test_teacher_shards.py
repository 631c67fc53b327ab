from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fusion.errors import FusionError
from fusion.parquet_shards import ShardFolder
from fusion.teacher_shards import Spoken, Teacher, read, table

K = 10


def spoken(chat: str, tokens: int, *, vocabulary: int = 1 << 18) -> Spoken:
    """A row such as no model would give: token ids without any pattern, over Gemma's number of tokens."""
    rng = np.random.default_rng(len(chat))
    return Spoken(
        chat=chat,
        ids=rng.integers(0, vocabulary, tokens),
        ends=np.cumsum(rng.integers(1, 9, tokens)),
        next_logprob=np.append(-rng.gamma(1, 2, tokens - 1), np.nan),
        top_ids=rng.integers(0, vocabulary, (tokens, K)),
        top_logprobs=-np.sort(rng.gamma(2, 2, (tokens, K)), axis=1) - 2.4,
    )


def stored(folder: Path, *shards: list[Spoken], same_text: dict[str, str] | None = None) -> Teacher:
    filling = ShardFolder(folder, {"kind": "teacher", "k": K})
    for number, rows in enumerate(shards):
        filling.write(number, str(number), table(rows, k=K), rows=len(rows), tokens=sum(len(row.ids) for row in rows))
    chats = [row.chat for rows in shards for row in rows]
    filling.finish([str(number) for number in range(len(shards))], chats=chats, same_text=same_text or {})
    return read(folder)


def test_a_row_is_read_back_in_the_promised_dtypes(tmp_path: Path):
    given = spoken("a", 9)
    [row] = stored(tmp_path, [given])
    for name, dtype in (("ids", "int32"), ("ends", "int64"), ("next_logprob", "float32"), ("top_ids", "int32")):
        np.testing.assert_array_equal(getattr(row, name), getattr(given, name).astype(dtype))
        assert getattr(row, name).dtype == dtype
    assert row.top_logprobs.dtype == np.float32
    np.testing.assert_allclose(row.top_logprobs, given.top_logprobs, rtol=2**-11)


def test_even_token_ids_without_a_pattern_take_at_most_48_bytes_a_token(tmp_path: Path):
    teacher = stored(tmp_path, [spoken("a" * n, 400) for n in range(1, 65)])
    assert teacher.tokens == 64 * 400
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 48 * teacher.tokens


def test_probabilities_that_rounding_brought_above_1_are_taken_back(tmp_path: Path):
    given = spoken("a", 200)
    sure = np.log(np.random.default_rng(0).dirichlet(np.ones(K), 200))
    [row] = stored(tmp_path, [Spoken("a", given.ids, given.ends, given.next_logprob, given.top_ids, sure)])
    assert np.exp(sure.astype(np.float16).astype(np.float64)).sum(axis=1).max() > 1 + 1e-4
    assert np.exp(row.top_logprobs.astype(np.float64)).sum(axis=1).max() <= 1 + 1e-6


def test_rows_come_in_any_order_and_of_any_shard(tmp_path: Path):
    teacher = stored(tmp_path, *[[spoken("a" * n, n + 1)] for n in range(1, 6)])
    order = ["aaaa", "a", "aaaaa", "a", "aaa"]
    assert [(row.chat, len(row.ids)) for row in teacher.rows(order)] == [(chat, len(chat) + 1) for chat in order]
    assert (len(teacher), "aa" in teacher, "b" in teacher) == (5, True, False)


def test_shards_of_another_kind_are_refused(tmp_path: Path):
    ShardFolder(tmp_path, {"kind": "targets"}).finish([])
    with pytest.raises(FusionError, match="holds 'targets' shards, not a teacher's"):
        read(tmp_path)
