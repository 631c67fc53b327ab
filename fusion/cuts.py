"""Where the largest elements of a tensor end: exact thresholds of any share of them, block by block.

A sample tells between which two values a threshold surely lies, so that one pass finds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.blocks import SAMPLE, Group, arithmetic

_MORE = 0.03  # the share of elements that lie between what a sample shows and what it surely shows
_SURE = 6.0  # standard deviations of the sample's rank; outside them the pass is made again

Values = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""From a block of the base and of the deltas to what elements are ranked by: a block for each ranking, ≥ 0."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the chosen end: all values above ``threshold``, and of those equal to it the first ``ties``."""

    threshold: float
    ties: int = 0
    taken: int = 0  # how many that are


def count(share: float, numel: int) -> int:
    """Return ⌊share · numel⌋, where what is a whole number in decimals stays one (0.29 · 100 is 28.999…)."""
    return min(numel, math.floor(share * numel * (1 + 1e-12)))


def cuts(
    group: Group, values: Values, shares: Sequence[Sequence[float]], *, of_nonzero: bool = False
) -> list[list[Cut]]:
    """Return where the largest ``shares`` of every ranking end: for ranking r and each s in shares[r], a Cut.

    A share is of all elements, or of those whose value is not 0. Exact, from one pass over the group: a sample tells
    between which two values a threshold surely lies, the pass counts those above and keeps those between, and among
    them the threshold is found.
    """
    spans = [_Spans(each) for each in _guess(group, values, shares, of_nonzero=of_nonzero)]
    numel = [0 if of_nonzero else group.numel] * len(shares)
    for _, start, deltas in group.blocks():
        for r, block in enumerate(values(start, deltas)):
            numel[r] += arithmetic(group.device).nonzero(block) if of_nonzero else 0
            spans[r].add(block)
    found = []
    for r, given in enumerate(shares):
        wanted = [count(share, numel[r]) for share in given]
        each = zip(wanted, spans[r].cuts(wanted), strict=True)
        found.append([replace(cut or _whole(group, values, r, want), taken=want) for want, cut in each])
    return found


def top(group: Group, values: Values, shares: Sequence[float], *, of_nonzero: bool = False) -> tuple[Tensor, list[int]]:
    """Return the flat indices, ascending, of the largest share of the values, and how many elements each share is.

    Of equal values the lowest index goes first. A share is of all elements, or of those whose value is not 0.
    """
    low = min(low for low, _ in _guess(group, values, [shares], of_nonzero=of_nonzero)[0])
    zeros = count(max(shares), group.numel)  # no more than these can be among the chosen
    while True:
        nonzero, found = 0, _Found(group, max(shares))
        for place, start, deltas in group.blocks():
            [block] = values(start, deltas)
            nonzero += arithmetic(group.device).nonzero(block) if of_nonzero else 0
            places = _at_least(block, low, zeros=zeros)
            part = block.index_select(0, places)
            zeros -= int((part == 0).sum()) if low <= 0 else 0
            found.add(places.add_(place.start), part)
        wanted = [count(share, nonzero if of_nonzero else group.numel) for share in shares]
        if found.size >= max(wanted):
            return found.largest(max(wanted)), wanted
        low, zeros = -math.inf, count(max(shares), group.numel)  # the sample was misleading, as once in many millions


class _Found:
    """Values and where they are, as many as come; there is room for a little more than a share, and more is made."""

    def __init__(self, group: Group, share: float) -> None:
        narrow = torch.int32 if group.numel < 1 << 31 else torch.int64  # there may be many
        room = min(group.numel, math.ceil((share + _MORE) * group.numel))
        self._index = torch.empty(room, dtype=narrow, device=group.device)
        self._values = torch.empty(room, device=group.device)
        self.size = 0

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

    def largest(self, want: int) -> Tensor:
        """Return where the ``want`` largest are, of equal ones the first; nothing can be added afterwards."""
        index, values = self._index[: self.size], self._values[: self.size]
        del self._index, self._values
        return _compressed(index, _taken(values, want))


