"""What each source loses of its delta before the deltas are added, and how they are, as the passes take it.

A source may keep a band of ranks by |δ| (TIES, breadcrumbs), random elements (DARE, DELLA), or all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusion.cuts import Cut

CHANCES = 1 << 16
"""The keep probability 1; keep probabilities are in units of 2⁻¹⁶."""

Keep = int | npt.NDArray[np.uint16]
"""Keep probabilities: one for all elements, or one for each."""


@dataclass(frozen=True, slots=True)
class Band:
    """Keeps the elements whose magnitude ``wider`` takes, but for those that ``narrower`` takes too."""

    wider: Cut
    narrower: Cut | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """Keeps random elements of one source.

    ``inverse`` divides what stays by its own keep probability, of which there is one for each element then.
    """

    seed: int
    source: int
    keep: Keep
    inverse: bool = False


class Addition(NamedTuple):
    """θ₀ + Σₖ fₖ δₖ, or with ``elect`` λ times the sum of what agrees with its sign: see ``vectorised.elect``."""

    elect: bool
    factors: npt.NDArray[np.float32]  # (sources,)
    divisors: npt.NDArray[np.float32]  # (sources,), or none
    scale: float


class Arrays(NamedTuple):
    """A Thinning as compiled code takes it, from one element of the tensor on."""

    thresholds: npt.NDArray[np.float32]  # (sources, 2): of the narrower cut, and of the wider
    ties: npt.NDArray[np.int64]  # (sources, 2): counted down
    drops: npt.NDArray[np.bool_]  # (sources,)
    states: npt.NDArray[np.uint64]  # (sources, 4): drawn from
    keep: npt.NDArray[np.uint16]  # (sources,)
    each: npt.NDArray[np.int64]  # (sources,): where each element's own keep probabilities are, or 0
    inverse: npt.NDArray[np.bool_]  # (sources,)


class Thinning:
    """What each source loses (None: nothing), for one pass over a tensor, in order.

    Stretches begin at multiples of four, so that no drawn number is for two of them.
    """

    def __init__(self, thin: Sequence[Band | Drop | None]) -> None:
        n = len(thin)
        self.thresholds = np.tile(np.array([math.inf, -math.inf], np.float32), (n, 1))
        self.ties = np.zeros((n, 2), np.int64)
        self.drops, self.inverse = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        self.states, self.keep = np.zeros((n, 4), np.uint64), np.zeros(n, np.uint16)
        self.own: list[npt.NDArray[np.uint16] | None] = [None] * n
        for k, one in enumerate(thin):
            if isinstance(one, Band):
                for end, cut in enumerate((one.narrower, one.wider)):
                    if cut is not None:
                        self.thresholds[k, end] = cut.threshold
                        self.ties[k, end] = cut.ties if cut.threshold else 0  # zeros need no choice
            elif one is not None:
                self.drops[k], self.inverse[k] = True, one.inverse
                self.states[k] = _state(one)
                if isinstance(one.keep, int):
                    self.keep[k] = one.keep
                else:
                    self.own[k] = one.keep

    def arrays(self, first: int) -> Arrays:
        """Return it for a stretch that begins at element ``first``; it must outlive them."""
        each = [0 if own is None else own[first:].ctypes.data for own in self.own]
        return Arrays(
            self.thresholds, self.ties, self.drops, self.states, self.keep, np.array(each, np.int64), self.inverse
        )


def _state(drop: Drop) -> Any:
    """Return the beginning of numpy's SFC64, which is alike on every machine."""
    return np.random.SFC64(np.random.SeedSequence([drop.seed, drop.source])).state["state"]["state"]
