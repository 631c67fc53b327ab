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
from fusion.rank_kernels import candidates, gather, largest, ranked, scatter, spans, up_to
from fusion.select_kernels import combined, graded
from fusion.stored_kernels import PART, places, read_deltas

__all__ = [
    "candidates",
    "combined",
    "differences",
    "gather",
    "graded",
    "largest",
    "magnitudes",
    "mix",
    "ranked",
    "scatter",
    "spans",
    "up_to",
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
