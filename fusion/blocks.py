"""One tensor of every model, a block at a time: what merge methods loop over.

A block's temporaries stay in the processor's cache, so that memory does not grow with the tensor and arithmetic runs
several times faster than on whole tensors. On a GPU blocks are 256 times as large.
"""

from __future__ import annotations

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

_CPU_BLOCK = 1 << 18  # elements: 1 MiB in float32; smaller ones pay for each call, larger ones leave the cache
_GPU_BLOCK = 1 << 26
_SAMPLE = 1 << 16  # elements that tell roughly where a threshold lies
_SURE = 6.0  # standard deviations of the sample's rank; outside them the pass is made again

Block = tuple[slice, Tensor, list[Tensor]]
"""A block's place, θ₀ and the δₖ."""

Values = Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor]]
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
        self._finite = False
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
        start = torch.empty(self._size, device=self.device)
        deltas = [torch.empty_like(start) for _ in self.tuned]
        first = 0
        parts = (torch.split(tensor, max(self._size, 1)) for tensor in (self.base, *self.tuned))
        for base, *tuned in zip(*parts, strict=True):
            if (length := base.numel()) < start.numel():
                start, deltas = start[:length], [delta[:length] for delta in deltas]
            if not length:
                break  # of an empty tensor
            # One call for all sources: threads that come back to Python for each would wait for one another.
            torch._foreach_copy_([start, *deltas], [base, *tuned], non_blocking=True)
            torch._foreach_sub_(deltas, [start] * len(deltas))
            if not self._finite:
                self._check(start, deltas)
            yield slice(first, first + length), start, deltas
            first += length
        self._finite = True

    def put(self, place: slice, values: Tensor) -> None:
        """Store a block of results, rounded to the base's dtype."""
        self.merged[place].copy_(values)

    def at(self, index: Tensor) -> Group:
        """Return the group of the elements at ``index``."""
        part = Group(
            self.base.index_select(0, index), [source.index_select(0, index.to(source.device)) for source in self.tuned]
        )
        part._finite = self._finite
        return part

    def sample(self) -> Group:
        """Return a group of some elements, for a guess at thresholds."""
        places = np.sort(np.random.default_rng(0).integers(0, self.numel, size=_SAMPLE))
        return self.at(torch.from_numpy(places).to(self.device))

    def _check(self, start: Tensor, deltas: Sequence[Tensor]) -> None:
        # A NaN or infinity in any element shows in the sum; a sum may overflow without one, so the elements decide.
        if math.isfinite(sum(block.sum() for block in (start, *deltas)).item()):  # type: ignore[union-attr]
            return
        for source, values in enumerate((start, *deltas)):
            if not values.isfinite().all():
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
            numel[r] += int(torch.count_nonzero(block)) if of_nonzero else 0
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
    narrow = torch.int32 if group.numel < 1 << 31 else torch.int64  # there may be many
    while True:
        nonzero, places, kept = 0, [], []
        for place, start, deltas in group.blocks():
            [block] = values(start, deltas)
            nonzero += int(torch.count_nonzero(block)) if of_nonzero else 0
            found = _at_least(block, low, zeros=zeros)
            zeros -= int((block.index_select(0, found) == 0).sum()) if low <= 0 else 0
            kept.append(block.index_select(0, found))
            places.append(found.add_(place.start).to(narrow))
        wanted = [count(share, nonzero if of_nonzero else group.numel) for share in shares]
        value = torch.cat(kept)
        kept.clear()
        index = torch.cat(places)
        places.clear()
        if index.numel() >= max(wanted):
            return _compressed(index, _taken(value, max(wanted))), wanted
        low, zeros = -math.inf, count(max(shares), group.numel)  # the sample was misleading, as once in many millions


class Taker:
    """Says block after block which elements a Cut takes; the blocks must come in order."""

    def __init__(self, cut: Cut) -> None:
        self._cut, self._ties = cut, cut.ties

    def mask(self, values: Tensor, *, out: Tensor) -> Tensor:
        """Write 1 where a value is taken and 0 elsewhere into ``out``, which may be ``values``.

        In float32: masks of bools are slower on a CPU.
        """
        tied = (values == self._cut.threshold).nonzero().squeeze(1)[: self._ties] if self._ties else None
        torch.gt(values, self._cut.threshold, out=out)
        if tied is not None:
            out[tied] = 1.0
            self._ties -= tied.numel()
        return out


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
