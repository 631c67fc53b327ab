"""Memory for results, used again: to clear fresh pages takes the kernel about as long as the arithmetic takes us."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_MOST = 1 << 28  # bytes kept ...
_LARGE = 1 << 26  # ... each no larger; and until such a larger one is wanted

_lock = threading.Lock()
_kept: list[Tensor] = []  # flat, the oldest first


def fresh(like: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return a flat tensor of as many elements, dtype (or another) and device, with anything in it."""
    import torch

    dtype = dtype or like.dtype
    with _lock:
        for number, kept in enumerate(_kept):
            if (kept.dtype, kept.device, kept.numel()) == (dtype, like.device, like.numel()):
                return _kept.pop(number)
        if like.numel() * dtype.itemsize > _LARGE:
            _kept.clear()
    return torch.empty(like.numel(), dtype=dtype, device=like.device)


def spare(tensor: Tensor) -> None:
    """Give a tensor's memory back for later results; nobody may look at it or at a view of it again."""
    if not tensor.is_contiguous() or tensor.untyped_storage().nbytes() != tensor.nbytes or tensor.nbytes > _LARGE:
        return
    with _lock:
        if any(kept.data_ptr() == tensor.data_ptr() for kept in _kept):
            return
        _kept.append(tensor.view(-1))
        while sum(kept.nbytes for kept in _kept) > _MOST:
            _kept.pop(0)


def release() -> None:
    """Let go of what was kept."""
    with _lock:
        _kept.clear()
