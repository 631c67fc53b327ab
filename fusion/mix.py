"""How the thinned deltas of several sources are added to the base: as a sum, or with an election of signs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fusion.blocks import Block, Group, arithmetic
from fusion.cuts import Cut
from fusion.params import Tell, per_source, shares_of

Thin = Callable[[Tensor], None]
"""Zeroes in place what a source loses, block after block of its delta in order."""


@dataclass(frozen=True, slots=True)
class Mix:
    """How the dₖ are added:  θ = θ₀ + λ · Σₖ wₖ rₖ dₖ, where λ is ``scale`` and rₖ ``rescale``.

    With ``elect`` the sum is over those that agree with the sign of the whole sum, element by element; ``normalize``
    divides by the wₖ of what is summed.
    """

    weights: Sequence[float]
    scale: float
    normalize: bool
    elect: bool
    rescale: Sequence[float]

    @classmethod
    def of(
        cls, sources: int, weights: float | Sequence[float], scale: float, *, normalize: bool, elect: bool = False
    ) -> Mix:
        """Check the weights, and say them for every source."""
        each = per_source(weights, sources)
        if normalize and not elect:
            shares_of(each)
        return cls(each, scale, normalize, elect, [1.0] * sources)

    def coefficients(self) -> list[float]:
        """Return what every delta is multiplied by in a sum without an election."""
        by = self.scale / (math.fsum(self.weights) if self.normalize else 1.0)
        return [weight * rescale * by for weight, rescale in zip(self.weights, self.rescale, strict=True)]


class Trim:
    """Zeroes the deltas whose magnitude a cut does not take; of those equal to its threshold the last in order."""

    def __init__(self, cut: Cut) -> None:
        self._threshold = cut.threshold
        self._ties = cut.ties if cut.threshold else 0  # zeros need no choice
        self._inclusive = float(np.nextafter(np.float32(cut.threshold), np.float32(-math.inf)))

    def __call__(self, delta: Tensor) -> None:
        """Trim the next block, in place."""
        threshold = self._threshold
        if self._ties:
            size = delta.abs()
            tied = _equal(size, threshold)
            if tied > self._ties:
                delta[(size == threshold).nonzero().squeeze(1)[self._ties :]] = 0.0
            self._ties -= min(self._ties, tied)
            threshold = self._inclusive
        torch.hardshrink(delta, threshold, out=delta)  # a third of the time of a mask and a product


class Band:
    """Zeroes the deltas whose magnitude the wider cut does not take, and those which the narrower takes."""

    def __init__(self, narrower: Cut, wider: Cut) -> None:
        self._narrower, self._wider = Trim(narrower), Trim(wider)

    def __call__(self, delta: Tensor) -> None:
        """Zero what is outside the band in the next block, in place."""
        outliers = delta.clone()
        self._narrower(outliers)
        self._wider(delta)
        delta.sub_(outliers)


def merged(group: Group, thin: Sequence[Thin | None], mix: Mix, tell: Tell) -> Tensor:
    """Return the merge of what ``thin`` leaves of the deltas (None: all); tells ``kept`` and ``conflict``."""
    blocks = _thinned(group, thin)
    if mix.elect:
        kept, conflict = _elect(group, blocks, mix)
        tell("conflict", [conflict / group.numel])
    else:
        kept = _add(group, blocks, mix)
    tell(
        "kept", [elements / group.numel if weight else 0.0 for elements, weight in zip(kept, mix.weights, strict=True)]
    )
    return group.result()


def _thinned(group: Group, thin: Sequence[Thin | None]) -> Iterator[Block]:
    for place, start, deltas in group.blocks():
        for delta, one in zip(deltas, thin, strict=True):
            if one is not None:
                one(delta)
        yield place, start, deltas


def _add(group: Group, blocks: Iterator[Block], mix: Mix) -> list[int]:
    """Put θ₀ + Σₖ cₖ dₖ; return how many elements of each dₖ are not 0."""
    first, *others = mix.coefficients()
    kept = [0] * len(mix.weights)
    for place, start, deltas in blocks:
        for k, delta in enumerate(deltas):
            kept[k] += int(torch.count_nonzero(delta))
        total = deltas[0].mul_(first)
        for delta, coefficient in zip(deltas[1:], others, strict=True):
            total.add_(delta, alpha=coefficient)
        group.put(place, start.add_(total))
    return kept


def _elect(group: Group, blocks: Iterator[Block], mix: Mix) -> tuple[list[int], int]:
    """Put the elected mix; return how many elements each source adds to, and at how many their signs differ."""
    weights = np.array(mix.weights, np.float32)
    factors = np.array([weight * rescale for weight, rescale in zip(mix.weights, mix.rescale, strict=True)], np.float32)
    divisors = weights if mix.normalize else weights[:0]
    kept, conflict = np.zeros(len(weights), np.int64), 0
    elect = arithmetic(group.device).elect
    for place, start, deltas in blocks:
        out = group.into(place, start)
        conflict += elect(start, deltas, factors, divisors, mix.scale, kept, out)
        if out is start:
            group.put(place, start)
    return kept.tolist(), conflict


def _equal(values: Tensor, one: float) -> int:
    if values.device.type == "cpu":
        return int(np.count_nonzero(values.numpy() == one))
    return int(torch.count_nonzero(values == one))
