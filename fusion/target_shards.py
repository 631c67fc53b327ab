"""Fused targets on disk: of each chat the target's tokens, which of them count, and what is to be learnt there.

Shards, manifest, checksums and resuming are those of :mod:`fusion.parquet_shards`. A row of a shard is a chat.
Distributions are stored only at positions whose next token counts, and only the tokens they have; the tail is what
they lack to 1, and is not stored.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.errors import FusionError
from fusion.parquet_shards import Manifest, Shard, ShardFolder, key_of, read_manifest, read_shard
from fusion.sparse import NO_TOKEN, Sparse, tail_of

CHATS_A_SHARD = 256  # some 5 MB at 10 tokens a position
KEPT_SHARDS = 2  # decoded shards in memory

KIND = "targets"


@dataclass(frozen=True, slots=True)
class TargetRow:
    """What the target is to learn from one chat of n of its own tokens.

    Position t expects token t + 1. Where ``supervised`` is false, which it is at the last, ``sparse`` is not stored: it
    is read back empty, with a tail of 1.
    """

    chat: str
    ids: NDArray[np.int32]  # (n,)
    supervised: NDArray[np.bool_]  # (n,) whether the next token counts in the loss
    sparse: Sparse  # of n positions


class Targets:
    """A finished folder of targets; a shard is read when a chat of it is asked for.

    ``chats`` are the ids in the order in which they were given, ``k`` the most tokens a position may have.
    """

    def __init__(self, folder: Path) -> None:
        self.manifest: Manifest = read_manifest(folder)
        if self.manifest.settings.get("kind") != KIND:
            raise FusionError(f"{folder} holds {self.manifest.settings.get('kind')!r} shards, not {KIND}")
        self.k: int = self.manifest.settings["k"]
        self.chats: tuple[str, ...] = tuple(self.manifest.told["chats"])
        self._place: dict[str, tuple[Shard, int]] = {}
        self._recent: OrderedDict[int, Any] = OrderedDict()
        distinct = list(dict.fromkeys(self.chats))
        for shard in self.manifest.shards:
            first, count = shard.counts["first"], shard.counts["rows"]
            for row, chat in enumerate(distinct[first : first + count]):
                self._place[chat] = (shard, row)

    def __len__(self) -> int:
        return len(self.chats)

    def __iter__(self) -> Iterator[TargetRow]:
        return (self.row(chat) for chat in self.chats)

    def row(self, chat: str) -> TargetRow:
        """Return one chat's targets; in the order of ``chats`` each shard is read once."""
        try:
            shard, place = self._place[chat]
        except KeyError:
            raise FusionError(f"{self.manifest.folder} holds no targets of chat {chat!r}; make them first") from None
        return _row(self._table(shard), place, k=self.k)

    def _table(self, shard: Shard) -> Any:
        if shard.number not in self._recent:
            self._recent[shard.number] = read_shard(self.manifest.folder, shard)
            while len(self._recent) > KEPT_SHARDS:
                self._recent.popitem(last=False)
        self._recent.move_to_end(shard.number)
        return self._recent[shard.number]


