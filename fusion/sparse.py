"""Distributions over a vocabulary of which the likeliest tokens are kept, and of the others only what they sum to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.errors import FusionError

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]

NO_TOKEN = -1
"""The id that fills a row which has fewer tokens than columns; its probability is 0."""

_LEAST = float(np.finfo(np.float32).tiny)  # what is less would be listed with a probability of 0


@dataclass(frozen=True, slots=True)
class Sparse:
    """Next-token distributions at m positions, each of K tokens at most, the likeliest first.

    In every row the probabilities and the tail sum to 1. ``ids`` is NO_TOKEN where a row has fewer than K tokens.
    """

    ids: NDArray[np.int32]  # (m, K)
    probs: NDArray[np.float32]  # (m, K)
    tail: NDArray[np.float32]  # (m,) the probability of all tokens that are not listed

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.probs.shape != self.ids.shape or self.tail.shape != self.ids.shape[:1]:
            raise FusionError(
                f"ids {self.ids.shape}, probabilities {self.probs.shape} and tail {self.tail.shape} do not belong "
                "together; they must be (m, K), (m, K) and (m,)"
            )

    def __len__(self) -> int:
        return len(self.tail)


def gather(rows: Ints, ids: Ints, mass: Floats, *, length: int, k: int) -> Sparse:
    """Make distributions of single entries: entry i gives ``mass[i]`` to token ``ids[i]`` at position ``rows[i]``.

    What one token gets several times adds up (in float64). The ``k`` likeliest tokens of a position are kept, of
    equals the lower id; the tail is what they lack to 1. Entries without mass are left out. A row whose mass is above
    1, by rounding, is scaled down to 1.
    """
    some = mass > 0
    rows, ids, total = rows[some].astype(np.int64), ids[some], mass[some].astype(np.float64)
    span = int(ids.max(initial=0)) + 1
    key = rows * span + ids
    if len(key) > 1 and not (key[1:] > key[:-1]).all():
        order = np.argsort(key, kind="stable")
        key, total = key[order], total[order]
        first = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1])))
        key, total = key[first], np.add.reduceat(total, first)
    seen = total >= _LEAST
    (rows, ids), total = np.divmod(key[seen], span), total[seen]
    order = np.lexsort((-total, rows))  # stable, so that of equals the lower id comes first
    rows, ids, total = rows[order], ids[order], total[order]
    counts = np.bincount(rows, minlength=length)
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    over = np.maximum(np.bincount(rows, weights=total, minlength=length), 1.0)
    kept = rank < k
    where = rows[kept], rank[kept]
    out = np.full((length, k), NO_TOKEN, np.int32), np.zeros((length, k), np.float32)
    out[0][where], out[1][where] = ids[kept], total[kept] / over[rows[kept]]
    return Sparse(*out, tail_of(out[1]))


def tail_of(probs: Floats) -> NDArray[np.float32]:
    """Return what each row of probabilities (m, K) lacks to 1; never below 0."""
    return np.asarray(np.maximum(1.0 - probs.sum(axis=1, dtype=np.float64), 0.0), np.float32)


def entries(sparse: Sparse) -> tuple[Ints, Ints, Floats]:
    """Return the position, the token and the probability of every token that is listed: what ``gather`` takes."""
    rows, columns = np.nonzero(sparse.ids >= 0)
    return rows, sparse.ids[rows, columns], sparse.probs[rows, columns].astype(np.float64)
