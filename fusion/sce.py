"""SCE (Select, Calculate, Erase) in its three published forms.

Wan et al. 2024, FuseChat, arXiv:2408.07990. The paper's Algorithm 1, the code that made FuseChat-7B-v2.0 and FuseO1
(fanqiwan/FuseAI@7d9a307), and mergekit 0.1.5's are three different methods; all compute in float32 here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.blocks import Group, arithmetic, bits
from fusion.cuts import Cut, Ladder, cuts, top
from fusion.memory import fresh, spare
from fusion.params import Share, Tell, silent

_MERGEKIT_LEAST = 1e-6  # below this sum of mean squares mergekit weighs equally; and the least it divides by
_FEW = 0.25  # the share up to which to gather the selected is faster than to mask the rest


def sce(base: Tensor, tuned: Sequence[Tensor], *, select_topk: Share = 0.1, tell: Tell = silent) -> Tensor:
    """Select, Calculate, Erase:  θ = θ₀ + Σₖ ηₖ dₖ′, Algorithm 1 of the FuseChat paper.

    Wan et al. 2024, arXiv:2408.07990. With δₖ = θₖ − θ₀, for each tensor: *select* the ⌊τ·numel⌋ elements whose
    variance across the sources is largest (τ is ``select_topk``; of equal variances the lowest flat index goes
    first), which makes δₖ into dₖ; *calculate* ηₖ = Σ dₖ² / Σⱼ Σ dⱼ²; *erase* in every element the dₖ whose sign
    differs from that of Σₖ dₖ, which makes dₖ into dₖ′. Nothing is renormalised afterwards, as in the paper and
    unlike the public code. Elements that were not selected keep the base's bits. Tells ``eta`` a source, and the
    share of ``selected`` elements.
    """
    return sce_grid(base, tuned, select_topk=(select_topk,), tells=(tell,))[0]


def sce_fusechat(base: Tensor, tuned: Sequence[Tensor], *, select_topk: Share = 1.0, tell: Tell = silent) -> Tensor:
    """SCE as the code that made FuseChat-7B-v2.0 and FuseO1 has it:  θ = θ₀ + Σₖ ηₖ δₖ′ / Σₖ ηₖ [δₖ′ ≠ 0].

    The selected elements only give the weights ηₖ; signs are elected, and deltas merged, over all elements: in each,
    the δₖ whose sign differs from that of Σₖ δₖ are erased (a sum of 0 counts as positive), and the sum is divided by
    the weights of those that stay. τ is ``select_topk``, of the elements whose variance is not zero; with none selected
    the weights are equal. Tells ``eta`` a source, and the share of ``selected`` elements.
    """
    return sce_fusechat_grid(base, tuned, select_topk=(select_topk,), tells=(tell,))[0]


def sce_mergekit(base: Tensor, tuned: Sequence[Tensor], *, select_topk: Share = 1.0, tell: Tell = silent) -> Tensor:
    """SCE as mergekit 0.1.5 has it:  θ = θ₀ + Σₖ ηₖ dₖ′ / Σₖ ηₖ [dₖ′ ≠ 0].

    As the paper's, but τ (``select_topk``) is of the elements whose variance is not zero, the sum is divided by the
    weights of the deltas that stay, and where the mean squares sum to less than 1e-6, as they do of light
    fine-tunes, the weights are equal. Tells ``eta`` a source, and the share of ``selected`` elements.
    """
    return sce_mergekit_grid(base, tuned, select_topk=(select_topk,), tells=(tell,))[0]


def sce_grid(
    base: Tensor, tuned: Sequence[Tensor], *, select_topk: Sequence[float], tells: Sequence[Tell]
) -> list[Tensor]:
    """Return ``sce`` for each τ; the thresholds for all of them come from one pass."""
    return _merged(base, tuned, select_topk, tells, _Form(least_energy=0.0, average=None, of_nonzero=False))


def sce_mergekit_grid(
    base: Tensor, tuned: Sequence[Tensor], *, select_topk: Sequence[float], tells: Sequence[Tell]
) -> list[Tensor]:
    """Return ``sce_mergekit`` for each τ; the thresholds for all of them come from one pass."""
    form = _Form(least_energy=_MERGEKIT_LEAST * base.numel(), average=_MERGEKIT_LEAST, of_nonzero=True)
    return _merged(base, tuned, select_topk, tells, form)


def sce_fusechat_grid(
    base: Tensor, tuned: Sequence[Tensor], *, select_topk: Sequence[float], tells: Sequence[Tell]
) -> list[Tensor]:
    """Return ``sce_fusechat`` for each τ; the thresholds for all of them come from one pass."""
    form = _Form(least_energy=0.0, average=0.0, of_nonzero=True, selects=False)
    return _merged(base, tuned, select_topk, tells, form)


@dataclass(frozen=True, slots=True)
class _Form:
    """In what the three differ.

    Where the energies sum to ``least_energy`` or less, the weights are equal. ``average`` divides the merged delta by
    the weights of what stays, or by this if they sum to less; None does not divide. τ is ``of_nonzero`` variances or
    of all elements. What is selected decides about the weights only, unless it ``selects`` what is merged.
    """

    least_energy: float
    average: float | None
    of_nonzero: bool
    selects: bool = True

    def weigh(self, energy: Sequence[float]) -> list[float]:
        """Return η."""
        total = sum(energy)
        return [e / total for e in energy] if total > self.least_energy else [1 / len(energy)] * len(energy)


@dataclass(frozen=True, slots=True)
class _Selection:
    """What some τ's select of ``group``, whose elements lie at ``index`` of the tensor (None: they are the tensor)."""

    group: Group
    index: Tensor | None
    cuts: Sequence[Cut | None]  # None: all


