"""Where the largest elements of a tensor end: exact thresholds of any share of them, block by block.

A sample tells between which two values a threshold surely lies, so that one pass finds it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.blocks import SAMPLE, Group, arithmetic

_MORE = 0.03  # the share of elements that lie between what a sample shows and what it surely shows
_SURE = 6.0  # standard deviations of the sample's rank; outside them the pass is made again

Ranking = Literal["variance", "magnitude"]
"""By what elements are ranked: the variance of the deltas, or the magnitude of the one delta."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the chosen end: all values above ``threshold``, and of those equal to it the first ``ties``."""

    threshold: float
    ties: int = 0
    taken: int = 0  # how many that are


def count(share: float, numel: int) -> int:
    """Return ⌊share · numel⌋, where what is a whole number in decimals stays one (0.29 · 100 is 28.999…)."""
    return min(numel, math.floor(share * numel * (1 + 1e-12)))


def cuts(group: Group, by: Ranking, shares: Sequence[float], *, of_nonzero: bool = False) -> list[Cut]:
    """Return where the largest ``shares`` of a ranking end.

    A share is of all elements, or of those whose value is not 0. Exact, from one pass over the group: a sample tells
    between which two values a threshold surely lies, the pass counts those above and keeps those between, and among
    them the threshold is found.
    """
    spans = _Spans(_guess(group, by, shares, of_nonzero=of_nonzero))
    nonzero = spans.count(group, by)
    wanted = [count(share, nonzero if of_nonzero else group.numel) for share in shares]
    each = zip(wanted, spans.cuts(wanted), strict=True)
    return [replace(cut or _whole(group, by, want), taken=want) for want, cut in each]


def top(group: Group, by: Ranking, shares: Sequence[float], *, of_nonzero: bool = False) -> tuple[Tensor, list[int]]:
    """Return the flat indices, ascending, of the largest share of a ranking, and how many elements each share is.

    Of equal values the lowest index goes first. A share is of all elements, or of those whose value is not 0.
    """
    low, high = min(_guess(group, by, shares, of_nonzero=of_nonzero))
    zeros = count(max(shares), group.numel)  # no more than these can be among the chosen
    while True:
        nonzero, found = 0, _Found(group, max(shares))
        for place, base, tuned in group.stretches():
            index, values = found.room(base.numel())
            candidates = arithmetic(group.device).candidates
            finite, some, size = candidates(base, tuned, by == "variance", low, zeros, index, values)
            if not finite:
                group.check(place)
            nonzero += some
            zeros -= int((values[:size] == 0).sum()) if low <= 0 else 0
            found.add(index[:size].add_(place.start), values[:size])
        wanted = [count(share, nonzero if of_nonzero else group.numel) for share in shares]
        if found.size >= max(wanted):
            return found.largest(max(wanted), high), wanted
        low, zeros = -math.inf, count(max(shares), group.numel)  # the sample was misleading, as once in many millions


class _Found:
    """Values and where they are, as many as come; there is room for a little more than a share, and more is made."""

    def __init__(self, group: Group, share: float) -> None:
        narrow = torch.int32 if group.numel < 1 << 31 else torch.int64  # there may be many
        room = min(group.numel, math.ceil((share + _MORE) * group.numel))
        self._index = torch.empty(room, dtype=narrow, device=group.device)
        self._values = torch.empty(room, device=group.device)
        self._index_room, self._values_room = self._index.new_empty(0), self._values.new_empty(0)
        self.size = 0

    def room(self, size: int) -> tuple[Tensor, Tensor]:
        """Return where the next that may be added can be written, a place and a value each, until asked again."""
        if self._values_room.numel() < size:
            self._index_room, self._values_room = self._index.new_empty(size), self._values.new_empty(size)
        return self._index_room[:size], self._values_room[:size]

    def add(self, index: Tensor, values: Tensor) -> None:
        """Append some."""
        end = self.size + index.numel()
        if end > self._index.numel():
            more = self._index.new_empty(end)
            self._index = torch.cat([self._index[: self.size], more])
            self._values = torch.cat([self._values[: self.size], more.float()])
        self._index[self.size : end] = index
        self._values[self.size : end] = values
        self.size = end

    def largest(self, want: int, high: float) -> Tensor:
        """Return where the ``want`` largest are, of equal ones the first; nothing can be added afterwards.

        The smallest of them is hardly larger than ``high``.
        """
        index, values = self._index[: self.size], self._values[: self.size]
        del self._index, self._values, self._index_room, self._values_room
        if want == 0:
            return index[:0]
        near = torch.empty_like(values)
        near = near[: arithmetic(values.device).up_to(values, high, near)]
        rest = want - (values.numel() - near.numel())
        threshold = _kth_largest(near, rest) if rest > 0 else _kth_largest(values, want)
        chosen = index.new_empty(want)
        arithmetic(values.device).largest(values, index, threshold, chosen)
        return chosen


