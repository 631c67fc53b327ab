"""One tensor of every model, a block at a time: what merge methods loop over.

A block's temporaries stay in the processor's cache, so that memory does not grow with the tensor and arithmetic runs
several times faster than on whole tensors. On a GPU blocks are 256 times as large.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.errors import FusionError
from fusion.memory import fresh

_CPU_BLOCK = 1 << 17  # elements: 512 KiB in float32; smaller ones pay for each call, larger ones leave the cache
_GPU_BLOCK = 1 << 26
_SAMPLE = 1 << 16  # elements that tell roughly where a threshold lies
_MORE = 0.03  # the share of elements that lie between what a sample shows and what it surely shows
_SURE = 6.0  # standard deviations of the sample's rank; outside them the pass is made again

Block = tuple[slice, Tensor, Tensor]
"""A block's place, θ₀ (n,) and the δₖ (sources, n), contiguous and in float32."""

Values = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""From a block of the base and of the deltas to what elements are ranked by: a block for each ranking, ≥ 0."""


class NotFinite(FusionError):
    """A tensor holds a NaN or an infinity; ``source`` is its number among the sources, None the base."""

    def __init__(self, source: int | None) -> None:
        super().__init__(f"{'the base' if source is None else f'source {source + 1}'} holds a NaN or an infinity")
        self.source = source


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the chosen end: all values above ``threshold``, and of those equal to it the first ``ties``."""

    threshold: float
    ties: int = 0
    taken: int = 0  # how many that are


def arithmetic(device: torch.device) -> Any:
    """Return the functions of ``fusion.vectorised``, for a CPU compiled."""
    name = "fusion.kernels" if device.type == "cpu" else "fusion.vectorised"  # the first takes a moment to import
    return importlib.import_module(name)


def block_size(device: torch.device) -> int:
    """Return how many elements are worked on at once."""
    return _CPU_BLOCK if device.type == "cpu" else _GPU_BLOCK


