"""One tensor of every model, a block at a time: what merge methods loop over.

A block's temporaries stay in the processor's cache, so that memory does not grow with the tensor and arithmetic runs
several times faster than on whole tensors. On a GPU blocks are 256 times as large.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion.errors import FusionError
from fusion.memory import fresh

_CPU_BLOCK = 1 << 17  # elements: 512 KiB in float32; smaller ones pay for each call, larger ones leave the cache
_GPU_BLOCK = 1 << 26
_STRETCH = 1 << 20  # elements that one compiled pass goes over, itself in parts; each such call makes threads wait
SAMPLE = 1 << 16  # elements that tell roughly where a threshold lies, at most; of a tensor's, at most each sixteenth

Block = tuple[slice, Tensor, Tensor]
"""A block's place, θ₀ (n,) and the δₖ (sources, n), contiguous and in float32."""


class NotFinite(FusionError):
    """A tensor holds a NaN or an infinity; ``source`` is its number among the sources, None the base."""

    def __init__(self, source: int | None) -> None:
        super().__init__(f"{'the base' if source is None else f'source {source + 1}'} holds a NaN or an infinity")
        self.source = source


def arithmetic(device: torch.device) -> Any:
    """Return the functions of ``fusion.vectorised``, for a CPU compiled."""
    name = "fusion.kernels" if device.type == "cpu" else "fusion.vectorised"  # the first takes a moment to import
    return importlib.import_module(name)


def block_size(device: torch.device) -> int:
    """Return how many elements are worked on at once."""
    return _CPU_BLOCK if device.type == "cpu" else _GPU_BLOCK


class Group:
    """θ₀ and the θₖ of one tensor, flat; ``merged`` holds the results that were put.

    A block holds whole rows of ``row`` elements. ``number`` is that of the first source, for errors.
    """

    def __init__(self, base: Tensor, tuned: Sequence[Tensor], *, row: int = 1, number: int = 0) -> None:
        self.shape, self.device = base.shape, base.device
        self.base, self.tuned = base.detach().reshape(-1), [source.detach().reshape(-1) for source in tuned]
        self.numel = self.base.numel()
        most = block_size(self.device)
        self._size = min(self.numel, max(row, most // row * row))
        self._number = number
        self._merged: Tensor | None = None

    @property
    def merged(self) -> Tensor:
        """The results that were put, flat."""
        if self._merged is None:
            self._merged = fresh(self.base)
        return self._merged

    def again(self) -> None:
        """Begin another result, and leave the one so far to whoever has it."""
        self._merged = None

    def unchanged(self) -> bool:
        """Tell whether no source changed the tensor."""
        if not all(same(self.base, source) for source in self.tuned):
            return False
        if not self.base.isfinite().all():  # equal infinities are equal
            raise NotFinite(None)
        return True

    def result(self) -> Tensor:
        """Return the merged tensor in the base's shape."""
        return self.merged.view(self.shape)

    def blocks(self) -> Iterator[Block]:
        """Yield the place, θ₀ and the δₖ = θₖ − θ₀ of each block in float32; they are overwritten by the next."""
        rows = 1 + len(self.tuned)
        buffer = torch.empty(rows * self._size, device=self.device)
        parts = (torch.split(tensor, max(self._size, 1)) for tensor in (self.base, *self.tuned))
        first = 0
        for base, *tuned in zip(*parts, strict=True):
            if not (length := base.numel()):
                break  # of an empty tensor
            values = buffer[: rows * length].view(rows, length)
            if not arithmetic(self.device).differences(base, tuned, values):
                self._check(values)
            yield slice(first, first + length), values[0], values[1:]
            first += length

    def stretches(self) -> Iterator[tuple[slice, Tensor, list[Tensor]]]:
        """Yield the place and the stored numbers of each stretch, for a pass of ``arithmetic``; of a GPU, a block.

        Those of a dtype that compiled code does not know are in float32.
        """
        size = _STRETCH if self.device.type == "cpu" else _GPU_BLOCK
        for first in range(0, self.numel, size):
            place = slice(first, min(first + size, self.numel))
            base, *tuned = (_known(tensor[place]) for tensor in (self.base, *self.tuned))
            yield place, base, tuned

    def check(self, place: slice) -> None:
        """Raise NotFinite if a number of a stretch, or a difference, is not finite."""
        values = torch.empty(1 + len(self.tuned), place.stop - place.start, device=self.device)
        arithmetic(self.device).differences(self.base[place], [source[place] for source in self.tuned], values)
        self._check(values)

    def put(self, place: slice, values: Tensor) -> None:
        """Store a block of results, rounded to the base's dtype."""
        self.merged[place].copy_(values)

    @property
    def rounds(self) -> bool:
        """Whether a pass can round to the results' dtype itself, or has its float32 put afterwards."""
        return self.base.dtype in (torch.float32, torch.bfloat16)

    def only(self, source: int) -> Group:
        """Return the group of the base and one source."""
        return Group(self.base, [self.tuned[source]], number=source)

    def at(self, index: Tensor) -> Group:
        """Return the group of the elements at ``index``."""
        base, *tuned = (tensor.new_empty(index.numel()) for tensor in (self.base, *self.tuned))
        for tensor, out in zip((self.base, *self.tuned), (base, *tuned), strict=True):
            arithmetic(self.device).gather(bits(tensor), index.to(tensor.device), bits(out))
        return Group(base, tuned, number=self._number)

    def sample(self) -> Group:
        """Return a group of some elements, for a guess at thresholds: one, at random, of each of equal stretches."""
        size = max(1, min(SAMPLE, self.numel // 16))
        places = (np.arange(size) + np.random.default_rng(0).random(size)) * (self.numel / size)
        return self.at(torch.from_numpy(places.astype(np.int64).clip(max=self.numel - 1)).to(self.device))

    def _check(self, values: Tensor) -> None:
        for source, row in enumerate(values):
            if not row.isfinite().all():
                raise NotFinite(self._number + source - 1 if source else None)


def _known(tensor: Tensor) -> Tensor:
    return tensor if tensor.device.type != "cpu" or tensor.dtype in (torch.float32, torch.bfloat16) else tensor.float()


def bits(tensor: Tensor) -> Tensor:
    """Return a tensor's bits as whole numbers, for what only moves them."""
    return tensor.view({8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[tensor.element_size()])


def same(one: Tensor, other: Tensor) -> bool:
    """Tell whether two flat tensors hold equal numbers, whatever their dtypes."""
    for first, last in ((0, min(_CPU_BLOCK, one.numel())), (min(_CPU_BLOCK, one.numel()), one.numel())):
        a, b = one[first:last], other[first:last]
        if a.dtype != b.dtype:
            wide = torch.promote_types(a.dtype, b.dtype)
            a, b = a.to(wide), b.to(wide)
        if not torch.equal(a, b.to(a.device)):
            return False
    return True