class Ladder:
    """Says block after block how many of some cuts of one ranking take each element; the blocks must come in order.

    A cut that is None takes all. What one takes, those that take more take as well: so cut number t takes the elements
    whose level is ``needed[t]`` at least.
    """

    def __init__(self, cuts: Sequence[Cut | None]) -> None:
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

    def levels(self, values: Tensor, out: Tensor) -> None:
        """Write into ``out`` how many cuts take each value of the next block."""
        arithmetic(values.device).levels(values, self._thresholds, self._ties, out)


def _guess(
    group: Group, values: Values, shares: Sequence[Sequence[float]], *, of_nonzero: bool
) -> list[list[tuple[float, float]]]:
    """Return, for ranking r and each s in shares[r], two values between which the threshold surely lies."""
    if group.numel <= 4 * SAMPLE:
        return [[(-math.inf, math.inf) for _ in given] for given in shares]
    ranked: list[list[Tensor]] = [[] for _ in shares]
    for _, start, deltas in group.sample().blocks():
        for so_far, block in zip(ranked, values(start, deltas), strict=True):
            so_far.append(block.clone())
    found = []
    for blocks, given in zip(ranked, shares, strict=True):
        sample = np.sort(torch.cat(blocks).cpu().numpy())[::-1]
        part = float(np.count_nonzero(sample)) / len(sample) if of_nonzero else 1.0
        found.append([_between(sample, share * part) for share in given])
    return found


def _between(ranked: NDArray[np.float32], share: float) -> tuple[float, float]:
    """Return two values between which the threshold of a share surely lies, by a sample from largest to smallest."""
    size = len(ranked)
    room = _SURE * math.sqrt(size * share * (1 - share)) + _SURE
    first, last = math.floor(share * size - room), math.ceil(share * size + room)
    high = float(ranked[first]) if first >= 0 else math.inf
    low = float(ranked[last]) if last < size else -math.inf
    return low, high


def _at_least(block: Tensor, low: float, *, zeros: int) -> Tensor:
    """Return where values ≥ ``low`` are; of zeros, which may be most of them, only the first."""
    values: Any = block.numpy() if block.device.type == "cpu" else block
    if low > 0:
        return _places(values >= low)
    found, none = _places(values > 0), _places(values == 0)[:zeros]
    return torch.cat([found, none]).sort().values if none.numel() else found


def _places(mask: Any) -> Tensor:
    """Return where a mask of numpy or torch is true."""
    return mask.nonzero().squeeze(1) if isinstance(mask, Tensor) else torch.from_numpy(np.flatnonzero(mask))


class _Spans:
    """Counts the values above, at and below the two ends of some spans, and keeps those strictly between.

    Many values may be equal, as differences of bfloat16 numbers are; none of these is kept that the sample showed.
    """

    def __init__(self, ends: Sequence[tuple[float, float]]) -> None:
        self._ends = np.array(ends, np.float32).reshape(-1, 2)
        self._counts = np.zeros((len(ends), 3), np.int64)
        self._between: list[Tensor] = []

    def add(self, block: Tensor) -> None:
        """Count a block of values."""
        if len(self._ends):
            between = torch.empty_like(block)
            kept = arithmetic(block.device).spans(block, self._ends, self._counts, between)
            self._between.append(between[:kept].clone())

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


def _whole(group: Group, values: Values, ranking: int, want: int) -> Cut:
    """Return a cut from all values of a ranking: the sample was misleading, as once in many millions."""
    spans = _Spans([(-math.inf, math.inf)])
    for _, start, deltas in group.blocks():
        spans.add(values(start, deltas)[ranking])
    [found] = spans.cuts([want])
    assert found is not None
    return found


def _taken(values: Tensor, want: int) -> Tensor:
    """Return where the ``want`` largest values are, as a mask; of equal ones the first."""
    if want == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    threshold = _kth_largest(values, want)
    chosen = values > threshold
    ties = (values == threshold).nonzero().squeeze(1)
    chosen[ties[: want - int(chosen.sum())]] = True
    return chosen


def _compressed(index: Tensor, mask: Tensor) -> Tensor:
    if index.device.type == "cpu":  # torch would make the mask a list of 64-bit indices first
        return torch.from_numpy(index.numpy()[mask.numpy()])
    return index[mask]


def _kth_largest(values: Tensor, k: int) -> float:
    place = values.numel() - k
    if values.device.type == "cpu":
        return float(np.partition(values.numpy(), place)[place])
    return float(values.kthvalue(place + 1).values)