def _merged(
    base: Tensor, tuned: Sequence[Tensor], select_topk: Sequence[float], tells: Sequence[Tell], form: _Form
) -> list[Tensor]:
    whole = Group(base, tuned)
    if not select_topk or whole.unchanged():
        return [base.clone() for _ in select_topk]
    selection = _selection(whole, select_topk, of_nonzero=form.of_nonzero)
    level, needed, energies = _levels(selection)
    eta = [form.weigh(energy) for energy in energies]
    for tell, cut, weights in zip(tells, selection.cuts, eta, strict=True):
        tell("eta", weights)
        tell("selected", [(cut.taken if cut else selection.group.numel) / base.numel()])
    if not form.selects:
        merged = _merge(whole, None, np.zeros_like(needed), eta, form)
    else:
        merged = _merge(selection.group, level, needed, eta, form)
    if selection.index is None:  # and of a size that comes again
        spare(level)
    elif form.selects:
        merged = [_scattered(base, selection.index, values) for values in merged]
    return [values.view(base.shape) for values in merged]


def _selection(whole: Group, shares: Sequence[float], *, of_nonzero: bool) -> _Selection:
    """Select for every τ at once.

    Few elements are gathered, those of the largest τ for all, and merged apart from the rest; of many, or beside them,
    masking the rest is faster.
    """
    if max(shares) <= _FEW:
        index, wanted = top(whole, "variance", shares, of_nonzero=of_nonzero)
        part = whole.at(index)
        less = [want / part.numel for want in wanted if want < part.numel]
        ends = iter(cuts(part, "variance", less) if less else ())
        return _Selection(part, index, [next(ends) if want < part.numel else None for want in wanted])
    less = [share for share in shares if share < 1]
    ends = iter(cuts(whole, "variance", less, of_nonzero=of_nonzero) if less else ())
    return _Selection(whole, None, [next(ends) if share < 1 else None for share in shares])


def _levels(selection: _Selection) -> tuple[Tensor, NDArray[Any], list[list[float]]]:
    """Return every element's level, which one each cut needs, and for each cut Σ dₖ² of each source.

    A byte an element: to find the levels again would take longer than what they are needed for.
    """
    group, ladder = selection.group, Ladder(selection.cuts, "variance")
    level = fresh(group.base, dtype=ladder.dtype)
    sums = np.zeros((1 + len(selection.cuts), len(group.tuned)))  # by level
    for place, start, tuned in group.stretches():
        if not ladder.grade(start, tuned, level[place], sums):
            group.check(place)
    return level, ladder.needed, [sums[need:].sum(axis=0).tolist() for need in ladder.needed]


def _merge(
    group: Group, level: Tensor | None, needed: NDArray[Any], eta: Sequence[Sequence[float]], form: _Form
) -> list[Tensor]:
    """Return, for each cut, θ₀ + Σₖ ηₖ dₖ′ of the group, perhaps divided by the weights of what stays.

    It takes the elements of the needed level at least; without levels, all.
    """
    merged = [fresh(group.base) for _ in eta]
    weights, average = np.array(eta, np.float32), -1.0 if form.average is None else form.average
    all_of_it = torch.zeros(0, dtype=torch.uint8 if needed.dtype == np.uint8 else torch.int32, device=group.device)
    for place, start, tuned in group.stretches():
        if level is None and all_of_it.numel() < start.numel():
            all_of_it = all_of_it.new_zeros(start.numel())
        taken = all_of_it[: start.numel()] if level is None else level[place]
        out = [into[place] if group.rounds else torch.empty(start.shape, device=group.device) for into in merged]
        if not arithmetic(group.device).combined(start, tuned, taken, needed, weights, average, out):
            group.check(place)
        if not group.rounds:
            for into, values in zip(merged, out, strict=True):
                into[place].copy_(values)
    return merged


def _scattered(base: Tensor, index: Tensor, values: Tensor) -> Tensor:
    flat = fresh(base).copy_(base.reshape(-1))
    arithmetic(base.device).scatter(bits(values), index, bits(flat))
    return flat
