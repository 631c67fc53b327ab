"""Random dropping of deltas' elements, as DARE and DELLA do, alike on every machine.

Whether an element is dropped depends on the seed, the source's number and the element's flat index alone: not on how
tensors are cut into blocks, on threads, or on the device. The numbers are those of numpy's SFC64, 16 bits an element,
at a twentieth of the time of ``torch.bernoulli``; so keep probabilities are multiples of 2⁻¹⁶.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusion.blocks import Group

ONE = 1 << 16  # the keep probability 1
_LAST = 2**64 - 1
_PER_DRAW = 4  # 16-bit numbers in one of the generator's
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

    ``inverse`` divides what stays by its own keep probability. With ``remember``, the same is dropped again after
    ``rewind``: that takes a bit an element.
    """

    def __init__(self, seed: int, source: int, keep: Keep, *, inverse: bool = False, remember: bool = False) -> None:
        self._random = np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, source])))
        self._keep, self._inverse, self._remember = keep, inverse, remember
        self._left = np.empty(0, np.uint16)  # numbers drawn but not used yet
        self._masks: list[npt.NDArray[np.uint8]] = []
        self._block = self._place = 0

    def __call__(self, delta: Tensor) -> None:
        """Drop from the next block, in place."""
        place = slice(self._place, self._place + delta.numel())
        keep = self._keep if isinstance(self._keep, int) else self._keep[place]
        if self._block < len(self._masks):
            mask = np.unpackbits(self._masks[self._block], count=delta.numel())
        else:
            mask = np.less(self._numbers(delta.numel()), keep).view(np.uint8)
            if self._remember:
                self._masks.append(np.packbits(mask))
        self._block, self._place = self._block + 1, place.stop
        delta.mul_(torch.from_numpy(mask).to(delta))  # in float32: a product with bools takes five times as long
        if self._inverse:
            delta.div_(torch.from_numpy(np.divide(keep, ONE, dtype=np.float32)).to(delta))

    def rewind(self) -> None:
        """Begin with the first block again."""
        assert self._remember
        self._block = self._place = 0

    def _numbers(self, size: int) -> npt.NDArray[np.uint16]:
        draws = -(-max(0, size - self._left.size) // _PER_DRAW)
        # The generator's numbers as they are; random_raw, which gives the same, would block other threads.
        numbers = self._random.integers(0, _LAST, size=draws, dtype=np.uint64, endpoint=True).view(np.uint16)
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
    whole, stays = [0.0] * len(drops), [0.0] * len(drops)
    for _, _, deltas in group.blocks():
        for k, (delta, drop) in enumerate(zip(deltas, drops, strict=True)):
            if drop is not None:
                whole[k] += float(delta.abs_().sum())
                drop(delta)
                stays[k] += float(delta.sum())
    for drop in drops:
        if drop is not None:
            drop.rewind()
    return [all_of_it / rest if rest else 1.0 for all_of_it, rest in zip(whole, stays, strict=True)]
