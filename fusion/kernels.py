"""The inner loops of merging on a CPU, compiled: what torch takes twenty passes over a block for, in one.

A block goes through in parts of a size that the first-level cache holds, so each number comes from memory once; and
Python is not come back to between two operations, for which several threads would wait for one another. Formulas,
order of summation and rounding are those of ``fusion.vectorised``, which GPUs run: see there.

Compiled on the first call on a machine, in a second or two, and kept: beside this file, or where that cannot be
written in the user's cache folder (``NUMBA_CACHE_DIR`` chooses another). Tensors must be C-contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numba  # type: ignore[import-untyped]
import numpy as np
from llvmlite.binding import ffi  # type: ignore[import-untyped]
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])
Array = Any  # a tensor for the caller, an array of numpy in here

# vLLM 0.32, started later in this process, looks into the __dict__ of everything in every module; this object of
# llvmlite's takes the name for that of a function of LLVM's, and answers with one. Told so, it answers with a dict.
ffi.lib._fntab.setdefault("__dict__", {})

_PART = 2048  # elements: 8 KiB an array, of which a loop here works on four at most

_CHANCES = np.float32(1 << 16)
_ZERO, _ONE = np.float32(0), np.float32(1)


def compiled(function: F) -> F:
    """Compile a function of tensors, which then lets other threads run; a · b + c is rounded once, as in torch."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        made = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # there is no folder to keep it in
        made = numba.njit(**options)(function)

    @wraps(function)
    def call(*args: object) -> Any:
        return made(*[arg.numpy() if isinstance(arg, Tensor) else arg for arg in args])

    return call  # type: ignore[return-value]


@compiled
def differences(start: Array, values: Array) -> Any:
    """Subtract the start from each row; tell whether all is finite."""
    doubt = np.zeros(_PART, np.float32)  # 0 times a number is 0, but of infinities and NaNs
    for first in range(0, start.size, _PART):
        begin = start[first : first + _PART]
        for i in range(begin.size):
            doubt[i] += begin[i] * _ZERO
        for k in range(values.shape[0]):
            row = values[k, first : first + _PART]
            for i in range(row.size):
                row[i] -= begin[i]
                doubt[i] += row[i] * _ZERO
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
def levels(values: Array, thresholds: Array, ties: Array, out: Array) -> None:
    """Count how many thresholds each value is above."""
    for first in range(0, out.size, _PART):
        part, level = values[first : first + _PART], out[first : first + _PART]
        for i in range(level.size):
            level[i] = 0
        for t in range(thresholds.size):
            threshold = thresholds[t]
            for i in range(level.size):
                level[i] += part[i] > threshold
            if ties[t]:
                for i in range(level.size):
                    if part[i] == threshold and ties[t]:
                        level[i] += 1
                        ties[t] -= 1


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
        for t in range(needed.size):
            into, need = out[t, first : first + _PART], needed[t]
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
                into[i] = base[i] - (less[i] * np.float32(taken[i] >= need) + _ZERO)


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
        for i in range(size):
            update[i] = _ZERO
        for i in range(size):
            divisor[i] = _ZERO
        for k in range(factors.size):
            delta, factor, side = deltas[k, first : first + _PART], abs(factors[k]), np.copysign(_ONE, factors[k])
            agree = np.int32(0)
            for i in range(size):
                agree = np.int32(agree + np.int32(delta[i] * side * sign[i] > _ZERO))
            kept[k] += agree
            for i in range(size):
                update[i] += max(delta[i] * side * sign[i], _ZERO) * factor
            if weights.size:
                weight = weights[k]
                for i in range(size):
                    divisor[i] += np.float32(delta[i] * side * sign[i] > _ZERO) * weight
        differ = np.int32(0)
        for i in range(size):
            differ = np.int32(differ + np.int32(abs(total[i]) != update[i]))
        conflict += differ
        if weights.size:
            for i in range(size):
                update[i] /= divisor[i] + np.float32(divisor[i] == _ZERO)
        for i in range(size):
            into[i] = base[i] + (update[i] * by) * sign[i]
    return conflict


@compiled
def drop(delta: Array, numbers: Array, keep: Array, inverse: bool) -> None:
    """Zero what is dropped."""
    if keep.size == 1 and not inverse:
        below = keep[0]
        for i in range(delta.size):
            delta[i] *= np.float32(numbers[i] < below)
        return
    for i in range(delta.size):
        delta[i] *= np.float32(numbers[i] < keep[i])
    if inverse:
        for i in range(delta.size):
            delta[i] /= np.float32(keep[i]) / _CHANCES


@compiled
def magnitudes(delta: Array, numbers: Array, keep: Array) -> tuple[float, float]:
    """Add up what there is, and what stays."""
    whole, rest = 0.0, 0.0
    size, stays = np.empty(_PART, np.float32), np.empty(_PART, np.float32)
    for first in range(0, delta.size, _PART):
        part, number = delta[first : first + _PART], numbers[first : first + _PART]
        size[:], stays[:] = _ZERO, _ZERO
        for i in range(part.size):
            size[i] = abs(part[i])
        if keep.size == 1:
            below = keep[0]
            for i in range(part.size):
                stays[i] = size[i] * np.float32(number[i] < below)
        else:
            among = keep[first : first + _PART]
            for i in range(part.size):
                stays[i] = size[i] * np.float32(number[i] < among[i])
        half = _PART // 2
        while half:  # pair by pair: exact, and of several at once
            for i in range(half):
                size[i] += size[half + i]
            for i in range(half):
                stays[i] += stays[half + i]
            half //= 2
        whole += size[0]
        rest += stays[0]
    return whole, rest


@compiled
def draw(state: Array, out: Array) -> None:
    """Fill ``out`` with the next numbers of numpy's SFC64, all of uint64; numpy takes twice as long."""
    a, b, c, turn = state[0], state[1], state[2], state[3]
    for i in range(out.size):
        drawn = a + b + turn
        turn += np.uint64(1)
        a = b ^ (b >> np.uint64(11))
        b = c + (c << np.uint64(3))
        c = ((c << np.uint64(24)) | (c >> np.uint64(40))) + drawn
        out[i] = drawn
    state[0], state[1], state[2], state[3] = a, b, c, turn
