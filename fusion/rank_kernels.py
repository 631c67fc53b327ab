"""The passes over whole tensors that rank their elements, compiled: read, subtract, rank and count in one loop.

Python is not come back to before the end of a stretch, for with several threads each time one waits for another.
Formulas and counts are those of ``fusion.vectorised``, which GPUs run: see there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fusion.compiling import compiled, inner
from fusion.stored_kernels import PART, ZERO, places, read_deltas

Array = Any  # a tensor for the caller, an array of numpy in here


def ranked(base: Tensor, tuned: Sequence[Tensor], variance: bool, out: Tensor) -> bool:
    """Write what elements are ranked by; tell whether all is finite."""
    return bool(_ranked(places([base, *tuned]), variance, out))


def spans(  # noqa: PLR0917
    base: Tensor, tuned: Sequence[Tensor], variance: bool, ends: Array, counts: Array, between: Tensor
) -> tuple[bool, int, int]:
    """Count around each span, and keep what lies in one; return whether all is finite, the nonzero and the kept."""
    finite, nonzero, kept = _spans(places([base, *tuned]), variance, ends, counts, between)
    return bool(finite), nonzero, kept


def candidates(  # noqa: PLR0917
    base: Tensor, tuned: Sequence[Tensor], variance: bool, low: float, zeros: int, index: Tensor, values: Tensor
) -> tuple[bool, int, int]:
    """Write where values of at least ``low`` are, and them; return whether all is finite, the nonzero and the found."""
    finite, nonzero, found = _candidates(places([base, *tuned]), variance, np.float32(low), zeros, index, values)
    return bool(finite), nonzero, found


@inner
def rank(deltas: Array, variance: bool, total: Array) -> Any:
    """Write the magnitude of the one delta, or the sum of the squared differences of the pairs; count the nonzero."""
    size = total.size
    if variance:
        for i in range(size):
            total[i] = ZERO
        for k in range(1, deltas.shape[0]):
            one = deltas[k, :size]
            for j in range(k):
                other = deltas[j, :size]
                for i in range(size):
                    difference = one[i] - other[i]
                    total[i] += difference * difference
    else:
        for i in range(size):
            total[i] = abs(deltas[0, i])
    found = np.int32(0)
    for i in range(size):
        found = np.int32(found + np.int32(total[i] != ZERO))  # else it would be of 64 bits, at half the speed
    return found


@compiled
def _ranked(stored: Array, variance: bool, out: Array) -> Any:
    start, doubt = np.empty(PART, np.float32), np.zeros(PART, np.float32)
    deltas = np.empty((stored.shape[0] - 1, PART), np.float32)
    for first in range(0, out.size, PART):
        part = out[first : first + PART]
        read_deltas(stored, first, start[: part.size], deltas, doubt)
        rank(deltas, variance, part)
    return not np.isnan(doubt).any()


@compiled
def _spans(stored: Array, variance: bool, ends: Array, counts: Array, between: Array) -> Any:
    start, values, doubt = np.empty(PART, np.float32), np.empty(PART, np.float32), np.zeros(PART, np.float32)
    deltas = np.empty((stored.shape[0] - 1, PART), np.float32)
    near, inside, strictly = np.empty(PART + 1, np.float32), np.empty(PART, np.int32), np.empty(PART, np.int32)
    nonzero, kept = 0, 0
    for first in range(0, between.size, PART):
        part = values[: min(PART, between.size - first)]
        read_deltas(stored, first, start[: part.size], deltas, doubt)
        nonzero += rank(deltas, variance, part)
        for i in range(part.size):
            inside[i] = 0
        for t in range(ends.shape[0]):
            low, high, above = ends[t, 0], ends[t, 1], np.int32(0)
            for i in range(part.size):
                over = np.int32(part[i] > high)
                above = np.int32(above + over)
                inside[i] |= np.int32(np.int32(part[i] >= low) - over)
            for c in range(3):
                counts[t, c] += above
        some: Any = 0  # without a branch, which could not be foreseen
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
    return not np.isnan(doubt).any(), nonzero, kept


@compiled
def _candidates(  # noqa: PLR0917
    stored: Array, variance: bool, low: Any, zeros: Any, index: Array, values: Array
) -> Any:
    start, total, doubt = np.empty(PART, np.float32), np.empty(PART, np.float32), np.zeros(PART, np.float32)
    deltas, near = np.empty((stored.shape[0] - 1, PART), np.float32), np.empty(PART + 1, np.int32)
    nonzero, found = 0, 0
    for first in range(0, values.size, PART):
        part = total[: min(PART, values.size - first)]
        read_deltas(stored, first, start[: part.size], deltas, doubt)
        nonzero += rank(deltas, variance, part)
        some: Any = 0
        if low > ZERO:
            for i in range(part.size):
                near[some] = i
                some += np.int32(part[i] >= low)
        else:  # of zeros, which may be most of them, only the first
            for i in range(part.size):
                takes = part[i] > ZERO or zeros > 0
                near[some] = i
                some += np.int32(takes)
                zeros -= np.int64(takes and part[i] == ZERO)
        for i in range(some):
            index[found + i] = first + near[i]
            values[found + i] = part[near[i]]
        found += some
    return not np.isnan(doubt).any(), nonzero, found


@compiled
def up_to(values: Array, high: float, out: Array) -> Any:
    """Write the values that are not above a threshold, and return how many they are."""
    most = np.float32(high)
    found: Any = 0
    for i in range(values.size):
        out[np.uint64(found)] = values[i]
        found += np.int64(values[i] <= most)
    return found


@compiled
def largest(values: Array, index: Array, threshold: float, out: Array) -> None:
    """Write the indices of values above the threshold, and of as many at it as there is room for."""
    least = np.float32(threshold)
    above: Any = 0
    for i in range(values.size):
        above += np.int64(values[i] > least)
    found: Any = 0
    tied = out.size - above
    for i in range(values.size):
        if found == out.size:
            return
        at = values[i] == least and tied > 0
        tied -= np.int64(at)
        out[found] = index[i]
        found += np.int64(values[i] > least or at)


@compiled
def gather(stored: Array, index: Array, out: Array) -> None:
    """Copy the numbers at the indices."""
    for i in range(out.size):
        out[i] = stored[np.uint64(index[i])]  # unsigned: else each were looked at for being negative


@compiled
def scatter(values: Array, index: Array, out: Array) -> None:
    """Copy the values to the indices."""
    for i in range(values.size):
        out[np.uint64(index[i])] = values[i]
