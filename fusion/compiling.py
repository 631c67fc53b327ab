"""Functions of tensors compiled for the CPU, by numba.

Compiled on the first call on a machine, in a second or two, and kept: beside the function's file, or where that
cannot be written in the user's cache folder (``NUMBA_CACHE_DIR`` chooses another). Tensors must be C-contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import numba  # type: ignore[import-untyped]
import torch
from llvmlite.binding import ffi  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic, register_jitable  # type: ignore[import-untyped]
from torch import Tensor

__all__ = ["bfloat16s", "compiled", "float32s", "inner"]

F = TypeVar("F", bound=Callable[..., Any])

# What is compiled holds what it calls and the layout of what it is given, wherever these are written.
_STAMP = tuple(
    (path.name, path.stat().st_mtime, path.stat().st_size)
    for path in sorted(Path(__file__).parent.glob("*.py"))
    if path.stem.endswith("kernels") or path.stem in ("compiling", "thinning")
)
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
        made._cache._cache_file._source_stamp = _STAMP  # else only a change of the function's own file would count
    except RuntimeError:  # there is no folder to keep it in
        made = numba.njit(**_OPTIONS)(function)

    @wraps(function)
    def call(*args: object) -> Any:
        return made(*map(_array, args))

    return call  # type: ignore[return-value]


def _pointer(element: Any) -> Any:
    """Return what makes an address a pointer to ``element``, for ``numba.carray``.

    So one compiled function takes any number of tensors; for each number of arrays it would be compiled anew.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def pointer(_: Any, address: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(address), code

    return pointer


float32s, bfloat16s = _pointer(types.float32), _pointer(types.uint16)


def _array(arg: object) -> object:
    if not isinstance(arg, Tensor):
        return arg
    return (arg.view(torch.uint16) if arg.dtype == torch.bfloat16 else arg).numpy()
