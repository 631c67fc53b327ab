"""Random dropping of deltas' elements, as DARE and DELLA do, alike on every machine.

Whether an element is dropped depends on the seed, the source's number and the element's flat index alone: not on how
tensors are cut into blocks, on threads, or on the device. The numbers are those of numpy's SFC64, 16 bits an element,
at a twentieth of the time of ``torch.bernoulli``; so keep probabilities are multiples of 2⁻¹⁶.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusion.blocks import Group, arithmetic

ONE = 1 << 16  # the keep probability 1
_PER_DRAW = 4  # 16-bit numbers in one of the generator's
_BIT = np.array([1], np.uint16)
_ROWS = 1 << 22  # elements that are ranked at once, or one row if it has more

Keep = int | npt.NDArray[np.uint16]
"""Keep probabilities in units of 2⁻¹⁶: one for all elements, or one for each."""


def seed_of(generator: torch.Generator | None) -> int:
    """Draw a seed; without a generator, from one seeded with 0."""
    chosen = torch.Generator().manual_seed(0) if generator is None else generator
    return int(torch.randint(2**63 - 1, (), generator=chosen, device=chosen.device))


def rounded(density: float) -> int:
    """Return the keep probability nearest to ``density`` in units of 2⁻¹⁶, and not 0."""
    return max(1, round(density * ONE))


class Drop:
    """Zeroes what is dropped of one source's deltas, block after block in order.

    ``inverse`` divides what stays by its own keep probability, of which there is one for each element then.
    """

    def __init__(self, seed: int, source: int, keep: Keep, *, inverse: bool = False) -> None:
        self._seed, self._inverse = [seed, source], inverse
        self._keep = np.array([keep], np.uint16) if isinstance(keep, int) else keep
        self._dropped: deque[npt.NDArray[np.uint8]] = deque()  # block after block, eight elements a byte
        self.rewind()

    def __call__(self, delta: Tensor) -> None:
        """Drop from the next block, in place."""
        numbers: npt.NDArray[np.unsignedinteger[Any]]
        if self._dropped and not self._inverse:  # each bit is a number below 1 or not
            numbers, keep = np.unpackbits(self._dropped.popleft(), count=delta.numel()), _BIT
        else:
            numbers, keep = self._next(delta.numel())
        arithmetic(delta.device).drop(delta, numbers, keep, self._inverse)

    def magnitudes(self, delta: Tensor) -> tuple[float, float]:
        """Return Σ|δ| of the next block, and of it what would stay; what would not is kept for after ``rewind``."""
        numbers, keep = self._next(delta.numel())
        dropped = np.empty(delta.numel(), np.uint8)
        found: tuple[float, float] = arithmetic(delta.device).magnitudes(delta, numbers, keep, dropped)
        self._dropped.append(np.packbits(dropped))
        return found

    def rewind(self) -> None:
        """Begin with the first block again, and drop the same."""
        state = np.random.SFC64(np.random.SeedSequence(self._seed)).state["state"]["state"]
        self._state = np.array(state, np.uint64)
        self._left = np.empty(0, np.uint16)  # numbers drawn but not used yet
        self._place = 0

    def _next(self, size: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
        place = slice(self._place, self._place + size)
        self._place = place.stop
        return self._numbers(size), self._keep if self._keep.size == 1 else self._keep[place]

    def _numbers(self, size: int) -> npt.NDArray[np.uint16]:
        from fusion.drop_kernels import draw

        drawn = np.empty(-(-max(0, size - self._left.size) // _PER_DRAW), np.uint64)
        draw(self._state, drawn)
        numbers = drawn.view(np.uint16)
        if self._left.size:
            numbers = np.concatenate([self._left, numbers])
        self._left = numbers[size:]
        return numbers[:size]


def keep_by_rank(base: Tensor, source: Tensor, density: float, epsilon: float) -> npt.NDArray[np.uint16]:
    """Return DELLA's keep probabilities: from density − ε for the least |δ| of a row, evenly to density + ε.

    A row is the last dimension. Of equal |δ| the lower index has the higher rank.
    """
    width = base.shape[-1] if base.dim() else 1
    rows, others = base.reshape(-1, width), source.reshape(-1, width)
    ranks = torch.arange(width, device=base.device)
    middle = (width - 1) / 2
    by_rank = (density + epsilon * (middle - ranks) / max(middle, 0.5)).mul_(ONE).round_().clamp_(1, ONE - 1)
    kept = np.empty(rows.shape, np.uint16)
    step = max(1, _ROWS // width)
    for first in range(0, rows.shape[0], step):
        start = rows[first : first + step].float()
        size = others[first : first + step].to(start).sub(start).abs_()
        order = size.argsort(dim=1, descending=True, stable=True)  # the largest first
        values = by_rank.expand(order.shape)
        kept[first : first + step] = torch.empty_like(start).scatter_(1, order, values).cpu().numpy()
    return kept.reshape(-1)


def l1_factors(group: Group, drops: Sequence[Drop | None]) -> list[float]:
    """Return Σ|δₖ| by that of what stays of it, 1 where nothing does; ``drops`` are rewound."""
    sums = np.zeros((len(drops), 2))
    for _, _, deltas in group.blocks():
        for k, (delta, drop) in enumerate(zip(deltas, drops, strict=True)):
            if drop is not None:
                sums[k] += drop.magnitudes(delta)
    for drop in drops:
        if drop is not None:
            drop.rewind()
    return [whole / stays if stays else 1.0 for whole, stays in sums.tolist()]
