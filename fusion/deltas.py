"""Task arithmetic and its offspring: sums of the sources' differences from the base, thinned out before.

All compute θ = θ₀ + λ · mix(wₖ dₖ), where dₖ is what a method leaves of δₖ = θₖ − θ₀: all of it (task arithmetic), the
largest elements (TIES), random ones (DARE, DELLA), or the largest but the outliers (breadcrumbs). The mix is the sum,
or with an election of signs the sum of what agrees; ``normalize`` divides it by the sum of the weights that went in.
``base`` is θ₀ and ``tuned`` the θₖ, all of shape (*s,); λ is ``scale``; arithmetic is float32. Where no source changed
a tensor the result is the base's, bit for bit.

Every method but task arithmetic tells ``kept``, for each source the share of the elements to which it adds something,
and those that elect signs ``conflict``, the share of the elements at which the signs of the wₖ dₖ differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from fusion.blocks import Group
from fusion.cuts import Cut, count, cuts
from fusion.drop import keep_by_rank, l1_factors, rounded, seed_of
from fusion.errors import RecipeError
from fusion.mix import Mix, merged
from fusion.params import Parts, Scale, Shares, Switch, Tell, Weights, per_source, silent
from fusion.thinning import CHANCES, Band, Drop, Keep

Rescale = Literal["paper", "l1", "none"]

Range = tuple[int, int]
"""Ranks by |δ|, the largest first: from the first, until before the last."""


def task_arithmetic(
    base: Tensor,
    tuned: Sequence[Tensor],
    *,
    weights: Weights = 1.0,
    normalize: Switch = False,
    scale: Scale = 1.0,
    tell: Tell = silent,
) -> Tensor:
    """Add weighted task vectors to the base:  θ = θ₀ + λ · Σₖ wₖ δₖ, where ``normalize`` by Σₖ wₖ.

    Ilharco et al. 2023, arXiv:2212.04089. Tells ``weight`` a source: its delta's coefficient, λ wₖ or λ wₖ / Σⱼ wⱼ.
    """
    group, mix = Group(base, tuned), Mix.of(len(tuned), weights, scale, normalize=normalize)
    if group.unchanged():
        return base.clone()
    tell("weight", mix.coefficients())
    return merged(group, [None] * len(tuned), mix, silent)


def ties(
    base: Tensor,
    tuned: Sequence[Tensor],
    *,
    density: Shares,
    weights: Weights = 1.0,
    normalize: Switch = True,
    scale: Scale = 1.0,
    tell: Tell = silent,
) -> Tensor:
    """Trim, elect sign, merge:  θ = θ₀ + λ · Σₖ∈A wₖ dₖ / Σₖ∈A wₖ, element by element.

    Yadav et al. 2023, arXiv:2306.01708. dₖ is δₖ with all but the max(1, ⌊density·numel⌋) largest magnitudes of the
    tensor zeroed, of equal ones the highest flat indices; the elected sign is that of Σₖ wₖ dₖ, positive if that is 0
    (as in mergekit; the paper would merge nothing there); A holds the sources with wₖ dₖ ≠ 0 of that sign. Without
    ``normalize`` there is no division. The paper takes a density of 0.2 and equal weights. Tells ``kept`` and
    ``conflict``.
    """
    return ties_grid(base, tuned, density=(density,), tells=(tell,), weights=weights, normalize=normalize, scale=scale)[
        0
    ]


def ties_grid(
    base: Tensor,
    tuned: Sequence[Tensor],
    *,
    density: Sequence[float | Sequence[float]],
    tells: Sequence[Tell],
    weights: Weights = 1.0,
    normalize: Switch = True,
    scale: Scale = 1.0,
) -> list[Tensor]:
    """Return ``ties`` for each density; the thresholds for all of them come from one pass."""
    mix = Mix.of(len(tuned), weights, scale, normalize=normalize, elect=True)
    ranges = [[(0, max(1, count(d, base.numel()))) for d in per_source(one, len(tuned))] for one in density]
    return _ranked(base, tuned, ranges, mix, tells)


def breadcrumbs(
    base: Tensor,
    tuned: Sequence[Tensor],
    *,
    density: Shares,
    gamma: Parts = 0.01,
    weights: Weights = 1.0,
    normalize: Switch = False,
    scale: Scale = 1.0,
    tell: Tell = silent,
) -> Tensor:
    """Add task vectors without their outliers and their small change:  θ = θ₀ + λ · Σₖ wₖ dₖ.

    Davari & Belilovsky 2023, arXiv:2312.06795. Of the tensor's δₖ, the ⌊gamma·numel⌋ largest magnitudes go, the
    ⌊density·numel⌋ next stay and the rest goes, which makes dₖ. As in mergekit: a density that leaves too few others
    keeps outliers, and a density of 1 all of them. Of equal magnitudes the lowest flat index counts as largest. Tells
    ``kept``.
    """
    mix = Mix.of(len(tuned), weights, scale, normalize=normalize)
    return _ranked(base, tuned, [_inner(density, gamma, base.numel(), len(tuned))], mix, (tell,))[0]


def breadcrumbs_ties(
    base: Tensor,
    tuned: Sequence[Tensor],
    *,
    density: Shares,
    gamma: Parts = 0.01,
    weights: Weights = 1.0,
    normalize: Switch = False,
    scale: Scale = 1.0,
    tell: Tell = silent,
) -> Tensor:
    """Merge what ``breadcrumbs`` leaves of the task vectors with the sign election of ``ties``.

    Davari & Belilovsky 2023, arXiv:2312.06795, and Yadav et al. 2023, arXiv:2306.01708; the combination is
    mergekit's. Tells ``kept`` and ``conflict``.
    """
    mix = Mix.of(len(tuned), weights, scale, normalize=normalize, elect=True)
    return _ranked(base, tuned, [_inner(density, gamma, base.numel(), len(tuned))], mix, (tell,))[0]


def dare_linear(
    base: Tensor,
    tuned: Sequence[Tensor],
    *,
    density: Shares,
    weights: Weights = 1.0,
    rescale: Rescale = "paper",
    normalize: Switch = False,
    scale: Scale = 1.0,
    generator: torch.Generator | None = None,
    tell: Tell = silent,
) -> Tensor:
    """Drop and rescale task vectors, then add them:  θ = θ₀ + λ · Σₖ wₖ rₖ mₖ δₖ.

    Yu et al. 2024, arXiv:2311.03099. Each element of mₖ is 1 with the probability ``density``, rounded to a multiple
    of 2⁻¹⁶, and 0 otherwise. ``rescale`` says what rₖ is: one by that probability ("paper"), Σ|δₖ| / Σ|mₖ δₖ| of the
    tensor ("l1", mergekit's), or 1 ("none"). Elements kept at one density are kept at all higher ones, given the same
    ``generator`` state (0 as seed, if none is given). Tells ``kept``, and ``rescale``, the rₖ.
    """
    mix = Mix.of(len(tuned), weights, scale, normalize=normalize)
    return _dropped(base, tuned, _evenly(density, len(tuned)), mix, rescale=rescale, seed=seed_of(generator), tell=tell)


def dare_ties(
    base: Tensor,
    tuned: Sequence[Tensor],
    *,
    density: Shares,
    weights: Weights = 1.0,
    rescale: Rescale = "paper",
    normalize: Switch = False,
    scale: Scale = 1.0,
    generator: torch.Generator | None = None,
    tell: Tell = silent,
) -> Tensor:
    """Drop and rescale task vectors as ``dare_linear`` does, then merge them with the sign election of ``ties``.

    Yu et al. 2024, arXiv:2311.03099. Tells ``kept``, ``conflict``, and ``rescale``.
    """
    mix = Mix.of(len(tuned), weights, scale, normalize=normalize, elect=True)
    return _dropped(base, tuned, _evenly(density, len(tuned)), mix, rescale=rescale, seed=seed_of(generator), tell=tell)


def della(
    base: Tensor,
    tuned: Sequence[Tensor],
    *,
    density: Shares,
    epsilon: Parts = 0.15,
    weights: Weights = 1.0,
    rescale: Rescale = "paper",
    normalize: Switch = True,
    scale: Scale = 1.0,
    generator: torch.Generator | None = None,
    tell: Tell = silent,
) -> Tensor:
    """Drop and rescale task vectors as ``della_linear`` does, then merge them with the sign election of ``ties``.

    Deep et al. 2024, arXiv:2406.11617. Tells ``kept``, ``conflict``, and ``rescale``.
    """
    mix = Mix.of(len(tuned), weights, scale, normalize=normalize, elect=True)
    keeps = _by_rank(base, tuned, density, epsilon)
    return _dropped(base, tuned, keeps, mix, rescale=rescale, seed=seed_of(generator), tell=tell)


def della_linear(
    base: Tensor,
    tuned: Sequence[Tensor],
    *,
    density: Shares,
    epsilon: Parts = 0.15,
    weights: Weights = 1.0,
    rescale: Rescale = "paper",
    normalize: Switch = False,
    scale: Scale = 1.0,
    generator: torch.Generator | None = None,
    tell: Tell = silent,
) -> Tensor:
    """Drop small elements of task vectors sooner than large ones, rescale, and add:  θ = θ₀ + λ · Σₖ wₖ rₖ mₖ δₖ.

    Deep et al. 2024, arXiv:2406.11617. Each element of mₖ is 1 with a probability that grows evenly with the rank of
    its |δₖ| in its row (the last dimension) from density − epsilon to density + epsilon, rounded to a multiple of
    2⁻¹⁶; of equal magnitudes the lowest index ranks highest. ``epsilon`` is half the paper's, as in mergekit; a
    density of 1 drops nothing. ``rescale`` says what rₖ is: one by each element's own probability ("paper"), or
    Σ|δₖ| / Σ|mₖ δₖ| of the tensor ("l1", mergekit's), or 1 ("none"). Tells ``kept``, and as
    ``rescale`` the rₖ, which is 1 where every element has its own.
    """
    mix = Mix.of(len(tuned), weights, scale, normalize=normalize)
    keeps = _by_rank(base, tuned, density, epsilon)
    return _dropped(base, tuned, keeps, mix, rescale=rescale, seed=seed_of(generator), tell=tell)


def _inner(density: float | Sequence[float], gamma: float | Sequence[float], numel: int, sources: int) -> list[Range]:
    """Return what breadcrumbs keep of each source."""
    inner = []
    for share, outer in zip(per_source(density, sources), per_source(gamma, sources), strict=True):
        kept = count(share, numel)
        outliers = min(count(outer, numel), numel - kept)
        inner.append((outliers, outliers + kept))
    return inner


def _ranked(
    base: Tensor, tuned: Sequence[Tensor], ranges: Sequence[Sequence[Range]], mix: Mix, tells: Sequence[Tell]
) -> list[Tensor]:
    """Merge what lies in each of ``ranges``, which hold one a source; the thresholds for all come from one pass."""
    group, numel = Group(base, tuned), base.numel()
    if group.unchanged():
        return [base.clone() for _ in ranges]
    ends = [sorted({end for one in ranges for end in one[k]} - {0, numel}) for k in range(len(tuned))]
    cut = [_cuts(group.only(k), each) for k, each in enumerate(ends)]
    results = []
    for one, tell in zip(ranges, tells, strict=True):
        group.again()
        thin = [_between(known, first, last, numel) for known, (first, last) in zip(cut, one, strict=True)]
        results.append(merged(group, thin, mix, tell))
    return results


def _cuts(group: Group, ends: Sequence[int]) -> dict[int, Cut]:
    """Return the cut that takes so many elements, for each of ``ends``, none, and all."""
    found = cuts(group, "magnitude", [end / group.numel for end in ends]) if ends else []
    return {0: Cut(math.inf), group.numel: Cut(-math.inf), **dict(zip(ends, found, strict=True))}


def _between(cut: dict[int, Cut], first: int, last: int, numel: int) -> Band | None:
    if first:
        return Band(cut[last], cut[first])
    return Band(cut[last]) if last < numel else None


def keep_ranges(
    density: float | Sequence[float], epsilon: float | Sequence[float] = 0.15, *, sources: int
) -> list[tuple[float, float]]:
    """Return density and epsilon of each source; RecipeError where they leave (0, 1)."""
    each = list(zip(per_source(density, sources), per_source(epsilon, sources), strict=True))
    for middle, half in each:
        if middle < 1 and not 0 < middle - half <= middle + half < 1:
            raise RecipeError(
                f"'density' {middle} with 'epsilon' {half} means keep probabilities from {middle - half:g} to "
                f"{middle + half:g}; they must lie between 0 and 1: make epsilon smaller"
            )
    return each


def _evenly(density: float | Sequence[float], sources: int) -> Callable[[int], Keep]:
    each = per_source(density, sources)
    return lambda source: rounded(each[source])


def _by_rank(
    base: Tensor, tuned: Sequence[Tensor], density: float | Sequence[float], epsilon: float | Sequence[float]
) -> Callable[[int], Keep]:
    each = keep_ranges(density, epsilon, sources=len(tuned))
    return lambda source: CHANCES if each[source][0] == 1 else keep_by_rank(base, tuned[source], *each[source])


def _dropped(
    base: Tensor,
    tuned: Sequence[Tensor],
    keep: Callable[[int], Keep],
    mix: Mix,
    *,
    rescale: Rescale,
    seed: int,
    tell: Tell,
) -> Tensor:
    """Drop each source's elements with its keep probabilities, rescale and merge."""
    group = Group(base, tuned)
    if group.unchanged():
        return base.clone()
    keeps = [keep(source) for source in range(len(tuned))]
    paper, l1 = rescale == "paper", rescale == "l1"
    drops = [
        None
        if isinstance(kept, int) and kept == CHANCES
        else Drop(seed, k, kept, inverse=paper and not isinstance(kept, int))
        for k, kept in enumerate(keeps)
    ]
    factors = [CHANCES / kept if paper and isinstance(kept, int) else 1.0 for kept in keeps]
    if l1:
        factors = l1_factors(group, drops)
    tell("rescale", factors)
    return merged(group, drops, replace(mix, rescale=factors), tell)
