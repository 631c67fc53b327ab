"""The inner loops of dropping at random on a CPU, compiled; the others are in ``fusion.kernels``."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusion.compiling import compiled

Array = Any  # a tensor for the caller, an array of numpy in here

_PART = 2048  # elements, as in ``fusion.kernels``
_CHANCES = np.float32(1 << 16)
_ZERO, _ONE = np.float32(0), np.float32(1)


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
def magnitudes(delta: Array, numbers: Array, keep: Array, dropped: Array) -> tuple[float, float]:
    """Add up what there is, and what stays; tell what does not."""
    whole, rest = 0.0, 0.0
    size, stays = np.empty(_PART, np.float32), np.empty(_PART, np.float32)
    for first in range(0, delta.size, _PART):
        part, number, gone = (
            delta[first : first + _PART],
            numbers[first : first + _PART],
            dropped[first : first + _PART],
        )
        size[:], stays[:] = _ZERO, _ZERO
        if keep.size == 1:
            below = keep[0]
            for i in range(part.size):
                gone[i] = number[i] >= below
        else:
            among = keep[first : first + _PART]
            for i in range(part.size):
                gone[i] = number[i] >= among[i]
        for i in range(part.size):
            size[i] = abs(part[i])
        for i in range(part.size):
            stays[i] = size[i] * (_ONE - np.float32(gone[i]))
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
