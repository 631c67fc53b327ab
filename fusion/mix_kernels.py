"""The passes over whole tensors that thin deltas out and add them up, compiled: read, thin, mix and round in one loop.

Python is not come back to before the end of a stretch, for with several threads each time one waits for another.
Formulas, order of summation and rounding are those of ``fusion.vectorised``, which GPUs run: see there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import carray  # type: ignore[import-untyped]
from torch import Tensor

from fusion.compiling import bfloat16s, compiled, inner
from fusion.stored_kernels import ONE, PART, ZERO, places, read, read_deltas, store
from fusion.thinning import CHANCES, Addition, Thinning

Array = Any  # a tensor for the caller, an array of numpy in here

_CHANCES = np.float32(CHANCES)
_PER_DRAW = 4  # 16-bit numbers in one that is drawn


def mix(  # noqa: PLR0917
    base: Tensor, tuned: Sequence[Tensor], thinning: Thinning, first: int, how: Addition, kept: Array, out: Tensor
) -> tuple[bool, int]:
    """Merge what is left of the deltas; return whether all is finite, and at how many elements signs differ."""
    finite, conflict = _mix(places([base, *tuned]), thinning.arrays(first), how, kept, out)
    return bool(finite), conflict


def magnitudes(base: Tensor, tuned: Sequence[Tensor], thinning: Thinning, first: int, sums: Array) -> bool:
    """Add up what there is of each source, and what stays of it; tell whether all is finite."""
    return bool(_magnitudes(places([base, *tuned]), thinning.arrays(first), sums, base.numel()))


def weighted(tuned: Sequence[Tensor], weights: Array, out: Tensor) -> bool:
    """Add up weighted tensors; tell whether all is finite."""
    return bool(_weighted(places(tuned), weights, out))


@inner
def _drawn(state: Array, out: Array) -> None:
    a, b, c, turn = state[0], state[1], state[2], state[3]
    for i in range(out.size):
        drawn = a + b + turn
        turn += np.uint64(1)
        a = b ^ (b >> np.uint64(11))
        b = c + (c << np.uint64(3))
        c = ((c << np.uint64(24)) | (c >> np.uint64(40))) + drawn
        out[i] = drawn
    state[0], state[1], state[2], state[3] = a, b, c, turn


@compiled
def draw(state: Array, out: Array) -> None:
    """Fill ``out`` with the next numbers of numpy's SFC64, all of uint64; numpy takes twice as long."""
    _drawn(state, out)


