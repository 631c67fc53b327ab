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

from fusion.blocks import Group, arithmetic
from fusion.thinning import CHANCES, Drop, Thinning

_ROWS = 1 << 22  # elements that are ranked at once, or one row if it has more


def seed_of(generator: torch.Generator | None) -> int:
    """Draw a seed; without a generator, from one seeded with 0."""
    chosen = torch.Generator().manual_seed(0) if generator is None else generator
    return int(torch.randint(2**63 - 1, (), generator=chosen, device=chosen.device))


def rounded(density: float) -> int:
    """Return the keep probability nearest to ``density`` in units of 2⁻¹⁶, and not 0."""
    return max(1, round(density * CHANCES))


def keep_by_rank(base: Tensor, source: Tensor, density: float, epsilon: float) -> npt.NDArray[np.uint16]:
    """Return DELLA's keep probabilities: from density − ε for the least |δ| of a row, evenly to density + ε.

    A row is the last dimension. Of equal |δ| the lower index has the higher rank.
    """
    width = base.shape[-1] if base.dim() else 1
    rows, others = base.reshape(-1, width), source.reshape(-1, width)
    ranks = torch.arange(width, device=base.device)
    middle = (width - 1) / 2
    by_rank = (density + epsilon * (middle - ranks) / max(middle, 0.5)).mul_(CHANCES).round_().clamp_(1, CHANCES - 1)
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
    """Return Σ|δₖ| by that of what stays of it, 1 where nothing does."""
    sums, thinning = np.zeros((len(drops), 2)), Thinning(drops)
    for place, base, tuned in group.stretches():
        if not arithmetic(group.device).magnitudes(base, tuned, thinning, place.start, sums):
            group.check(place)
    return [whole / stays if stays else 1.0 for whole, stays in sums.tolist()]
