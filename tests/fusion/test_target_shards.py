"""Fused targets on disk: read back as they were, resumed, checked, and small."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fusion.errors import FusionError
from fusion.sparse import Sparse, gather
from fusion.target_shards import TargetRow, read_targets, write_targets

CHATS = ["one", "two", "three", "one", "four", "five"]  # the first comes twice


def made(chat: str, *, n: int = 9, k: int = 3, vocabulary: int = 1000) -> TargetRow:
    """Targets that depend on the chat's name alone; every other token counts."""
    seed = np.random.default_rng(list(chat.encode()))
    rows, width = np.repeat(np.arange(n), k), seed.integers(0, 2, n * k)
    sparse = gather(rows, seed.integers(0, vocabulary, n * k), seed.random(n * k) / k * width, length=n, k=k)
    supervised = np.arange(n) % 2 == 0
    supervised[-1] = False
    return TargetRow(chat, seed.integers(0, vocabulary, n).astype(np.int32), supervised, sparse)


def write(folder: Path, make: Callable[[str], TargetRow] = made, **options: object):
    return write_targets(folder, CHATS, make, **{"k": 3, "settings": {"map": "exact"}, "chats_a_shard": 2, **options})


def test_targets_are_read_back_as_they_were_where_they_count(tmp_path: Path):
    manifest = write(tmp_path / "targets")
    targets = read_targets(tmp_path / "targets")
    assert [row.chat for row in targets] == CHATS
    assert (len(targets), targets.k, manifest.count("rows"), manifest.count("supervised")) == (6, 3, 5, 20)
    for row in targets:
        wanted = made(row.chat)
        counts = wanted.supervised
        assert_array_equal(row.ids, wanted.ids)
        assert_array_equal(row.supervised, counts)
        for name in ("ids", "probs", "tail"):
            assert_array_equal(getattr(row.sparse, name)[counts], getattr(wanted.sparse, name)[counts])
        assert (row.sparse.ids[~counts] == -1).all()
        assert (row.sparse.tail[~counts] == 1).all()


def test_a_killed_run_goes_on_with_the_shard_it_was_at(tmp_path: Path):
    asked: list[str] = []

    def dying(chat: str) -> TargetRow:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(chat)
        return made(chat)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "targets", dying)
    with pytest.raises(FusionError, match="is not finished"):
        read_targets(tmp_path / "targets")
    assert asked == ["one", "two", "three"]
    asked.clear()
    done: list[tuple[int, int]] = []
    again = write(
        tmp_path / "targets", lambda chat: (asked.append(chat), made(chat))[1], on_chat=lambda *n: done.append(n)
    )
    assert asked == ["three", "four", "five"]
    assert done == [(2, 5), (4, 5), (5, 5)]
    whole = write(tmp_path / "whole")
    assert [shard.sha256 for shard in again.shards] == [shard.sha256 for shard in whole.shards]


def test_finished_targets_are_not_made_again(tmp_path: Path):
    write(tmp_path / "targets")
    write(tmp_path / "targets", lambda chat: pytest.fail(f"{chat} was made again"))


def test_targets_of_other_settings_are_not_mixed(tmp_path: Path):
    write(tmp_path / "targets")
    with pytest.raises(FusionError, match="was begun with map 'exact', and now it is 'edit'"):
        write(tmp_path / "targets", settings={"map": "edit"})


def test_a_damaged_shard_is_named_and_made_again_on_request(tmp_path: Path):
    shard = write(tmp_path / "targets").shards[1]
    (tmp_path / "targets" / shard.file).write_bytes(b"no Parquet")
    with pytest.raises(FusionError, match=f"{shard.file} is damaged"):
        read_targets(tmp_path / "targets").row("three")
    asked: list[str] = []
    mended = write(tmp_path / "targets", lambda chat: (asked.append(chat), made(chat))[1], repair=True)
    assert asked == ["three", "four"]
    assert mended.shards[1].sha256 == shard.sha256


def test_a_chat_that_is_not_there_is_named(tmp_path: Path):
    write(tmp_path / "targets")
    with pytest.raises(FusionError, match="no targets of chat 'six'"):
        read_targets(tmp_path / "targets").row("six")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chat": "other"}, "'one' was asked for, and the targets are of 'other'"),
        ({"ids": np.zeros(4, np.int32)}, "has 4 tokens, 9 labels and 9 distributions"),
        ({"supervised": np.ones(9, np.bool_)}, "the last position is supervised"),
    ],
)
def test_targets_that_do_not_fit_together_are_refused(tmp_path: Path, change: dict[str, object], message: str):
    good = made("one")
    fields = {name: getattr(good, name) for name in ("chat", "ids", "supervised", "sparse")}
    with pytest.raises(FusionError, match=message):
        write(tmp_path / "targets", lambda _: TargetRow(**{**fields, **change}))
    with pytest.raises(FusionError, match="tokens at a position, more than k, which is 1"):
        write(tmp_path / "others", k=1)
    with pytest.raises(FusionError, match="no chats to write targets of"):
        write_targets(tmp_path / "none", [], made, k=1, settings={})


def test_ten_tokens_a_position_take_less_than_80_bytes(tmp_path: Path):
    def full(chat: str) -> TargetRow:
        seed = np.random.default_rng(list(chat.encode()))
        n, k = 2000, 10
        probs = np.sort(seed.dirichlet(np.full(50, 0.05), n)[:, :k].astype(np.float32))[:, ::-1]
        ids = seed.integers(0, 128_000, (n, k)).astype(np.int32)
        supervised = np.arange(n) < n - 1
        tail = (1 - probs.sum(axis=1)).astype(np.float32)
        return TargetRow(chat, ids[:, 0].copy(), supervised, Sparse(ids, probs, tail))

    manifest = write_targets(tmp_path / "targets", ["one", "two"], full, k=10, settings={})
    assert manifest.bytes / manifest.count("tokens") < 80
