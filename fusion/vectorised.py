"""The inner loops of merging in torch's operations, as GPUs run them; ``fusion.kernels`` is the same for CPUs.

All work on a block: ``start`` (n,) is θ₀ and ``deltas`` (sources, n) are the δₖ, in float32. Numbers that are counted
or summed over the blocks are numpy's, on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.thinning import CHANCES, Addition, Thinning


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


def ranked(base: Tensor, tuned: Sequence[Tensor], by_variance: bool, out: Tensor) -> bool:
    """Write what elements are ranked by into ``out`` (n,): their ``variance``, or the magnitude of the one delta.

    ``base`` and ``tuned``, here and below, are stored numbers (n,) of any floating dtype. Returns as ``differences``.
    """
    values = torch.empty(1 + len(tuned), base.numel(), device=base.device)
    finite = differences(base, tuned, values)
    if by_variance:
        variance(values[1:], out)
    else:
        torch.abs(values[1], out=out)
    return finite


def spans(  # noqa: PLR0917
    base: Tensor,
    tuned: Sequence[Tensor],
    by_variance: bool,
    ends: NDArray[np.float32],
    counts: NDArray[np.int64],
    between: Tensor,
) -> tuple[bool, int, int]:
    """Write those ``ranked`` values that lie in any span into ``between`` (n,).

    Returns whether all is finite, how many values are not 0, and how many are written. In a span is what lies
    strictly between its two ``ends`` (spans, 2). Adds to ``counts`` (spans, 3) how many values are above its high end,
    how many are not below that, and how many are not below its low end.
    """
    values = torch.empty(base.numel(), device=base.device)
    finite = ranked(base, tuned, by_variance, values)
    inside = torch.zeros_like(values, dtype=torch.bool)
    for (low, high), into in zip(ends.tolist(), counts, strict=True):
        above, from_high, from_low = values > high, values >= high, values >= low
        into += [int(torch.count_nonzero(mask)) for mask in (above, from_high, from_low)]
        inside |= (values > low) & ~from_high
    found = values[inside]
    between[: found.numel()] = found
    return finite, int(torch.count_nonzero(values)), found.numel()


def candidates(  # noqa: PLR0917
    base: Tensor, tuned: Sequence[Tensor], by_variance: bool, low: float, zeros: int, index: Tensor, values: Tensor
) -> tuple[bool, int, int]:
    """Write where ``ranked`` values ≥ ``low`` are into ``index`` (n,), ascending, and them into ``values`` (n,).

    Of zeros, which may be most of them, only the first ``zeros``. Returns whether all is finite, how many values are
    not 0, and how many are written.
    """
    every = torch.empty_like(values)
    finite = ranked(base, tuned, by_variance, every)
    found = (every >= low if low > 0 else every > 0).nonzero().squeeze(1)
    if low <= 0:
        found = torch.cat([found, (every == 0).nonzero().squeeze(1)[:zeros]]).sort().values
    index[: found.numel()] = found
    values[: found.numel()] = every[found]
    return finite, int(torch.count_nonzero(every)), found.numel()


def up_to(values: Tensor, high: float, out: Tensor) -> int:
    """Write the ``values`` (n,) that are not above ``high`` into ``out`` (n,), and return how many they are."""
    found = values[values <= high]
    out[: found.numel()] = found
    return found.numel()


def largest(values: Tensor, index: Tensor, threshold: float, out: Tensor) -> None:
    """Write into ``out`` the ``index`` (n,) of ``values`` (n,) above the threshold, then of the first at it; ascending.

    As many as there is room for, which is at least how many are above.
    """
    chosen, ties = values > threshold, (values == threshold).nonzero().squeeze(1)
    chosen[ties[: out.numel() - int(chosen.sum())]] = True
    out.copy_(index[chosen])


def gather(stored: Tensor, index: Tensor, out: Tensor) -> None:
    """Write the numbers of ``stored`` at ``index`` (n,) into ``out`` (n,)."""
    torch.index_select(stored, 0, index, out=out)


def scatter(values: Tensor, index: Tensor, out: Tensor) -> None:
    """Write the ``values`` (n,) into ``out`` at ``index`` (n,)."""
    out.index_copy_(0, index.long(), values)


def graded(  # noqa: PLR0917
    base: Tensor,
    tuned: Sequence[Tensor],
    by_variance: bool,
    thresholds: NDArray[np.float32],
    ties: NDArray[np.int64],
    level: Tensor,
    sums: NDArray[np.float64],
) -> bool:
    """Write how many cuts take each element into ``level`` (n,), and add its δₖ² to ``sums`` (levels, sources) there.

    Each cut takes what is ``ranked`` above its threshold, and of what equals it the next ``ties``, which are counted
    down. Sums are in float64, so that it does not matter to η with what else these elements are summed. Returns as
    ``differences``.
    """
    stored = torch.empty(1 + len(tuned), base.numel(), device=base.device)
    finite, deltas, values = differences(base, tuned, stored), stored[1:], torch.empty_like(stored[0])
    if by_variance:
        variance(deltas, values)
    else:
        torch.abs(deltas[0], out=values)
    level.zero_()
    for t, threshold in enumerate(thresholds.tolist()):
        level.add_(values > threshold)
        if ties[t]:
            tied = (values == threshold).nonzero().squeeze(1)[: int(ties[t])]
            level[tied] += 1
            ties[t] -= tied.numel()
    for k, delta in enumerate(deltas):
        square = delta * delta
        for at in range(len(sums)):
            sums[at, k] += float((square * (level == at)).sum(dtype=torch.float64))
    return finite


def combined(  # noqa: PLR0917
    base: Tensor,
    tuned: Sequence[Tensor],
    level: Tensor,
    needed: NDArray[np.uint8],
    weights: NDArray[np.float32],
    average: float,
    out: Sequence[Tensor],
) -> bool:
    """Write θ₀ + Σₖ ηₖ dₖ′ of each cut into its ``out`` (n,), perhaps divided by the weights of what stays.

    They are of float32, or of bfloat16, to which is then rounded. A cut takes the elements whose ``level`` (n,) is
    ``needed`` (cuts,) at least, and its η are ``weights`` (cuts, sources). Erased is what disagrees with the sign of
    Σₖ δₖ. That of a sum of 0 is positive, and the divisor at least ``average``, or 1 where both are 0; an ``average``
    below 0 divides by nothing, and has a 0 agree with nothing. Returns as ``differences``.
    """
    stored = torch.empty(1 + len(tuned), base.numel(), device=base.device)
    finite, start, deltas = differences(base, tuned, stored), stored[0], stored[1:]
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
    return finite


def mix(  # noqa: PLR0917
    base: Tensor,
    tuned: Sequence[Tensor],
    thinning: Thinning,
    first: int,
    how: Addition,
    kept: NDArray[np.int64],
    out: Tensor,
) -> tuple[bool, int]:
    """Write θ₀ + Σₖ fₖ dₖ of the stretch from element ``first`` on into ``out`` (n,), dₖ being what is left of δₖ.

    ``out`` is of float32, or of bfloat16, to which is then rounded. f are the ``factors``. With ``elect`` it is
    θ₀ + λ · Σₖ∈A fₖ dₖ; A holds what agrees with the whole sum's sign, and the sum is divided by the ``divisors`` of
    what is in A, if there are any: by 1 where that is 0. A sum of 0 counts as positive. Counts in ``kept`` (sources,)
    the elements to which each source adds. Returns whether all is finite, and at how many elements signs differ.
    """
    values = torch.empty(1 + len(tuned), base.numel(), device=base.device)
    finite = differences(base, tuned, values)
    start, deltas = values[0], values[1:]
    for k, delta in enumerate(deltas):
        _thin(delta, thinning, k, first)
    if how.elect:
        return finite, _elect(start, deltas, how.factors, how.divisors, how.scale, kept, out)
    for k, delta in enumerate(deltas):
        kept[k] += int(torch.count_nonzero(delta))
    total = deltas[0].mul_(float(how.factors[0]))
    for delta, factor in zip(deltas[1:], how.factors[1:].tolist(), strict=True):
        total.add_(delta, alpha=factor)
    torch.add(start, total, out=out)
    return finite, 0


def magnitudes(
    base: Tensor, tuned: Sequence[Tensor], thinning: Thinning, first: int, sums: NDArray[np.float64]
) -> bool:
    """Add to ``sums`` (sources, 2) Σ|δ| of each source that drops, and that of what stays; as ``differences``."""
    values = torch.empty(1 + len(tuned), base.numel(), device=base.device)
    finite = differences(base, tuned, values)
    for k, delta in enumerate(values[1:]):
        if thinning.drops[k]:
            size = delta.abs_()
            sums[k, 0] += float(size.sum())
            numbers, keep = _chances(thinning, k, first, size.numel())
            sums[k, 1] += float(size.mul_(torch.from_numpy(numbers < keep).to(size)).sum())
    return finite


def weighted(tuned: Sequence[Tensor], weights: NDArray[np.float32], out: Tensor) -> bool:
    """Write Σₖ wₖ θₖ into ``out`` (n,), of float32 or of bfloat16; False says that not all may be finite."""
    total = tuned[0].float() * float(weights[0])
    for source, weight in zip(tuned[1:], weights[1:].tolist(), strict=True):
        total.add_(source.float(), alpha=weight)
    out.copy_(total)
    return bool(total.sum().isfinite())  # a NaN or infinity stays one, times 0 as well


def _thin(delta: Tensor, thinning: Thinning, k: int, first: int) -> None:
    """Zero what the source loses of its delta."""
    if thinning.thresholds[k, 0] < math.inf:
        outliers = delta.clone()
        _trim(outliers, float(thinning.thresholds[k, 0]), thinning.ties[k, :1])
        _trim(delta, float(thinning.thresholds[k, 1]), thinning.ties[k, 1:])
        delta.sub_(outliers)
    elif thinning.thresholds[k, 1] > -math.inf:
        _trim(delta, float(thinning.thresholds[k, 1]), thinning.ties[k, 1:])
    if thinning.drops[k]:
        numbers, keep = _chances(thinning, k, first, delta.numel())
        delta.mul_(torch.from_numpy(numbers < keep).to(delta))
        if thinning.inverse[k]:
            delta.div_(torch.from_numpy(np.divide(keep, CHANCES, dtype=np.float32)).to(delta))


def _trim(delta: Tensor, threshold: float, ties: NDArray[np.int64]) -> None:
    """Zero what is not above the threshold, but of what equals it the next ``ties`` (1,), which are counted down."""
    tied = (delta.abs() == threshold).nonzero().squeeze(1) if ties[0] else delta.new_empty(0, dtype=torch.int64)
    stays = tied[: int(ties[0])]
    values = delta[stays]
    torch.hardshrink(delta, threshold, out=delta)  # a third of the time of a mask and a product
    delta[stays] = values
    ties[0] -= stays.numel()


def _chances(
    thinning: Thinning, k: int, first: int, size: int
) -> tuple[NDArray[np.uint16], NDArray[np.uint16] | np.uint16]:
    """Return the next random numbers, and the keep probabilities that they must lie below."""
    from fusion.mix_kernels import draw

    drawn = np.empty(-(-size // 4), np.uint64)
    draw(thinning.states[k], drawn)
    own = thinning.own[k]
    return drawn.view(np.uint16)[:size], thinning.keep[k] if own is None else own[first : first + size]


def _elect(  # noqa: PLR0917
    start: Tensor,
    deltas: Tensor,
    factors: NDArray[np.float32],
    weights: NDArray[np.float32],
    scale: float,
    kept: NDArray[np.int64],
    out: Tensor,
) -> int:
    """Write the elected sum into ``out`` (n,), count in ``kept``, and return at how many elements signs differ."""
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
