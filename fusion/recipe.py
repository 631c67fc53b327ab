"""What a merge is made from and how: the recipe, before any file is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSION = 1
"""Raised when the same recipe gives another result: it is part of a merged model's identity."""

Setting = Any
"""A value; a list of numbers, which is a gradient over depth; or a mapping of globs on tensor names to settings, of
which the first that matches counts. What is given per source is a list of settings, one a source."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive layers of the result: ``[start, stop)`` of the base's and of each source's own layers.

    A source whose entry is None takes no part in these layers; nor has it an entry in lists of one a source there.
    The first slice also decides about what comes before the layers, the last about what comes after them.
    """

    base: tuple[int, int]
    sources: tuple[tuple[int, int] | None, ...]
    params: Mapping[str, Setting] = field(default_factory=dict)  # over the recipe's


@dataclass(frozen=True, slots=True)
class MergeRecipe:
    """What to merge and how; ``params`` are the methods' keyword arguments."""

    method: Setting  # a name of fusion.methods.METHODS, or a mapping of globs on tensor names to such
    base: Path
    sources: tuple[Path, ...]  # checkpoint folders, or LoRA adapters' folders
    params: Mapping[str, Setting] = field(default_factory=dict)
    dtype: str | None = None  # None: the base's
    tokenizer: str = "base"  # whose vocabulary the result has: base, union, or a source's number from 1
    slices: tuple[Slice, ...] = ()  # none: all layers of the base
    seed: int = 0  # of the methods that draw at random


@dataclass(frozen=True, slots=True)
class Grid:
    """Several values of one parameter, to be merged together: each gives a variant of the result."""

    parameter: str
    values: tuple[Setting, ...]