@inner
def _numbers(state: Array, size: int, drawn: Array) -> Array:
    """Draw the next 16-bit numbers, one an element."""
    _drawn(state, drawn[: (size + _PER_DRAW - 1) // _PER_DRAW])
    return drawn.view(np.uint16)


@inner
def _trim(delta: Array, threshold: Any, ties: Array, end: int) -> None:
    """Zero what is not above the threshold, but of what equals it the next ``ties``, which are counted down."""
    if ties[end] == 0:
        for i in range(delta.size):
            delta[i] = delta[i] if abs(delta[i]) > threshold else ZERO
        return
    tied = np.int32(0)
    for i in range(delta.size):
        tied = np.int32(tied + np.int32(abs(delta[i]) == threshold))
    if tied <= ties[end]:
        for i in range(delta.size):
            delta[i] = delta[i] if abs(delta[i]) >= threshold else ZERO
        ties[end] -= tied
        return
    for i in range(delta.size):
        size = abs(delta[i])
        if size == threshold and ties[end] > 0:
            ties[end] -= 1
        elif size <= threshold:
            delta[i] = ZERO


@inner
def _drop(delta: Array, numbers: Array, below: Any, each: Array, inverse: bool) -> None:
    """Multiply with 0 what is dropped, by one keep probability or by each element's own."""
    if each.size == 0:
        for i in range(delta.size):
            delta[i] *= np.float32(numbers[i] < below)
        return
    for i in range(delta.size):
        delta[i] *= np.float32(numbers[i] < each[i])
    if inverse:
        for i in range(delta.size):
            delta[i] /= np.float32(each[i]) / _CHANCES


@inner
def _thin(thin: Any, k: int, first: int, delta: Array, other: Array, drawn: Array) -> None:  # noqa: PLR0917
    """Leave of a part of a source's delta what stays; ``other`` is room for as much."""
    narrow, wide = thin.thresholds[k, 0], thin.thresholds[k, 1]
    if narrow < np.inf:
        outliers = other[: delta.size]
        for i in range(delta.size):
            outliers[i] = delta[i]
        _trim(outliers, narrow, thin.ties[k], 0)
        _trim(delta, wide, thin.ties[k], 1)
        for i in range(delta.size):
            delta[i] -= outliers[i]
    elif wide > -np.inf:
        _trim(delta, wide, thin.ties[k], 1)
    if thin.drops[k]:
        numbers = _numbers(thin.states[k], delta.size, drawn)
        each = carray(bfloat16s(thin.each[k] + 2 * first), delta.size if thin.each[k] else 0)
        _drop(delta, numbers, thin.keep[k], each, thin.inverse[k])


@inner
def _add(start: Array, deltas: Array, factors: Array, kept: Array, total: Array) -> None:
    """Leave θ₀ + Σₖ fₖ δₖ in ``total``; count what is not 0."""
    size = start.size
    for k in range(factors.size):
        some = np.int32(0)
        for i in range(size):
            some = np.int32(some + np.int32(deltas[k, i] != ZERO))
        kept[k] += some
    for i in range(size):
        total[i] = deltas[0, i] * factors[0]
    for k in range(1, factors.size):
        delta, factor = deltas[k, :size], factors[k]
        for i in range(size):
            total[i] += delta[i] * factor
    for i in range(size):
        total[i] = start[i] + total[i]


@inner
def _elect(start: Array, deltas: Array, how: Any, kept: Array, room: Array) -> Any:
    """Leave what agrees with the elected signs, added to θ₀, in the first of four rooms; count the conflicts."""
    size, factors, divisors, by = start.size, how.factors, how.divisors, np.float32(how.scale)
    total, update, sign, divisor = room[0, :size], room[1, :size], room[2, :size], room[3, :size]
    for i in range(size):
        total[i] = deltas[0, i] * factors[0]
    for k in range(1, factors.size):
        delta, factor = deltas[k, :size], factors[k]
        for i in range(size):
            total[i] += delta[i] * factor
    for i in range(size):
        sign[i] = np.copysign(ONE, total[i])
        update[i] = ZERO
    for k in range(factors.size):
        delta, factor, side = deltas[k, :size], abs(factors[k]), np.copysign(ONE, factors[k])
        agree = np.int32(0)
        for i in range(size):
            aligned = delta[i] * side * sign[i]
            agree = np.int32(agree + np.int32(aligned > ZERO))
            update[i] += max(aligned, ZERO) * factor
        kept[k] += agree
    differ = np.int32(0)
    for i in range(size):
        differ = np.int32(differ + np.int32(abs(total[i]) != update[i]))
    if divisors.size:
        for i in range(size):
            divisor[i] = ZERO
        for k in range(factors.size):
            delta, weight, side = deltas[k, :size], divisors[k], np.copysign(ONE, factors[k])
            for i in range(size):
                divisor[i] += np.float32(delta[i] * side * sign[i] > ZERO) * weight
        for i in range(size):
            update[i] /= divisor[i] + np.float32(divisor[i] == ZERO)
    for i in range(size):
        total[i] = start[i] + (update[i] * by) * sign[i]
    return differ


@compiled
def _mix(stored: Array, thin: Any, how: Any, kept: Array, out: Array) -> Any:
    begin, doubt = np.empty(PART, np.float32), np.zeros(PART, np.float32)
    deltas, room = np.empty((stored.shape[0] - 1, PART), np.float32), np.empty((4, PART), np.float32)
    drawn, conflict = np.empty(PART // _PER_DRAW, np.uint64), 0
    for first in range(0, out.size, PART):
        into = out[first : first + PART]
        start = begin[: into.size]
        read_deltas(stored, first, start, deltas, doubt)
        for k in range(deltas.shape[0]):
            _thin(thin, k, first, deltas[k, : start.size], room[0], drawn)
        if how.elect:
            conflict += _elect(start, deltas, how, kept, room)
        else:
            _add(start, deltas, how.factors, kept, room[0, : start.size])
        store(room[0, : start.size], into)
    return not np.isnan(doubt).any(), conflict


@compiled
def _magnitudes(stored: Array, thin: Any, sums: Array, numel: int) -> Any:
    begin, doubt = np.empty(PART, np.float32), np.zeros(PART, np.float32)
    deltas, drawn = np.empty((stored.shape[0] - 1, PART), np.float32), np.empty(PART // _PER_DRAW, np.uint64)
    size, stays = np.empty(PART, np.float32), np.empty(PART, np.float32)
    for first in range(0, numel, PART):
        start = begin[: min(PART, numel - first)]
        read_deltas(stored, first, start, deltas, doubt)
        for k in range(deltas.shape[0]):
            if not thin.drops[k]:
                continue
            size[:] = ZERO
            for i in range(start.size):
                size[i] = abs(deltas[k, i])
            stays[:] = size
            numbers = _numbers(thin.states[k], start.size, drawn)
            each = carray(bfloat16s(thin.each[k] + 2 * first), start.size if thin.each[k] else 0)
            _drop(stays[: start.size], numbers, thin.keep[k], each, False)
            half = PART // 2
            while half:  # pair by pair: exact, and of several at once
                for i in range(half):
                    size[i] += size[half + i]
                for i in range(half):
                    stays[i] += stays[half + i]
                half //= 2
            sums[k, 0] += size[0]
            sums[k, 1] += stays[0]
    return not np.isnan(doubt).any()


@compiled
def _weighted(stored: Array, weights: Array, out: Array) -> Any:
    doubt, value, total = np.zeros(PART, np.float32), np.empty(PART, np.float32), np.empty(PART, np.float32)
    for first in range(0, out.size, PART):
        into = out[first : first + PART]
        for k in range(weights.size):
            part, weight = value[: into.size], weights[k]
            read(stored[k], first, part, doubt)
            if k == 0:
                for i in range(part.size):
                    total[i] = part[i] * weight
            else:
                for i in range(part.size):
                    total[i] += part[i] * weight
        store(total[: into.size], into)
    return not np.isnan(doubt).any()
