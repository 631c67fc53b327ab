"""The inner loops of merging on a CPU, compiled: what torch takes twenty passes over a block for, in one.

A block goes through in parts of a size that the first-level cache holds, so each number comes from memory once; and
Python is not come back to between two operations, for which several threads would wait for one another. Formulas,
order of summation and rounding are those of ``fusion.vectorised``, which GPUs run: see there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion.compiling import compiled, inner
from fusion.drop_kernels import drop, magnitudes

__all__ = [
    "combine",
    "differences",
    "drop",
    "elect",
    "energies",
    "levels",
    "magnitudes",
    "nonzero",
    "spans",
    "variance",
]

Array = Any  # a tensor for the caller, an array of numpy in here

_PART = 2048  # elements: 8 KiB an array, of which a loop here works on four at most

_ZERO, _ONE = np.float32(0), np.float32(1)
_HALF, _LAST, _UP = np.uint32(16), np.uint32(1), np.uint32(0x7FFF)  # to round bits of float32 to those of bfloat16


def differences(base: Tensor, tuned: Sequence[Tensor], values: Tensor) -> bool:
    """Write θ₀ and the δₖ; tell whether all is finite."""
    start, *deltas = values
    if any(tensor.dtype not in (torch.float32, torch.bfloat16) for tensor in (base, *tuned)):  # numpy knows no others
        torch._foreach_copy_([start, *deltas], [base, *tuned])
        base, tuned = start, deltas
    finite = _widen(base, start)
    for source, delta in zip(tuned, deltas, strict=True):
        finite = _subtract(source, start, delta) and finite
    return bool(finite)


@compiled
def _widen(stored: Array, start: Array) -> Any:
    """Copy bfloat16's bits, or float32, into float32; tell whether all is finite."""
    doubt = np.zeros(_PART, np.float32)  # 0 times a number is 0, but of infinities and NaNs
    for first in range(0, start.size, _PART):
        given, into = stored[first : first + _PART], start[first : first + _PART]
        _load(given, into)
        for i in range(into.size):
            doubt[i] += into[i] * _ZERO
    return not np.isnan(doubt).any()


@compiled
def _subtract(stored: Array, start: Array, delta: Array) -> Any:
    """Write a source's numbers less the start; tell whether all is finite."""
    doubt = np.zeros(_PART, np.float32)
    for first in range(0, start.size, _PART):
        begin, into = start[first : first + _PART], delta[first : first + _PART]
        _load(stored[first : first + _PART], into)
        for i in range(into.size):
            into[i] -= begin[i]
            doubt[i] += into[i] * _ZERO
    return not np.isnan(doubt).any()


@compiled
def variance(deltas: Array, out: Array) -> None:
    """Sum the squared differences of the pairs of sources."""
    for first in range(0, out.size, _PART):
        total = out[first : first + _PART]
        for i in range(total.size):
            total[i] = _ZERO
        for k in range(1, deltas.shape[0]):
            one = deltas[k, first : first + _PART]
            for j in range(k):
                other = deltas[j, first : first + _PART]
                for i in range(total.size):
                    difference = one[i] - other[i]
                    total[i] += difference * difference


@compiled
def nonzero(values: Array) -> Any:
    """Count what is not 0."""
    count: Any = 0
    for first in range(0, values.size, _PART):
        part = values[first : first + _PART]
        found = np.int32(0)
        for i in range(part.size):
            found = np.int32(found + np.int32(part[i] != _ZERO))  # else it would be of 64 bits, at half the speed
        count += found
    return count