class Ladder:
    """Says stretch after stretch how many of some cuts of one ranking take each element; they must come in order.

    A cut that is None takes all. What one takes, those that take more take as well: so cut number t takes the elements
    whose level is ``needed[t]`` at least.
    """

    def __init__(self, cuts: Sequence[Cut | None], by: Ranking) -> None:
        self._by = by
        ends = [(-math.inf, 0) if cut is None else (cut.threshold, cut.ties) for cut in cuts]
        order = sorted(range(len(cuts)), key=lambda number: (-ends[number][0], ends[number][1]))  # the fewest first
        self.needed: NDArray[Any] = np.empty(len(cuts), np.uint8 if len(cuts) < 1 << 8 else np.int32)
        self.needed[order] = np.arange(len(cuts), 0, -1)
        self._thresholds = np.array([ends[number][0] for number in order], np.float32)
        self._ties = np.array([ends[number][1] for number in order], np.int64)

    @property
    def dtype(self) -> torch.dtype:
        """Of what dtype the levels are."""
        return torch.uint8 if self.needed.dtype == np.uint8 else torch.int32

    def grade(self, base: Tensor, tuned: Sequence[Tensor], level: Tensor, sums: NDArray[np.float64]) -> bool:
        """Write into ``level`` how many cuts take each element of the next stretch, and add its δₖ² to ``sums`` there.

        Returns False where not all numbers may be finite.
        """
        graded = arithmetic(base.device).graded
        return bool(graded(base, tuned, self._by == "variance", self._thresholds, self._ties, level, sums))


def _guess(group: Group, by: Ranking, shares: Sequence[float], *, of_nonzero: bool) -> list[tuple[float, float]]:
    """Return, for each share, two values between which the threshold surely lies."""
    if group.numel <= 4 * SAMPLE:
        return [(-math.inf, math.inf) for _ in shares]
    sampled = group.sample()
    ranked = torch.empty(sampled.numel, device=group.device)
    for place, base, tuned in sampled.stretches():
        if not arithmetic(group.device).ranked(base, tuned, by == "variance", ranked[place]):
            sampled.check(place)
    sample = np.sort(ranked.cpu().numpy())[::-1]
    part = float(np.count_nonzero(sample)) / len(sample) if of_nonzero else 1.0
    return [_between(sample, share * part) for share in shares]


def _between(ranked: NDArray[np.float32], share: float) -> tuple[float, float]:
    """Return two values between which the threshold of a share surely lies, by a sample from largest to smallest."""
    size = len(ranked)
    room = _SURE * math.sqrt(size * share * (1 - share)) + _SURE
    first, last = math.floor(share * size - room), math.ceil(share * size + room)
    high = float(ranked[first]) if first >= 0 else math.inf
    low = float(ranked[last]) if last < size else -math.inf
    return low, high


class _Spans:
    """Counts the values above, at and below the two ends of some spans, and keeps those strictly between.

    Many values may be equal, as differences of bfloat16 numbers are; none of these is kept that the sample showed.
    """

    def __init__(self, ends: Sequence[tuple[float, float]]) -> None:
        self._ends = np.array(ends, np.float32).reshape(-1, 2)
        self._counts = np.zeros((len(ends), 3), np.int64)
        self._between: list[Tensor] = []

    def count(self, group: Group, by: Ranking) -> int:
        """Go over a group, and return how many of its values are not 0."""
        nonzero, between = 0, torch.empty(0, device=group.device)
        for place, base, tuned in group.stretches():
            if between.numel() < base.numel():
                between = between.new_empty(base.numel())
            spans = arithmetic(group.device).spans
            finite, some, kept = spans(base, tuned, by == "variance", self._ends, self._counts, between[: base.numel()])
            if not finite:
                group.check(place)
            nonzero += some
            self._between.append(between[:kept].clone())
        return nonzero

    def cuts(self, wanted: Sequence[int]) -> list[Cut | None]:
        """Return, for each span, the cut that takes the wanted number of largest; None if it does not lie there."""
        between = _sorted(torch.cat(self._between)) if self._between else np.empty(0, np.float32)
        self._between.clear()
        return [self._cut(span, want, between) for span, want in enumerate(wanted)]

    def _cut(self, span: int, want: int, between: NDArray[np.float32]) -> Cut | None:
        low, high = self._ends[span].tolist()
        above, from_high, from_low = self._counts[span].tolist()
        if want < above or want > from_low:
            return None
        if want <= from_high:
            return _cut(high, want - above, from_high - above)
        ends = np.array([low, high], np.float32)
        first, last = np.searchsorted(between, ends[0], "right"), np.searchsorted(between, ends[1], "left")
        rank = want - from_high
        if rank > last - first:
            rest = from_high + int(last - first)
            return _cut(low, want - rest, from_low - rest)
        threshold = between[last - rank]
        begin, end = np.searchsorted(between, threshold, "left"), np.searchsorted(between, threshold, "right")
        return _cut(float(threshold), rank - int(last - end), int(end - begin))


def _sorted(values: Tensor) -> NDArray[np.float32]:
    """Sort, perhaps in place: faster than to look for each of several spans' values."""
    if values.device.type == "cpu":
        found: NDArray[np.float32] = values.numpy()
        found.sort()
    else:
        found = values.sort().values.cpu().numpy()
    return found


def _cut(threshold: float, ties: int, tied: int) -> Cut:
    """Return the cut that takes the first ``ties`` of the ``tied`` values at ``threshold``."""
    if 0 < ties == tied:  # all of them: no need to count
        return Cut(float(np.nextafter(np.float32(threshold), np.float32(-math.inf))))
    return Cut(threshold, ties)


def _whole(group: Group, by: Ranking, want: int) -> Cut:
    """Return a cut from all values of a ranking: the sample was misleading, as once in many millions."""
    spans = _Spans([(-math.inf, math.inf)])
    spans.count(group, by)
    [found] = spans.cuts([want])
    assert found is not None
    return found


def _kth_largest(values: Tensor, k: int) -> float:
    place = values.numel() - k
    if values.device.type == "cpu":
        return float(np.partition(values.numpy(), place)[place])
    return float(values.kthvalue(place + 1).values)
