"""Fused targets as training examples: one memory-mapped Arrow file, and batches made of it.

Training reads chats in random order, and the shards of :mod:`fusion.target_shards` are read whole; so they are written
once more, uncompressed, where a chat can be read alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusion.errors import RecipeError
from fusion.sparse import NO_TOKEN

if TYPE_CHECKING:
    from torch import Tensor

    from fusion.target_shards import TargetRow

IGNORED = -100
"""The label of a token that is not in the loss: torch's and transformers' own."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """How many conversations there were, were cut to max_length, and were left out: nothing of them counts."""

    conversations: int
    cut: int
    left_out: int


def write_lessons(rows: Iterable[TargetRow], file: Path, *, k: int, max_length: int, vocabulary: int) -> Lengths:
    """Write the rows, cut to ``max_length`` tokens, as an Arrow stream; ``k`` is the most tokens a position has.

    Columns are input_ids and labels (lists of n), and of the positions whose next token counts, ids (int32) and probs
    (float32) as the bytes of (m, k), tail (float32) as those of (m,). RecipeError where a token is not among the
    ``vocabulary`` that the model knows, and where nothing is left to learn.
    """
    import pyarrow as pa

    numbers, raw = pa.list_(pa.int32()), pa.binary()
    schema = pa.schema({"input_ids": numbers, "labels": numbers, "ids": raw, "probs": raw, "tail": raw})
    found = cut = kept = 0
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    with partial.open("wb") as out, pa.ipc.new_stream(out, schema) as stream:
        for row in rows:
            found += 1
            lesson = _lesson(row, k=k, max_length=max_length, vocabulary=vocabulary)
            if lesson is not None:
                kept += 1
                cut += len(row.ids) > max_length
                stream.write_batch(pa.record_batch({name: [value] for name, value in lesson.items()}, schema=schema))
    os.replace(partial, file)
    if not kept:
        raise RecipeError(
            f"max_length is {max_length}: none of the {found} conversations has something to learn in its first "
            f"{max_length} tokens; raise it"
        )
    return Lengths(found, cut, found - kept)


def _lesson(row: TargetRow, *, k: int, max_length: int, vocabulary: int) -> dict[str, Any] | None:
    """Return a row's columns, or None where nothing of it counts."""
    tokens = row.ids[:max_length]
    counts = row.supervised[: len(tokens)].copy()
    counts[-1:] = False  # its next token was cut off, or there never was one
    if not counts.any():
        return None
    labels = np.full(len(tokens), IGNORED, np.int32)
    labels[1:][counts[:-1]] = tokens[1:][counts[:-1]]
    at = np.flatnonzero(counts)
    ids, probs = np.full((len(at), k), NO_TOKEN, np.int32), np.zeros((len(at), k), np.float32)
    width = row.sparse.ids.shape[1]
    ids[:, :width], probs[:, :width] = row.sparse.ids[at], row.sparse.probs[at]
    if (highest := int(max(tokens.max(), ids.max()))) >= vocabulary:
        raise RecipeError(
            f"chat {row.chat}: token {highest} is not in the model's vocabulary of {vocabulary}; "
            "make the targets with the tokenizer of the model that is trained"
        )
    return {
        "input_ids": tokens.astype(np.int32),
        "labels": labels,
        "ids": ids.tobytes(),
        "probs": probs.tobytes(),
        "tail": row.sparse.tail[at].astype(np.float32).tobytes(),
    }


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes a batch of lessons, padded on the right: what trl's own collator makes of input_ids and labels, and more.

    ``target_ids``, ``target_probs`` (B, T, K) and ``target_tail`` (B, T) stand at the position before the token that
    they speak of; where nothing counts, they are -1, 0 and 1. Without ``targets`` they are left out.
    """

    pad_token_id: int
    k: int
    targets: bool = True

    def __call__(self, lessons: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return input_ids, labels and attention_mask (B, T), and the targets."""
        import torch

        size = len(lessons), max(len(lesson["input_ids"]) for lesson in lessons)
        tokens, labels = np.full(size, self.pad_token_id, np.int64), np.full(size, IGNORED, np.int64)
        mask = np.zeros(size, np.int64)
        ids, probs = np.full((*size, self.k), NO_TOKEN, np.int64), np.zeros((*size, self.k), np.float32)
        tail = np.ones(size, np.float32)
        for b, lesson in enumerate(lessons):
            n = len(lesson["input_ids"])
            tokens[b, :n], labels[b, :n], mask[b, :n] = lesson["input_ids"], lesson["labels"], 1
            if self.targets:
                at = np.flatnonzero(labels[b, 1:] != IGNORED)
                ids[b, at] = np.frombuffer(lesson["ids"], np.int32).reshape(-1, self.k)
                probs[b, at] = np.frombuffer(lesson["probs"], np.float32).reshape(-1, self.k)
                tail[b, at] = np.frombuffer(lesson["tail"], np.float32)
        batch: dict[str, NDArray[Any]] = {"input_ids": tokens, "labels": labels, "attention_mask": mask}
        if self.targets:
            batch |= {"target_ids": ids, "target_probs": probs, "target_tail": tail}
        return {name: torch.from_numpy(array) for name, array in batch.items()}
