"""The inner loops of merging in torch's operations, as GPUs run them; ``fusion.kernels`` is the same for CPUs.

All work on a block: ``start`` (n,) is θ₀ and ``deltas`` (sources, n) are the δₖ, in float32. Numbers that are counted
or summed over the blocks are numpy's, on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def differences(base: Tensor, tuned: Sequence[Tensor], values: Tensor) -> bool:
    """Write θ₀ and the δₖ = θₖ − θ₀ into ``values`` (1 + sources, n), from numbers (n,) of any floating dtype.

    False says that not all numbers may be finite. A NaN or infinity in any element shows in the sum; a sum may
    overflow without one.
    """
    torch._foreach_copy_(list(values), [base, *tuned], non_blocking=True)
    values[1:].sub_(values[0])
    return bool(values.sum().isfinite())


def variance(deltas: Tensor, out: Tensor) -> None:
    """Write n² times the population variance across the n sources into ``out`` (n,): Σ (δₖ − δⱼ)² over the pairs.

    It is 0 exactly where all deltas are equal. Sums of whole blocks: ``torch.var`` over a stacked dimension of size 3
    takes ten times as long on a CPU.
    """
    out.zero_()
    difference = torch.empty_like(out)
    for k, delta in enumerate(deltas):
        for other in deltas[:k]:
            torch.sub(delta, other, out=difference)
            out.addcmul_(difference, difference)


def nonzero(values: Tensor) -> int:
    """Return how many of the ``values`` (n,) are not 0."""
    return int(torch.count_nonzero(values))


def spans(values: Tensor, ends: NDArray[np.float32], counts: NDArray[np.int64], between: Tensor) -> int:
    """Write those of the ``values`` (n,) that lie in any span into ``between`` (n,), and return how many that are.

    In a span is what lies strictly between its two ``ends`` (spans, 2). Adds to ``counts`` (spans, 3) how many values
    are above its high end, how many are not below that, and how many are not below its low end.
    """
    inside = torch.zeros_like(values, dtype=torch.bool)
    for (low, high), into in zip(ends.tolist(), counts, strict=True):
        above, from_high, from_low = values > high, values >= high, values >= low
        into += [int(torch.count_nonzero(mask)) for mask in (above, from_high, from_low)]
        inside |= (values > low) & ~from_high
    found = values[inside]
    between[: found.numel()] = found
    return found.numel()


def levels(values: Tensor, thresholds: NDArray[np.float32], ties: NDArray[np.int64], out: Tensor) -> None:
    """Write into ``out`` (n,), of whole numbers, how many cuts take each of the ``values`` (n,).

    Each takes what is above its threshold, and of what equals it the next ``ties``, which are counted down.
    """
    out.zero_()
    for t, threshold in enumerate(thresholds.tolist()):
        out.add_(values > threshold)
        if ties[t]:
            tied = (values == threshold).nonzero().squeeze(1)[: int(ties[t])]
            out[tied] += 1
            ties[t] -= tied.numel()


def energies(deltas: Tensor, level: Tensor, sums: NDArray[np.float64]) -> None:
    """Add each δₖ² to ``sums`` (levels, sources) at its element's level.

    In float64 it does not matter to η with what else these elements are summed.
    """
    for k, delta in enumerate(deltas):
        square = delta * delta
        for at in range(len(sums)):
            sums[at, k] += float((square * (level == at)).sum(dtype=torch.float64))


def combine(  # noqa: PLR0917
    start: Tensor,
    deltas: Tensor,
    level: Tensor,
    needed: NDArray[np.uint8],
    weights: NDArray[np.float32],
    average: float,
    out: Tensor,
) -> None:
    """Write θ₀ + Σₖ ηₖ dₖ′ of each cut into ``out`` (cuts, n), perhaps divided by the weights of what stays.

    ``out`` is of float32, or of bfloat16, to which is then rounded. A cut takes the elements whose ``level`` (n,) is
    ``needed`` (cuts,) at least, and its η are ``weights`` (cuts, sources). Erased is what disagrees with the sign of
    Σₖ δₖ. That of a sum of 0 is positive, and the divisor at least ``average``, or 1 where both are 0; an ``average``
    below 0 divides by nothing, and has a 0 agree with nothing.
    """
    total = deltas[0].clone()
    for delta in deltas[1:]:
        total.add_(delta)
    if average >= 0:
        total.ge_(0).mul_(2).sub_(1)
    # Of signs: a product of two small numbers would underflow.
    stays = [torch.gt(delta.sign().mul_(total), 0).to(delta) for delta in deltas]
    kept = [delta * stay for delta, stay in zip(deltas, stays, strict=True)]
    for into, need, eta in zip(out, needed.tolist(), weights.tolist(), strict=True):
        less, divisor = torch.zeros_like(start), torch.zeros_like(start)
        for keep, stay, weight in zip(kept, stays, eta, strict=True):
            less.add_(keep, alpha=-weight)
            divisor.add_(stay, alpha=weight)
        if average > 0:
            less.div_(divisor.clamp_(min=average))
        elif average == 0:
            less.div_(divisor.masked_fill_(divisor == 0, 1.0))
        # The sum with 0 makes -0 a 0, which leaves a base of -0 as it is.
        torch.sub(start, less.mul_(level >= need).add_(0.0), out=into)


def elect(  # noqa: PLR0917
    start: Tensor,
    deltas: Tensor,
    factors: NDArray[np.float32],
    weights: NDArray[np.float32],
    scale: float,
    kept: NDArray[np.int64],
    out: Tensor,
) -> int:
    """Write θ₀ + λ · Σₖ∈A fₖ δₖ into ``out`` (n,); A holds what agrees with the whole sum's sign.

    ``out`` may be ``start``, or of bfloat16, to which is then rounded.
    f are the ``factors``, and the sum is divided by the ``weights`` of what is in A, unless there are no weights: by 1
    where that is 0. A sum of 0 counts as positive. Counts in ``kept`` (sources,) the elements to which each source
    adds, and returns at how many signs differ.
    """
    total, update, divisor = deltas[0] * float(factors[0]), torch.zeros_like(start), torch.zeros_like(start)
    for delta, factor in zip(deltas[1:], factors[1:].tolist(), strict=True):
        total.add_(delta, alpha=factor)
    # ±1; the sum is -0 only where nothing is left to elect from, since x - x is +0
    elected = torch.copysign(torch.ones_like(total), total)
    for k, (delta, factor) in enumerate(zip(deltas, factors.tolist(), strict=True)):
        # Above 0 where it agrees, and below where it does not.
        aligned = delta * elected * math.copysign(1.0, factor)
        update.add_(aligned.clamp(min=0.0), alpha=abs(factor))
        agrees = aligned > 0
        kept[k] += int(torch.count_nonzero(agrees))
        if weights.size:
            divisor.add_(agrees, alpha=float(weights[k]))
    # Without a conflict both are the same sum, rounded alike. A delta that rounding swallows is no conflict.
    conflict = int(torch.count_nonzero(total.abs_() != update))
    if weights.size:
        update.div_(divisor.masked_fill_(divisor == 0, 1.0))
    torch.addcmul(start, update, elected, value=scale, out=out)
    return conflict


def drop(delta: Tensor, numbers: NDArray[np.unsignedinteger[Any]], keep: NDArray[np.uint16], inverse: bool) -> None:
    """Zero what is dropped of one source's ``delta`` (n,): where the ``numbers`` (n,) are not below ``keep``.

    ``keep`` (1,) or (n,) are probabilities in units of 2⁻¹⁶; ``inverse`` divides by each element's own what stays.
    """
    delta.mul_(torch.from_numpy(numbers < keep).to(delta))
    if inverse:
        delta.div_(torch.from_numpy(np.divide(keep, 1 << 16, dtype=np.float32)).to(delta))


def magnitudes(
    delta: Tensor, numbers: NDArray[np.uint16], keep: NDArray[np.uint16], dropped: NDArray[np.uint8]
) -> tuple[float, float]:
    """Return Σ|δ|, and that of what stays after ``drop``; write 1 into ``dropped`` (n,) for what does not, else 0."""
    np.greater_equal(numbers, keep, out=dropped.view(np.bool_))
    size = delta.abs()
    whole = float(size.sum())
    return whole, float(size.mul_(1 - torch.from_numpy(dropped).to(delta)).sum())