@compiled
def spans(values: Array, ends: Array, counts: Array, between: Array) -> Any:
    """Count around each span, and keep what lies in one."""
    kept: Any = 0
    near, inside, strictly = np.empty(_PART + 1, np.float32), np.empty(_PART, np.int32), np.empty(_PART, np.int32)
    for first in range(0, values.size, _PART):
        part = values[first : first + _PART]
        for i in range(part.size):
            inside[i] = 0
        for t in range(ends.shape[0]):
            low, high, above = ends[t, 0], ends[t, 1], np.int32(0)
            for i in range(part.size):
                above = np.int32(above + np.int32(part[i] > high))
                inside[i] |= np.int32(part[i] >= low) & np.int32(part[i] <= high)
            for c in range(3):
                counts[t, c] += above
        some = 0  # without a branch, which could not be foreseen
        for i in range(part.size):
            near[some] = part[i]
            some += inside[i]
        for i in range(some):
            strictly[i] = 0
        for t in range(ends.shape[0]):
            low, high = ends[t, 0], ends[t, 1]
            from_high, from_low = np.int32(0), np.int32(0)
            for i in range(some):
                from_high = np.int32(from_high + np.int32(near[i] == high))
                from_low = np.int32(from_low + (np.int32(near[i] >= low) & np.int32(near[i] <= high)))
                strictly[i] |= np.int32(near[i] > low) & np.int32(near[i] < high)
            counts[t, 1] += from_high
            counts[t, 2] += from_low
        for i in range(some):
            if strictly[i]:
                between[kept] = near[i]
                kept += 1
    return kept


@compiled
def levels(values: Array, thresholds: Array, ties: Array, out: Array) -> None:
    """Count how many thresholds each value is above."""
    level = np.empty(_PART, np.int32)
    for first in range(0, values.size, _PART):
        part, into = values[first : first + _PART], out[first : first + _PART]
        for i in range(part.size):
            level[i] = 0
        for t in range(thresholds.size):
            threshold, tied = thresholds[t], np.int32(0)
            for i in range(part.size):
                level[i] += np.int32(part[i] > threshold)
            if ties[t]:
                for i in range(part.size):
                    tied = np.int32(tied + np.int32(part[i] == threshold))
            if tied and tied <= ties[t]:
                for i in range(part.size):
                    level[i] += np.int32(part[i] == threshold)
                ties[t] -= tied
            elif tied:
                for i in range(part.size):
                    if part[i] == threshold and ties[t]:
                        level[i] += 1
                        ties[t] -= 1
        for i in range(part.size):
            into[i] = level[i]


