"""Memory for results, used again: to clear fresh pages takes the kernel about as long as the arithmetic takes us."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_MOST = 1 << 26  # bytes kept

_lock = threading.Lock()
_kept: dict[tuple[torch.dtype, torch.device, int], list[Tensor]] = {}


def fresh(like: Tensor) -> Tensor:
    """Return a flat tensor of as many elements, dtype and device, with anything in it."""
    import torch

    with _lock:
        if fitting := _kept.get((like.dtype, like.device, like.numel())):
            return fitting.pop()
    return torch.empty(like.numel(), dtype=like.dtype, device=like.device)


def spare(tensor: Tensor) -> None:
    """Give a tensor's memory back for later results; nobody may look at it or at a view of it again."""
    if not tensor.is_contiguous() or tensor.untyped_storage().nbytes() != tensor.nbytes:
        return
    with _lock:
        if tensor.nbytes + sum(kept.nbytes for same in _kept.values() for kept in same) <= _MOST:
            _kept.setdefault((tensor.dtype, tensor.device, tensor.numel()), []).append(tensor.view(-1))
