"""Functions of tensors compiled for the CPU, by numba.

Compiled on the first call on a machine, in a second or two, and kept: beside the function's file, or where that
cannot be written in the user's cache folder (``NUMBA_CACHE_DIR`` chooses another). Tensors must be C-contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numba  # type: ignore[import-untyped]
import torch
from llvmlite.binding import ffi  # type: ignore[import-untyped]
from numba.extending import register_jitable  # type: ignore[import-untyped]
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}

# vLLM 0.32, started later in this process, looks into the __dict__ of everything in every module; this object of
# llvmlite's takes the name for that of a function of LLVM's, and answers with one. Told so, it answers with a dict.
ffi.lib._fntab.setdefault("__dict__", {})


def inner(function: F) -> F:
    """Make a function one that those compiled can call."""
    return register_jitable(**_OPTIONS)(function)  # type: ignore[no-any-return]


def compiled(function: F) -> F:
    """Compile a function of tensors, which then lets other threads run; a · b + c is rounded once, as in torch.

    In there tensors are arrays of numpy, which has no bfloat16: of its bits, as uint16.
    """
    try:
        made = numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # there is no folder to keep it in
        made = numba.njit(**_OPTIONS)(function)

    @wraps(function)
    def call(*args: object) -> Any:
        return made(*map(_array, args))

    return call  # type: ignore[return-value]


def _array(arg: object) -> object:
    if not isinstance(arg, Tensor):
        return arg
    return (arg.view(torch.uint16) if arg.dtype == torch.bfloat16 else arg).numpy()
