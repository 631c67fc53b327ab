"""The passes of SCE over whole tensors, compiled: what selects an element, Σ dₖ² of the selected, and their merging.

Python is not come back to before the end of a stretch, for with several threads each time one waits for another.
Formulas, order of summation and rounding are those of ``fusion.vectorised``, which GPUs run: see there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import carray  # type: ignore[import-untyped]
from torch import Tensor

from fusion.compiling import bfloat16s, compiled, float32s, inner
from fusion.rank_kernels import rank
from fusion.stored_kernels import PART, ZERO, places, read_deltas, store

Array = Any  # a tensor for the caller, an array of numpy in here

_LANES = 4  # sums side by side: each addition to one waits for the last


def graded(  # noqa: PLR0917
    base: Tensor, tuned: Sequence[Tensor], by_variance: bool, thresholds: Array, ties: Array, level: Tensor, sums: Array
) -> bool:
    """Write how many cuts take each element, and add its squares at that level; tell whether all is finite."""
    return bool(_graded(places([base, *tuned]), by_variance, thresholds, ties, level, sums))


def combined(  # noqa: PLR0917
    base: Tensor,
    tuned: Sequence[Tensor],
    level: Tensor,
    needed: Array,
    weights: Array,
    average: float,
    out: Sequence[Tensor],
) -> bool:
    """Merge what each cut takes; tell whether all is finite."""
    return bool(_combined(places([base, *tuned]), level, needed, weights, np.float32(average), places(out)))


@compiled
def _graded(  # noqa: PLR0917
    stored: Array, by_variance: bool, thresholds: Array, ties: Array, level: Array, sums: Array
) -> Any:
    start, values, doubt = np.empty(PART, np.float32), np.empty(PART, np.float32), np.zeros(PART, np.float32)
    deltas, counts = np.empty((stored.shape[0] - 1, PART), np.float32), np.empty(PART, np.int32)
    found = np.zeros(_LANES * sums.shape[0], np.float64)
    for first in range(0, level.size, PART):
        into = level[first : first + PART]
        part = values[: into.size]
        read_deltas(stored, first, start[: into.size], deltas, doubt)
        rank(deltas, by_variance, part)
        _grade(part, thresholds, ties, counts, into)
        _add_energies(deltas, into, found, sums)
    return not np.isnan(doubt).any()


@inner
def _grade(values: Array, thresholds: Array, ties: Array, level: Array, out: Array) -> None:
    """Count how many thresholds each value is above."""
    for i in range(values.size):
        level[i] = 0
    for t in range(thresholds.size):
        threshold, tied = thresholds[t], np.int32(0)
        for i in range(values.size):
            level[i] += np.int32(values[i] > threshold)
        if ties[t]:
            for i in range(values.size):
                tied = np.int32(tied + np.int32(values[i] == threshold))
        if tied and tied <= ties[t]:
            for i in range(values.size):
                level[i] += np.int32(values[i] == threshold)
            ties[t] -= tied
        elif tied:
            for i in range(values.size):
                if values[i] == threshold and ties[t]:
                    level[i] += 1
                    ties[t] -= 1
    for i in range(values.size):
        out[i] = level[i]


@inner
def _add_energies(deltas: Array, level: Array, found: Array, sums: Array) -> None:
    """Sum squares by source and level."""
    for k in range(deltas.shape[0]):
        delta = deltas[k]
        for i in range(level.size):
            found[level[i] * _LANES + (i & (_LANES - 1))] += np.float64(delta[i] * delta[i])
        for one in range(found.size):
            sums[one // _LANES, k] += found[one]
            found[one] = 0.0


@compiled
def _combined(  # noqa: PLR0917
    stored: Array, level: Array, needed: Array, weights: Array, average: Any, out: Array
) -> Any:
    start, doubt = np.empty(PART, np.float32), np.zeros(PART, np.float32)
    deltas, stays = np.empty((stored.shape[0] - 1, PART), np.float32), np.empty((stored.shape[0] - 1, PART), np.float32)
    result, divisor = np.empty(PART, np.float32), np.empty(PART, np.float32)
    before, after = np.empty(PART, np.uint16), np.empty(PART, np.uint16)
    alike = np.zeros(needed.size, np.bool_)  # as often in mergekit's form
    for t in range(1, needed.size):
        alike[t] = (weights[t] == weights[t - 1]).all()
    for first in range(0, level.size, PART):
        taken = level[first : first + PART]
        base = start[: taken.size]
        read_deltas(stored, first, base, deltas, doubt)
        _erase(deltas, stays, average < ZERO, divisor[: base.size])
        store(base, before)
        for t in range(needed.size):
            need = needed[t]
            if not alike[t]:
                _add(base, deltas, stays, weights[t], average, divisor, result)
                store(result[: base.size], after)
            if out[t, 1] == 2:
                halves = carray(bfloat16s(out[t, 0] + 2 * first), base.size)
                for i in range(base.size):
                    new, old = after[i], before[i]  # both are read whatever is chosen: so these are vectors
                    halves[i] = new if taken[i] >= need else old
            else:
                whole = carray(float32s(out[t, 0] + 4 * first), base.size)
                for i in range(base.size):
                    merged, kept = result[i], base[i]
                    whole[i] = merged if taken[i] >= need else kept
    return not np.isnan(doubt).any()


@inner
def _erase(deltas: Array, stays: Array, neither: Any, sign: Array) -> None:
    """Make 0 of what disagrees with the elected sign, and tell what stays."""
    size, nothing = sign.size, np.float32(neither)
    for i in range(size):
        sign[i] = ZERO
    for k in range(deltas.shape[0]):
        delta = deltas[k]
        for i in range(size):
            sign[i] += delta[i]
    for i in range(size):  # 1 or -1, and of 0 without an average 0
        at_zero = np.float32(sign[i] == ZERO) * nothing
        sign[i] = np.float32(sign[i] >= ZERO) - np.float32(sign[i] < ZERO) - at_zero
    for k in range(deltas.shape[0]):
        delta, stay = deltas[k], stays[k]
        for i in range(size):
            stay[i] = np.float32(delta[i] * sign[i] > ZERO)
        for i in range(size):
            delta[i] *= stay[i]


@inner
def _add(  # noqa: PLR0917
    base: Array, kept: Array, stays: Array, weights: Array, average: Any, divisor: Array, out: Array
) -> None:
    """Add the weighted deltas that are kept to θ₀, perhaps divided by the weights of what stays."""
    size, keep, weight = base.size, kept[0], weights[0]
    if kept.shape[0] == 1:
        for i in range(size):
            out[i] = ZERO - keep[i] * weight
    else:
        more, other = kept[1], weights[1]
        for i in range(size):
            out[i] = (ZERO - keep[i] * weight) - more[i] * other
    for k in range(2, kept.shape[0]):
        keep, weight = kept[k], weights[k]
        for i in range(size):
            out[i] -= keep[i] * weight
    if average >= ZERO:
        for i in range(size):
            divisor[i] = ZERO
        for k in range(kept.shape[0]):
            weight, stay = weights[k], stays[k]
            for i in range(size):
                divisor[i] += stay[i] * weight
        if average > ZERO:
            for i in range(size):
                out[i] /= max(divisor[i], average)
        else:
            for i in range(size):
                out[i] /= divisor[i] + np.float32(divisor[i] == ZERO)
    for i in range(size):  # with 0 added a -0 is a 0, which leaves a base of -0 as it is
        out[i] = base[i] - (out[i] + ZERO)
