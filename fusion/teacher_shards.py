"""What a teacher says of every token of a chat, on disk: the k likeliest next tokens and the real one's probability.

Shards, manifest, checksums and resuming are those of :mod:`fusion.parquet_shards`. A row of a shard is a text; only
real positions are stored. In bytes a token, at k = 10: 20 of float16 log-probabilities, at most 22.5 of token ids and
4 of the real next token's log-probability, before compression. Measured on English prose and chat: 31 a token of
SmolLM2's, 36 of Gemma-3's; of token ids without any pattern 43. FuseChat's layout takes 122 a padded position.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusion.errors import FusionError
from fusion.parquet_shards import Manifest, Shard, read_manifest, read_shard

KEPT_SHARDS = 2  # decoded shards in memory: two, so that an order that wavers at a boundary reads nothing twice

IntArray = npt.NDArray[np.integer[Any]]
FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class TeacherRow:
    """What a teacher says of one chat of n tokens of its own; position t is the distribution after token t.

    ``ids`` int32 (n,) are its tokens and ``ends`` int64 (n,) the UTF-8 bytes of the text at which they end.
    ``next_logprob`` float32 (n,) is ln p of token t + 1, NaN at the last. ``top_ids`` int32 and ``top_logprobs``
    float32 (n, k), likeliest first, are the k likeliest next tokens, ln p normalised over the whole vocabulary and
    rounded to float16 on disk. Their probabilities never sum to more than 1: the rest is the tail.
    """

    chat: str
    ids: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int64]
    next_logprob: npt.NDArray[np.float32]
    top_ids: npt.NDArray[np.int32]
    top_logprobs: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Spoken:
    """One row on its way to disk: the arrays of :class:`TeacherRow`."""

    chat: str
    ids: IntArray
    ends: IntArray
    next_logprob: FloatArray
    top_ids: IntArray
    top_logprobs: FloatArray


class Teacher:
    """A finished folder of distributions; a shard is read when a chat of it is asked for.

    ``chats`` are the ids in the order in which they were given, ``k`` the entries kept a position.
    """

    def __init__(self, folder: Path) -> None:
        self.manifest: Manifest = read_manifest(folder)
        if self.manifest.settings.get("kind") != "teacher":
            raise FusionError(f"{folder} holds {self.manifest.settings.get('kind')!r} shards, not a teacher's")
        self.k: int = self.manifest.settings["k"]
        self.chats: tuple[str, ...] = tuple(self.manifest.told["chats"])
        self._same_text: Mapping[str, str] = self.manifest.told["same_text"]
        self._place: dict[str, tuple[Shard, int]] = {}
        self._recent: OrderedDict[int, Any] = OrderedDict()
        distinct = (chat for chat in dict.fromkeys(self.chats) if chat not in self._same_text)
        for shard in self.manifest.shards:
            for row in range(shard.counts["rows"]):
                self._place[next(distinct)] = (shard, row)

    def __len__(self) -> int:
        return len(self.chats)

    def __contains__(self, chat: str) -> bool:
        return chat in self._place or chat in self._same_text

    def __iter__(self) -> Iterator[TeacherRow]:
        return self.rows(self.chats)

    @property
    def tokens(self) -> int:
        """Return the number of tokens stored, each text counted once."""
        return self.manifest.count("tokens")

    def row(self, chat: str) -> TeacherRow:
        """Return the row of one chat; FusionError where the teacher was not asked about it."""
        try:
            shard, place = self._place[self._same_text.get(chat, chat)]
        except KeyError:
            raise FusionError(
                f"{self.manifest.folder} holds nothing of chat {chat!r}; make the distributions of these chats first"
            ) from None
        return _row(self._table(shard), place, chat=chat, k=self.k)

    def rows(self, chats: Sequence[str]) -> Iterator[TeacherRow]:
        """Yield the rows of these chats in this order; in the order of ``self.chats`` each shard is read once."""
        for chat in chats:
            yield self.row(chat)

    def _table(self, shard: Shard) -> Any:
        if shard.number not in self._recent:
            self._recent[shard.number] = read_shard(self.manifest.folder, shard).combine_chunks()
            while len(self._recent) > KEPT_SHARDS:
                self._recent.popitem(last=False)
        self._recent.move_to_end(shard.number)
        return self._recent[shard.number]


def read(folder: Path) -> Teacher:
    """Open what a teacher said; FusionError where the folder is not finished or not a teacher's."""
    return Teacher(folder)


def table(rows: Sequence[Spoken], *, k: int) -> Any:
    """Return rows as the pyarrow table of one shard."""
    import pyarrow as pa

    lengths = np.array([len(row.ids) for row in rows], dtype=np.int64)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    columns: dict[str, tuple[Any, Sequence[Any], int, bool]] = {
        "ids": (pa.int32(), [row.ids for row in rows], 1, False),
        "ends": (pa.int32(), [row.ends for row in rows], 1, True),
        "next_logprob": (pa.float32(), [row.next_logprob for row in rows], 1, False),
        "top_ids": (pa.int32(), [row.top_ids for row in rows], k, False),
        "top_logprobs": (pa.float16(), [row.top_logprobs for row in rows], k, False),
    }
    fields = [pa.field("chat", pa.string(), nullable=False)]
    arrays = [pa.array([row.chat for row in rows], pa.string())]
    for name, (of, parts, width, steps) in columns.items():
        flat = np.concatenate([np.asarray(part).reshape(-1) for part in parts]).astype(of.to_pandas_dtype())
        kind = pa.list_(pa.field("element", of, nullable=False))
        arrays.append(pa.ListArray.from_arrays(pa.array(offsets * width), pa.array(flat), type=kind))
        fields.append(pa.field(name, kind, nullable=False, metadata={"steps": "1"} if steps else None))
    return pa.table(arrays, schema=pa.schema(fields))


def _row(shard: Any, place: int, *, chat: str, k: int) -> TeacherRow:
    def column(name: str) -> Any:
        return shard.column(name).chunk(0)[place].values.to_numpy(zero_copy_only=False)

    return TeacherRow(
        chat=chat,
        ids=column("ids"),
        ends=column("ends").astype(np.int64),
        next_logprob=column("next_logprob"),
        top_ids=column("top_ids").reshape(-1, k),
        top_logprobs=_at_most_one(column("top_logprobs").astype(np.float32).reshape(-1, k)),
    )


def _at_most_one(logprobs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Take back what rounding to float16 added where the probabilities of a position sum to more than 1."""
    total = np.exp(logprobs.astype(np.float64)).sum(axis=1)
    over = total > 1
    logprobs[over] -= np.log(total[over])[:, None].astype(np.float32)
    return logprobs
