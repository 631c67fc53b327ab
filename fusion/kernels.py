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

from fusion.compiling import compiled
from fusion.mix_kernels import magnitudes, mix, weighted
from fusion.rank_kernels import candidates, gather, largest, ranked, scatter, spans
from fusion.stored_kernels import PART, ZERO, places, read_deltas, store

__all__ = [
    "candidates",
    "combine",
    "differences",
    "energies",
    "gather",
    "largest",
    "levels",
    "magnitudes",
    "mix",
    "ranked",
    "scatter",
    "spans",
    "variance",
    "weighted",
]

Array = Any  # a tensor for the caller, an array of numpy in here


def differences(base: Tensor, tuned: Sequence[Tensor], values: Tensor) -> bool:
    """Write θ₀ and the δₖ; tell whether all is finite."""
    known = [x if x.dtype in (torch.float32, torch.bfloat16) else x.float() for x in (base, *tuned)]
    return bool(_differences(places(known), values))


@compiled
def _differences(stored: Array, values: Array) -> Any:
    doubt, size = np.zeros(PART, np.float32), values.shape[1]
    for first in range(0, size, PART):
        last = min(first + PART, size)
        read_deltas(stored, first, values[0, first:last], values[1:, first:last], doubt)
    return not np.isnan(doubt).any()


@compiled
def variance(deltas: Array, out: Array) -> None:
    """Sum the squared differences of the pairs of sources."""
    for first in range(0, out.size, PART):
        total = out[first : first + PART]
        for i in range(total.size):
            total[i] = ZERO
        for k in range(1, deltas.shape[0]):
            one = deltas[k, first : first + PART]
            for j in range(k):
                other = deltas[j, first : first + PART]
                for i in range(total.size):
                    difference = one[i] - other[i]
                    total[i] += difference * difference


@compiled
def levels(values: Array, thresholds: Array, ties: Array, out: Array) -> None:
    """Count how many thresholds each value is above."""
    level = np.empty(PART, np.int32)
    for first in range(0, values.size, PART):
        part, into = values[first : first + PART], out[first : first + PART]
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
    for first in range(0, level.size, PART):
        part = level[first : first + PART]
        for k in range(deltas.shape[0]):
            delta = deltas[k, first : first + PART]
            for i in range(part.size):
                found[part[i] * lanes + (i & (lanes - 1))] += np.float64(delta[i] * delta[i])
            for one in range(found.size):
                sums[one // lanes, k] += found[one]
                found[one] = 0.0


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
    stays = np.empty((deltas.shape[0], PART), np.float32)
    kept = np.empty((deltas.shape[0], PART), np.float32)
    sign, less, divisor = np.empty(PART, np.float32), np.empty(PART, np.float32), np.empty(PART, np.float32)
    before, after = np.empty(PART, out.dtype), np.empty(PART, out.dtype)
    alike = np.zeros(needed.size, np.bool_)  # as often in mergekit's form
    for t in range(1, needed.size):
        alike[t] = (weights[t] == weights[t - 1]).all()
    for first in range(0, start.size, PART):
        base, taken = start[first : first + PART], level[first : first + PART]
        size = base.size
        for i in range(size):
            sign[i] = ZERO
        for k in range(deltas.shape[0]):
            delta = deltas[k, first : first + PART]
            for i in range(size):
                sign[i] += delta[i]
        for i in range(size):  # 1 or -1, and of 0 without an average 0
            at_zero = np.float32(sign[i] == ZERO) * neither
            sign[i] = np.float32(sign[i] >= ZERO) - np.float32(sign[i] < ZERO) - at_zero
        for k in range(deltas.shape[0]):
            delta, stay, keep = deltas[k, first : first + PART], stays[k], kept[k]
            for i in range(size):
                stay[i] = np.float32(delta[i] * sign[i] > ZERO)
            for i in range(size):
                keep[i] = delta[i] * stay[i]
        store(base, before)
        for t in range(needed.size):
            into, need = out[t, first : first + PART], needed[t]
            if alike[t]:
                for i in range(size):
                    into[i] = after[i] if taken[i] >= need else before[i]
                continue
            for i in range(size):
                less[i] = ZERO
            for k in range(deltas.shape[0]):
                weight, keep = weights[t, k], kept[k]
                for i in range(size):
                    less[i] -= keep[i] * weight
            if average >= 0:
                for i in range(size):
                    divisor[i] = ZERO
                for k in range(deltas.shape[0]):
                    weight, stay = weights[t, k], stays[k]
                    for i in range(size):
                        divisor[i] += stay[i] * weight
                if average > 0:
                    for i in range(size):
                        less[i] /= max(divisor[i], least)
                else:
                    for i in range(size):
                        less[i] /= divisor[i] + np.float32(divisor[i] == ZERO)
            for i in range(size):  # with 0 added a -0 is a 0, which leaves a base of -0 as it is
                less[i] = base[i] - (less[i] + ZERO)
            store(less, after)
            for i in range(size):
                into[i] = after[i] if taken[i] >= need else before[i]
