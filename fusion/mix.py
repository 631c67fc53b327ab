"""How the thinned deltas of several sources are added to the base: as a sum, or with an election of signs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fusion.blocks import Group, arithmetic
from fusion.params import Tell, per_source, shares_of
from fusion.thinning import Addition, Band, Drop, Thinning


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

    def addition(self) -> Addition:
        """Return it as a pass takes it."""
        if not self.elect:
            return Addition(False, np.array(self.coefficients(), np.float32), np.empty(0, np.float32), 1.0)
        factors = [weight * rescale for weight, rescale in zip(self.weights, self.rescale, strict=True)]
        weights = np.array(self.weights if self.normalize else [], np.float32)
        return Addition(True, np.array(factors, np.float32), weights, self.scale)


def merged(group: Group, thin: Sequence[Band | Drop | None], mix: Mix, tell: Tell) -> Tensor:
    """Return the merge of what ``thin`` leaves of the deltas (None: all); tells ``kept`` and ``conflict``."""
    thinning, how = Thinning(thin), mix.addition()
    kept, conflict = np.zeros(len(thin), np.int64), 0
    room = torch.empty(0, device=group.device)
    for place, base, tuned in group.stretches():
        if not group.rounds and room.numel() < base.numel():
            room = room.new_empty(base.numel())
        out = group.merged[place] if group.rounds else room[: base.numel()]
        finite, differ = arithmetic(group.device).mix(base, tuned, thinning, place.start, how, kept, out)
        if not finite:
            group.check(place)
        conflict += differ
        if not group.rounds:
            group.put(place, out)
    if mix.elect:
        tell("conflict", [conflict / group.numel])
    shares = zip((kept / group.numel).tolist(), mix.weights, strict=True)
    tell("kept", [share if weight else 0.0 for share, weight in shares])
    return group.result()
