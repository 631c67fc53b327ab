"""The map by statistics (MS): each token to what stood opposite it in a corpus, in proportion to how often.

Wan et al. 2024, arXiv:2402.16107 and 2408.07990 (FuseChat), "mapping statistics". Tokens are opposite one another by
the bytes they cover, which is exact and needs no dynamic programming. ``reference_rule`` is what the code of
FuseAI@7d9a307 does instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from fusion.errors import FusionError
from fusion.token_maps import NONE, STATISTICS, TokenMap, exact_map, filled, one_to_one

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fusion.align import Alignment
    from fusion.pieces import Encoded, Pieces

__all__ = ["Counts", "reference_rule", "statistics_map"]

Pairs = Literal["start", "overlap"]

_PENDING = 1 << 20  # pairs kept before they are counted: 8 MiB
_INSIDE = 0.1  # the reference's factor on the distance where one string contains the other


class Counts:
    """How often each target token stood opposite each source token, counted text by text.

    ``pairs`` says what is opposite: "start", the two tokens that come next at an aligned position (they begin at the
    same byte, so the count is of what projecting a distribution of the next token asks for); or "overlap", any two
    that share a byte, as the papers count. Special tokens are not counted: they go by role.
    """

    def __init__(self, source: Pieces, target: Pieces, *, pairs: Pairs = "start") -> None:
        if pairs not in ("start", "overlap"):
            raise FusionError(f"tokens cannot be counted by pairs={pairs!r}; it is 'start' or 'overlap'")
        self.source, self.target, self.pairs = source, target, pairs
        self._keys = np.empty(0, np.int64)  # source id · target size + target id, in rising order
        self._counts = np.empty(0, np.int64)
        self._pending: list[NDArray[np.int64]] = []
        self._waiting = 0

    def add(self, target: Encoded, source: Encoded, alignment: Alignment) -> None:
        """Count one text, tokenized by both and aligned; the alignment says which positions "start" takes."""
        if self.pairs == "start":
            at = np.flatnonzero((alignment.source[:-1] >= 0) & (alignment.source[:-1] + 1 < len(source.ids)))
            left, right = at + 1, alignment.source[at].astype(np.int64) + 1
            together = source.starts[right] == target.starts[left]
            together &= (target.ends[left] > target.starts[left]) & (source.ends[right] > source.starts[right])
            left, right = left[together], right[together]
        else:
            left, right = _overlaps(target, source)
        keys = source.ids[right].astype(np.int64) * self.target.size + target.ids[left]
        if keys.size and (target.ids.max() >= self.target.size or source.ids.max() >= self.source.size):
            raise FusionError("a text has ids that its vocabulary has not; was it tokenized by the other model?")
        self._pending.append(keys)
        self._waiting += keys.size
        if self._waiting >= _PENDING:
            self._settle()

    def table(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return source ids, target ids and counts (n,) each, by source id, then target id."""
        self._settle()
        sources, targets = np.divmod(self._keys, self.target.size)
        plain = ~(_special(self.source)[sources] | _special(self.target)[targets])
        return sources[plain], targets[plain], self._counts[plain]

    def _settle(self) -> None:
        """Count what is pending into the table."""
        if not self._waiting:
            return
        keys, counts = np.unique(np.concatenate(self._pending), return_counts=True)
        self._pending, self._waiting = [], 0
        merged, where = np.unique(np.concatenate([self._keys, keys]), return_inverse=True)
        total = np.zeros(len(merged), np.int64)
        total[where[: len(self._keys)]] = self._counts
        total[where[len(self._keys) :]] += counts
        self._keys, self._counts = merged, total


def statistics_map(counts: Counts, *, argmax: bool = False) -> TokenMap:
    """Map each token exactly where there is such a token, else to what stood opposite it, in proportion to the counts.

    With ``argmax``, whole to what stood there most often, of equals the lowest id: the papers' form. A token that the
    corpus did not show stays unmapped; see ``fusion.token_maps.filled``.
    """
    sources, targets, count = counts.table()
    size = counts.source.size
    if argmax:
        best = _firsts(sources, np.lexsort((targets, -count, sources)))
        sources, targets, count = sources[best], targets[best], count[best]
    per_source = np.bincount(sources, minlength=size)
    total = np.bincount(sources, weights=count, minlength=size)
    indptr = np.zeros(size + 1, np.int64)
    np.cumsum(per_source, out=indptr[1:])
    seen = TokenMap(
        indptr,
        targets.astype(np.int32),
        _at_most_one(count / total[sources]),
        np.where(per_source > 0, STATISTICS, NONE).astype(np.uint8),
        counts.target.size,
    )
    return filled(exact_map(counts.source, counts.target), seen)


def reference_rule(counts: Counts) -> TokenMap:
    """Return the map that the reference's code makes of the same counts, for comparison only.

    A token goes to the j with the least distance(s, j) · sigmoid(count[j, s]), the distance being Levenshtein's,
    times 0.1 where one string contains the other; without counts to unk, or else eos. Its defect: the sigmoid grows
    with the count, so what stands opposite often is held against a candidate; a pair seen once (0.73) beats one seen
    a thousand times (1.0) of a slightly smaller distance. Exact first, as the code does when it uses the map.
    """
    from rapidfuzz.distance import Levenshtein

    from fusion.edit_map import written

    sources, targets, count = counts.table()
    cost = np.empty(len(sources))
    for place, (s, j) in enumerate(zip(sources.tolist(), targets.tolist(), strict=True)):
        here, there = written(counts.source.text[s] or b""), written(counts.target.text[j] or b"")
        inside = here in there or there in here
        cost[place] = Levenshtein.distance(here, there) * (_INSIDE if inside else 1.0)
    cost *= 1 / (1 + np.exp(-count.astype(np.float64)))
    best = _firsts(sources, np.lexsort((targets, cost, sources)))
    ids = np.full(counts.source.size, -1, np.int32)
    special = counts.target.special
    unknown = [i for role in ("unk", "eos", "end_of_turn") for i in sorted(special) if special[i] == role]
    if unknown:
        ids[[n for n, text in enumerate(counts.source.text) if text is not None]] = unknown[0]
    ids[sources[best]] = targets[best]
    rule = one_to_one(ids, np.full(len(ids), STATISTICS, np.uint8), target_size=counts.target.size)
    return filled(exact_map(counts.source, counts.target), rule)


def _overlaps(target: Encoded, source: Encoded) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions (n,) each of the target's and the source's tokens that share a byte."""
    some_target = np.flatnonzero(target.ends > target.starts)
    some_source = np.flatnonzero(source.ends > source.starts)
    first = np.searchsorted(source.ends[some_source], target.starts[some_target], side="right")
    last = np.searchsorted(source.starts[some_source], target.ends[some_target], side="left")
    many = np.maximum(last - first, 0)
    offsets = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
    return np.repeat(some_target, many), some_source[np.repeat(first, many) + offsets]


def _firsts(sources: NDArray[np.int64], order: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return, of an order by source, each source's first entry."""
    _, first = np.unique(sources[order], return_index=True)
    firsts: NDArray[np.intp] = order[first]
    return firsts


def _special(pieces: Pieces) -> NDArray[np.bool_]:
    special = np.zeros(pieces.size, bool)
    special[[number for number in pieces.special if number < pieces.size]] = True
    return special


def _at_most_one(weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """Round weights down to float32, so that those of a row are at most 1 together."""
    rounded = weights.astype(np.float32)
    above = rounded > weights
    rounded[above] = np.nextafter(rounded[above], np.float32(0))
    return rounded
