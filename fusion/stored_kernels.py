"""What the compiled passes of merging share: numbers of several tensors read from where they are stored.

Tensors come as addresses and as the bytes of an element, 4 of float32 and 2 of bfloat16, so that a pass is compiled
once for any number and mixture of them. They are read in parts that the first-level cache holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import carray  # type: ignore[import-untyped]
from torch import Tensor

from fusion.compiling import bfloat16s, float32s, inner

Array = Any  # an array of numpy

PART = 2048  # elements: 8 KiB an array, of which a loop works on four at most
ZERO, ONE = np.float32(0), np.float32(1)
_HALF, _LAST, _UP = np.uint32(16), np.uint32(1), np.uint32(0x7FFF)  # to round bits of float32 to those of bfloat16


def places(tensors: Sequence[Tensor]) -> Array:
    """Return address and bytes an element of each tensor, which must outlive the call they are for."""
    for tensor in tensors:
        assert tensor.is_contiguous() and tensor.device.type == "cpu"
        assert tensor.dtype in (torch.float32, torch.bfloat16)
    return np.array([(tensor.data_ptr(), tensor.element_size()) for tensor in tensors], np.int64)


@inner
def read(place: Array, first: int, out: Array, doubt: Array) -> None:
    """Copy stored numbers from ``first`` on into float32; ``doubt`` becomes NaN where one is not finite."""
    if place[1] == 2:
        bits, halves = out.view(np.uint32), carray(bfloat16s(place[0] + 2 * first), out.size)
        for i in range(out.size):
            bits[i] = np.uint32(np.uint32(halves[i]) << _HALF)
            doubt[i] += out[i] * ZERO  # which is 0, but of infinities and NaNs
    else:
        whole = carray(float32s(place[0] + 4 * first), out.size)
        for i in range(out.size):
            out[i] = whole[i]
            doubt[i] += whole[i] * ZERO


@inner
def read_deltas(stored: Array, first: int, start: Array, deltas: Array, doubt: Array) -> None:
    """Read a part of θ₀, and of the θₖ what they differ by, which is not finite where θₖ is not."""
    size = start.size
    read(stored[0], first, start, doubt)
    for k in range(stored.shape[0] - 1):
        delta, place = deltas[k, :size], stored[1 + k]
        if place[1] == 2:
            bits, halves = delta.view(np.uint32), carray(bfloat16s(place[0] + 2 * first), size)
            for i in range(size):
                bits[i] = np.uint32(np.uint32(halves[i]) << _HALF)
                differs = delta[i] - start[i]
                delta[i] = differs
                doubt[i] += differs * ZERO
        else:
            whole = carray(float32s(place[0] + 4 * first), size)
            for i in range(size):
                differs = whole[i] - start[i]
                delta[i] = differs
                doubt[i] += differs * ZERO


@inner
def store(values: Array, out: Array) -> None:
    """Copy the values, rounded to the nearest bfloat16, of ties the even one, if that is what ``out`` holds."""
    if out.itemsize == 2:
        bits = values.view(np.uint32)
        for i in range(values.size):
            odd = np.uint32(np.uint32(bits[i] >> _HALF) & _LAST)
            out[i] = np.uint16(np.uint32(np.uint32(bits[i] + _UP) + odd) >> _HALF)
    else:
        for i in range(values.size):
            out[i] = values[i]