class Group:
    """θ₀ and the θₖ of one tensor, flat; ``merged`` holds the results that were put.

    A block holds whole rows of ``row`` elements.
    """

    def __init__(self, base: Tensor, tuned: Sequence[Tensor], *, row: int = 1) -> None:
        self.shape, self.device = base.shape, base.device
        self.base, self.tuned = base.detach().reshape(-1), [source.detach().reshape(-1) for source in tuned]
        self.numel = self.base.numel()
        most = block_size(self.device)
        self._size = min(self.numel, max(row, most // row * row))
        self._merged: Tensor | None = None

    @property
    def merged(self) -> Tensor:
        """The results that were put, flat."""
        if self._merged is None:
            self._merged = fresh(self.base)
        return self._merged

    def again(self) -> None:
        """Begin another result, and leave the one so far to whoever has it."""
        self._merged = None

    def unchanged(self) -> bool:
        """Tell whether no source changed the tensor."""
        if not all(same(self.base, source) for source in self.tuned):
            return False
        if not self.base.isfinite().all():  # equal infinities are equal
            raise NotFinite(None)
        return True

    def result(self) -> Tensor:
        """Return the merged tensor in the base's shape."""
        return self.merged.view(self.shape)

    def blocks(self) -> Iterator[Block]:
        """Yield the place, θ₀ and the δₖ = θₖ − θ₀ of each block in float32; they are overwritten by the next."""
        rows = 1 + len(self.tuned)
        buffer = torch.empty(rows * self._size, device=self.device)
        parts = (torch.split(tensor, max(self._size, 1)) for tensor in (self.base, *self.tuned))
        first = 0
        for base, *tuned in zip(*parts, strict=True):
            if not (length := base.numel()):
                break  # of an empty tensor
            values = buffer[: rows * length].view(rows, length)
            start, deltas = values[0], values[1:]
            # One call for all sources: threads that come back to Python for each would wait for one another.
            torch._foreach_copy_(list(values), [base, *tuned], non_blocking=True)
            if not arithmetic(self.device).differences(start, deltas):
                self._check(values)
            yield slice(first, first + length), start, deltas
            first += length

    def put(self, place: slice, values: Tensor) -> None:
        """Store a block of results, rounded to the base's dtype."""
        self.merged[place].copy_(values)

    def at(self, index: Tensor) -> Group:
        """Return the group of the elements at ``index``."""
        return Group(
            self.base.index_select(0, index), [source.index_select(0, index.to(source.device)) for source in self.tuned]
        )

    def sample(self) -> Group:
        """Return a group of some elements, for a guess at thresholds."""
        places = np.sort(np.random.default_rng(0).integers(0, self.numel, size=_SAMPLE))
        return self.at(torch.from_numpy(places).to(self.device))

    def _check(self, values: Tensor) -> None:
        for source, row in enumerate(values):
            if not row.isfinite().all():
                raise NotFinite(source - 1 if source else None)


def same(one: Tensor, other: Tensor) -> bool:
    """Tell whether two flat tensors hold equal numbers, whatever their dtypes."""
    for first, last in ((0, min(_CPU_BLOCK, one.numel())), (min(_CPU_BLOCK, one.numel()), one.numel())):
        a, b = one[first:last], other[first:last]
        if a.dtype != b.dtype:
            wide = torch.promote_types(a.dtype, b.dtype)
            a, b = a.to(wide), b.to(wide)
        if not torch.equal(a, b.to(a.device)):
            return False
    return True


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
    spans = [[_Span(low, high) for low, high in each] for each in _guess(group, values, shares, of_nonzero=of_nonzero)]
    numel = [0 if of_nonzero else group.numel] * len(shares)
    for _, start, deltas in group.blocks():
        for r, block in enumerate(values(start, deltas)):
            numel[r] += arithmetic(group.device).nonzero(block) if of_nonzero else 0
            for span in spans[r]:
                span.add(block)
    wanted = [[count(share, size) for share in given] for size, given in zip(numel, shares, strict=True)]
    return [
        [
            replace(span.cut(want) or _whole(group, values, r, want), taken=want)
            for span, want in zip(spans[r], wanted[r], strict=True)
        ]
        for r in range(len(shares))
    ]


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
        self.needed = np.empty(len(cuts), np.int32)
        self.needed[order] = np.arange(len(cuts), 0, -1)
        self._thresholds = np.array([ends[number][0] for number in order], np.float32)
        self._ties = np.array([ends[number][1] for number in order], np.int64)

    def levels(self, values: Tensor) -> Tensor:
        """Return how many cuts take each value of the next block, in int32."""
        level = torch.empty_like(values, dtype=torch.int32)
        arithmetic(values.device).levels(values, self._thresholds, self._ties, level)
        return level


def _guess(
    group: Group, values: Values, shares: Sequence[Sequence[float]], *, of_nonzero: bool
) -> list[list[tuple[float, float]]]:
    """Return, for ranking r and each s in shares[r], two values between which the threshold surely lies."""
    if group.numel <= 4 * _SAMPLE:
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


class _Span:
    """Counts the values above, at and below two values, and keeps those strictly between.

    Many values may be equal, as differences of bfloat16 numbers are; none of these is kept that the sample showed.
    """

    def __init__(self, low: float, high: float) -> None:
        self._low, self._high = low, high
        self._above = self._from_high = self._from_low = 0
        self._between: list[Tensor] = []

    def add(self, block: Tensor) -> None:
        """Count a block of values."""
        values: Any = block.numpy() if block.device.type == "cpu" else block  # numpy is several times faster on a CPU
        from_high = values >= self._high
        self._above += _true(values > self._high)
        self._from_high += _true(from_high)
        if self._low < self._high:
            inside = values > self._low
            self._from_low += _true(values >= self._low)
            inside &= ~from_high
            self._between.append(block.index_select(0, _places(inside)))

    def cut(self, want: int) -> Cut | None:
        """Return the cut that takes the ``want`` largest; None if it does not lie here."""
        if want < self._above or want > max(self._from_high, self._from_low):
            return None
        if want <= self._from_high:
            return _cut(self._high, want - self._above, self._from_high - self._above)
        between = torch.cat(self._between)
        rank = want - self._from_high
        if rank > between.numel():
            rest = self._from_high + between.numel()
            return _cut(self._low, want - rest, self._from_low - rest)
        threshold = _kth_largest(between, rank)
        return _cut(threshold, rank - int((between > threshold).sum()), int((between == threshold).sum()))


def _true(mask: Any) -> int:
    return int(torch.count_nonzero(mask) if isinstance(mask, Tensor) else np.count_nonzero(mask))


def _cut(threshold: float, ties: int, tied: int) -> Cut:
    """Return the cut that takes the first ``ties`` of the ``tied`` values at ``threshold``."""
    if 0 < ties == tied:  # all of them: no need to count
        return Cut(float(np.nextafter(np.float32(threshold), np.float32(-math.inf))))
    return Cut(threshold, ties)


def _whole(group: Group, values: Values, ranking: int, want: int) -> Cut:
    """Return a cut from all values of a ranking: the sample was misleading, as once in many millions."""
    span = _Span(-math.inf, math.inf)
    for _, start, deltas in group.blocks():
        span.add(values(start, deltas)[ranking].clone())
    found = span.cut(want)
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