@compiled
def energies(deltas: Array, level: Array, sums: Array) -> None:
    """Sum squares by source and level."""
    lanes = 4  # sums side by side: each addition to one waits for the last
    found = np.zeros(lanes * sums.shape[0], np.float64)
    for first in range(0, level.size, _PART):
        part = level[first : first + _PART]
        for k in range(deltas.shape[0]):
            delta = deltas[k, first : first + _PART]
            for i in range(part.size):
                found[part[i] * lanes + (i & (lanes - 1))] += np.float64(delta[i] * delta[i])
            for one in range(found.size):
                sums[one // lanes, k] += found[one]
                found[one] = 0.0


@inner
def _load(stored: Array, out: Array) -> None:
    """Copy numbers of float32, or of bfloat16 by its bits."""
    if stored.itemsize == 2:
        bits = out.view(np.uint32)
        for i in range(out.size):
            bits[i] = np.uint32(np.uint32(stored[i]) << _HALF)
    else:
        for i in range(out.size):
            out[i] = stored[i]


@inner
def _store(values: Array, out: Array) -> None:
    """Copy the values, rounded to the nearest bfloat16, of ties the even one, if that is what ``out`` holds."""
    if out.itemsize == 2:
        bits = values.view(np.uint32)
        for i in range(values.size):
            odd = np.uint32(np.uint32(bits[i] >> _HALF) & _LAST)
            out[i] = np.uint16(np.uint32(np.uint32(bits[i] + _UP) + odd) >> _HALF)
    else:
        for i in range(values.size):
            out[i] = values[i]


@compiled
def combine(  # noqa: PLR0917
    start: Array,
    deltas: Array,
    level: Array,
    needed: Array,
    weights: Array,
    average: float,
    out: Array,
) -> None:
    """Merge what each cut takes."""
    least, neither = np.float32(average), np.float32(average < 0)
    stays = np.empty((deltas.shape[0], _PART), np.float32)
    kept = np.empty((deltas.shape[0], _PART), np.float32)
    sign, less, divisor = np.empty(_PART, np.float32), np.empty(_PART, np.float32), np.empty(_PART, np.float32)
    before, after = np.empty(_PART, out.dtype), np.empty(_PART, out.dtype)
    alike = np.zeros(needed.size, np.bool_)  # as often in mergekit's form
    for t in range(1, needed.size):
        alike[t] = (weights[t] == weights[t - 1]).all()
    for first in range(0, start.size, _PART):
        base, taken = start[first : first + _PART], level[first : first + _PART]
        size = base.size
        for i in range(size):
            sign[i] = _ZERO
        for k in range(deltas.shape[0]):
            delta = deltas[k, first : first + _PART]
            for i in range(size):
                sign[i] += delta[i]
        for i in range(size):  # 1 or -1, and of 0 without an average 0
            at_zero = np.float32(sign[i] == _ZERO) * neither
            sign[i] = np.float32(sign[i] >= _ZERO) - np.float32(sign[i] < _ZERO) - at_zero
        for k in range(deltas.shape[0]):
            delta, stay, keep = deltas[k, first : first + _PART], stays[k], kept[k]
            for i in range(size):
                stay[i] = np.float32(delta[i] * sign[i] > _ZERO)
            for i in range(size):
                keep[i] = delta[i] * stay[i]
        _store(base, before)
        for t in range(needed.size):
            into, need = out[t, first : first + _PART], needed[t]
            if alike[t]:
                for i in range(size):
                    into[i] = after[i] if taken[i] >= need else before[i]
                continue
            for i in range(size):
                less[i] = _ZERO
            for k in range(deltas.shape[0]):
                weight, keep = weights[t, k], kept[k]
                for i in range(size):
                    less[i] -= keep[i] * weight
            if average >= 0:
                for i in range(size):
                    divisor[i] = _ZERO
                for k in range(deltas.shape[0]):
                    weight, stay = weights[t, k], stays[k]
                    for i in range(size):
                        divisor[i] += stay[i] * weight
                if average > 0:
                    for i in range(size):
                        less[i] /= max(divisor[i], least)
                else:
                    for i in range(size):
                        less[i] /= divisor[i] + np.float32(divisor[i] == _ZERO)
            for i in range(size):  # with 0 added a -0 is a 0, which leaves a base of -0 as it is
                less[i] = base[i] - (less[i] + _ZERO)
            _store(less, after)
            for i in range(size):
                into[i] = after[i] if taken[i] >= need else before[i]


@compiled
def elect(  # noqa: PLR0917
    start: Array, deltas: Array, factors: Array, weights: Array, scale: float, kept: Array, out: Array
) -> Any:
    """Merge what agrees with the elected signs."""
    total, update = np.empty(_PART, np.float32), np.empty(_PART, np.float32)
    sign, divisor = np.empty(_PART, np.float32), np.empty(_PART, np.float32)
    conflict: Any = 0
    by = np.float32(scale)
    for first in range(0, start.size, _PART):
        base, into = start[first : first + _PART], out[first : first + _PART]
        size = base.size
        for i in range(size):
            total[i] = deltas[0, first + i] * factors[0]
        for k in range(1, factors.size):
            delta, factor = deltas[k, first : first + _PART], factors[k]
            for i in range(size):
                total[i] += delta[i] * factor
        for i in range(size):
            sign[i] = np.copysign(_ONE, total[i])
            update[i] = _ZERO
        for k in range(factors.size):
            delta, factor, side = deltas[k, first : first + _PART], abs(factors[k]), np.copysign(_ONE, factors[k])
            agree = np.int32(0)
            for i in range(size):
                aligned = delta[i] * side * sign[i]
                agree = np.int32(agree + np.int32(aligned > _ZERO))
                update[i] += max(aligned, _ZERO) * factor
            kept[k] += agree
        differ = np.int32(0)
        for i in range(size):
            differ = np.int32(differ + np.int32(abs(total[i]) != update[i]))
        conflict += differ
        if weights.size:
            for i in range(size):
                divisor[i] = _ZERO
            for k in range(factors.size):
                delta, weight, side = deltas[k, first : first + _PART], weights[k], np.copysign(_ONE, factors[k])
                for i in range(size):
                    divisor[i] += np.float32(delta[i] * side * sign[i] > _ZERO) * weight
            for i in range(size):
                update[i] /= divisor[i] + np.float32(divisor[i] == _ZERO)
        for i in range(size):
            total[i] = base[i] + (update[i] * by) * sign[i]
        _store(total[:size], into)
    return conflict