def write_targets(
    folder: Path,
    chats: Sequence[str],
    make: Callable[[str], TargetRow],
    *,
    k: int,
    settings: Mapping[str, Any],
    on_chat: Callable[[int, int], None] | None = None,
    chats_a_shard: int = CHATS_A_SHARD,
    repair: bool = False,
) -> Manifest:
    """Write the targets of the chats, shard by shard, so that a killed run goes on where it was.

    ``make`` gives a chat's targets, of at most ``k`` tokens a position; it is called only for chats of shards that are
    not there yet, each id once, in order. ``settings`` (JSON values) must tell all that decides the targets, such as
    the hashes of the models: a folder begun with others is refused, by FusionError. ``on_chat`` hears how many chats of
    how many are done. With ``repair``, a damaged shard is made again.
    """
    distinct = list(dict.fromkeys(chats))
    if not distinct:
        raise FusionError(f"there are no chats to write targets of to {folder}; check the conversations")
    shards = ShardFolder(folder, {"kind": KIND, "k": k, **settings}, repair=repair)
    keys = []
    for number, first in enumerate(range(0, len(distinct), chats_a_shard)):
        group = distinct[first : first + chats_a_shard]
        keys.append(key := key_of(shards.settings, first, group))
        if not shards.has(key):
            rows = [_checked(make(chat), chat, k) for chat in group]
            counts = {
                "first": first,
                "rows": len(rows),
                "tokens": sum(len(row.ids) for row in rows),
                "supervised": int(sum(row.supervised.sum() for row in rows)),
            }
            shards.write(number, key, _table(rows), **counts)
        if on_chat is not None:
            on_chat(first + len(group), len(distinct))
    return shards.finish(keys, chats=list(chats))


def read_targets(folder: Path) -> Targets:
    """Open fused targets; FusionError where the folder is not finished or holds something else."""
    return Targets(folder)


def _checked(row: TargetRow, chat: str, k: int) -> TargetRow:
    lengths = len(row.ids), len(row.supervised), len(row.sparse)
    if row.chat != chat:
        raise FusionError(f"chat {chat!r} was asked for, and the targets are of {row.chat!r}")
    if len(set(lengths)) > 1:
        raise FusionError(f"chat {chat!r} has {lengths[0]} tokens, {lengths[1]} labels and {lengths[2]} distributions")
    if lengths[0] and row.supervised[-1]:
        raise FusionError(f"chat {chat!r}: the last position is supervised, but no token comes after it")
    most = int((row.sparse.ids[row.supervised] >= 0).sum(axis=1).max(initial=0))
    if most > k:
        raise FusionError(f"chat {chat!r} has {most} tokens at a position, more than k, which is {k}")
    return row


def _table(rows: Sequence[TargetRow]) -> Any:
    """Return rows as the pyarrow table of one shard."""
    import pyarrow as pa

    parts: dict[str, tuple[Any, list[NDArray[Any]]]] = {
        "ids": (pa.int32(), [row.ids for row in rows]),
        "supervised": (pa.bool_(), [row.supervised for row in rows]),
        "counts": (pa.uint16(), []),  # tokens of each distribution
        "top_ids": (pa.int32(), []),
        "probs": (pa.float32(), []),
    }
    for row in rows:
        ids, probs = row.sparse.ids[row.supervised], row.sparse.probs[row.supervised]
        some = ids >= 0
        parts["counts"][1].append(some.sum(axis=1))
        parts["top_ids"][1].append(ids[some])
        parts["probs"][1].append(probs[some])
    columns = {"chat": pa.array([row.chat for row in rows], pa.string())}
    for name, (of, arrays) in parts.items():
        offsets = np.concatenate(([0], np.cumsum([len(array) for array in arrays]))).astype(np.int32)
        flat = pa.array(np.concatenate(arrays).astype(of.to_pandas_dtype()), of)
        kind = pa.list_(pa.field("element", of, nullable=False))
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets), flat, type=kind)
    return pa.table(columns)


def _row(shard: Any, place: int, *, k: int) -> TargetRow:
    def column(name: str) -> NDArray[Any]:
        values: NDArray[Any] = shard.column(name).chunk(0)[place].values.to_numpy(zero_copy_only=False)
        return values

    supervised, counts = column("supervised").astype(np.bool_), column("counts").astype(np.int64)
    n = len(supervised)
    ids, probs = np.full((n, k), NO_TOKEN, np.int32), np.zeros((n, k), np.float32)
    where = (
        np.repeat(np.flatnonzero(supervised), counts),
        np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts),
    )
    ids[where], probs[where] = column("top_ids"), column("probs")
    return TargetRow(shard.column("chat")[place].as_py(), column("ids"), supervised, Sparse(ids, probs, tail_of(probs)))
