"""SCE (Select, Calculate, Erase) in its three published forms.

Wan et al. 2024, FuseChat, arXiv:2408.07990. The paper's Algorithm 1, the code that made FuseChat-7B-v2.0 and FuseO1
(fanqiwan/FuseAI@7d9a307), and mergekit 0.1.5's are three different methods; all compute in float32 here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusion.blocks import Cut, Group, Taker, cuts, top
from fusion.memory import fresh
from fusion.params import Share, Tell, silent

_MERGEKIT_LEAST = 1e-6  # below this sum of mean squares mergekit weighs equally; and the least it divides by
_PART = 1 << 20
_FEW = 0.25  # the share up to which the selected are gathered, whatever memory it takes
_NOT_MANY = 0.6  # and up to which that is faster than masking the rest
_GATHERED = 1 << 24  # elements, at most, where they are not few


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
    cuts: Mapping[int, Cut | None]  # by the τ's number; None: all


def _merged(
    base: Tensor, tuned: Sequence[Tensor], select_topk: Sequence[float], tells: Sequence[Tell], form: _Form
) -> list[Tensor]:
    whole = Group(base, tuned)
    if whole.unchanged():
        return [base.clone() for _ in select_topk]
    results: dict[int, Tensor] = {}
    for selection in _selections(whole, select_topk, of_nonzero=form.of_nonzero):
        eta = [form.weigh(energy) for energy in _energies(selection)]
        for (number, cut), weights in zip(selection.cuts.items(), eta, strict=True):
            tells[number]("eta", weights)
            tells[number]("selected", [(cut.taken if cut else selection.group.numel) / base.numel()])
        if not form.selects:
            selection = _Selection(whole, None, dict.fromkeys(selection.cuts))  # noqa: PLW2901
        for number, values in zip(selection.cuts, _merge(selection, eta, form), strict=True):
            results[number] = values if selection.index is None else _scattered(base, selection.index, values)
    return [results[number].view(base.shape) for number in range(len(select_topk))]


def _selections(whole: Group, shares: Sequence[float], *, of_nonzero: bool) -> list[_Selection]:
    """Select for every τ at once.

    Few elements are gathered, those of the largest such τ for all, and merged apart from the rest; with many, masking
    the rest is faster.
    """
    few = [number for number, share in enumerate(shares) if _is_few(share, whole.numel)]
    many = [number for number, share in enumerate(shares) if share < 1 and number not in few]
    rest: dict[int, Cut | None] = {number: None for number, share in enumerate(shares) if share >= 1}
    found = []
    if few:
        index, wanted = top(whole, _variance, [shares[number] for number in few], of_nonzero=of_nonzero)
        part = whole.at(index)
        inside: dict[int, Cut | None] = dict.fromkeys(few)
        if less := {number: want / part.numel for number, want in zip(few, wanted, strict=True) if want < part.numel}:
            inside |= dict(zip(less, cuts(part, _variance, [list(less.values())])[0], strict=True))
        found.append(_Selection(part, index, inside))
    if many:
        [ends] = cuts(whole, _variance, [[shares[number] for number in many]], of_nonzero=of_nonzero)
        rest |= dict(zip(many, ends, strict=True))
    return [*found, _Selection(whole, None, rest)] if rest else found


def _is_few(share: float, numel: int) -> bool:
    """Tell whether the elements of a share had better be gathered: where they are few, or take little memory."""
    return share <= _FEW or (share <= _NOT_MANY and share * numel <= _GATHERED)


def _energies(selection: _Selection) -> list[list[float]]:
    """Return, for each cut, Σ dₖ² of each source."""
    energies = [[0.0] * len(selection.group.tuned) for _ in selection.cuts]
    takers = [Taker(cut) if cut else None for cut in selection.cuts.values()]
    for _, start, deltas in selection.group.blocks():
        variance = _variance(start, deltas)[0] if any(takers) else start
        squares = [delta.mul_(delta) for delta in deltas]
        product = torch.empty_like(start)
        for energy, taker in zip(energies, takers, strict=True):
            mask = taker.mask(variance, out=start) if taker else None
            for k, square in enumerate(squares):
                # In float64 it does not matter to η with what else these elements are gathered.
                part = square if mask is None else torch.mul(square, mask, out=product)
                energy[k] += float(part.sum(dtype=torch.float64))
    return energies


def _merge(selection: _Selection, eta: Sequence[Sequence[float]], form: _Form) -> list[Tensor]:
    """Return, for each cut, θ₀ + Σₖ ηₖ dₖ′ of the group, perhaps divided by the weights of what stays."""
    merged = [fresh(selection.group.base) for _ in selection.cuts]
    takers = [Taker(cut) if cut else None for cut in selection.cuts.values()]
    for place, start, deltas in selection.group.blocks():
        variance = _variance(start, deltas)[0] if any(takers) else start
        stays = _erase(deltas, zero_is_positive=form.average is not None)
        less, mask, zero = torch.empty_like(start), torch.empty_like(start), torch.zeros_like(start)
        for into, taker, weights in zip(merged, takers, eta, strict=True):
            torch.mul(deltas[0], -weights[0], out=less)
            for delta, weight in zip(deltas[1:], weights[1:], strict=True):
                less.add_(delta, alpha=-weight)
            if form.average is not None:
                less.div_(_total(stays, weights, least=form.average))
            # The sum with 0 makes -0 a 0, which leaves a base of -0 as it is.
            torch.addcmul(zero, less, taker.mask(variance, out=mask), out=less) if taker else less.add_(0.0)
            into[place].copy_(torch.sub(start, less, out=less))
    return merged


def _erase(deltas: Sequence[Tensor], *, zero_is_positive: bool) -> list[Tensor]:
    """Erase from the deltas what disagrees with the sign of their sum; return 1 for each where it stays, else 0."""
    total = deltas[0].clone()
    for delta in deltas[1:]:
        total.add_(delta)
    if zero_is_positive:
        total.ge_(0).mul_(2).sub_(1)
    stays = []
    for delta in deltas:
        product = delta.sign().mul_(total)  # of signs: a product of two small numbers would underflow
        stays.append(torch.gt(product, 0, out=product))
        delta.mul_(product)
    return stays


def _total(stays: Sequence[Tensor], weights: Sequence[float], *, least: float) -> Tensor:
    """Return the weights of what stays; ``least`` where they are less, or 1 where it is 0 and nothing stays."""
    total = stays[0] * weights[0]
    for one, weight in zip(stays[1:], weights[1:], strict=True):
        total.add_(one, alpha=weight)
    return total.clamp_(min=least) if least else total.masked_fill_(total == 0, 1.0)


def _scattered(base: Tensor, index: Tensor, values: Tensor) -> Tensor:
    flat = fresh(base).copy_(base.reshape(-1))
    for place, part in zip(torch.split(index, _PART), torch.split(values, _PART), strict=True):
        flat.index_copy_(0, place.long(), part)  # which takes no 32-bit indices
    return flat


def _variance(start: Tensor, deltas: Sequence[Tensor]) -> list[Tensor]:
    """Return n² times the population variance across the n sources: the sum of their squared differences.

    It is 0 exactly where all deltas are equal. Sums of whole blocks: ``torch.var`` over a stacked dimension of size 3
    takes ten times as long on a CPU.
    """
    squares, difference = torch.zeros_like(start), torch.empty_like(start)
    for k, delta in enumerate(deltas):
        for other in deltas[:k]:
            torch.sub(delta, other, out=difference)
            squares.addcmul_(difference, difference)
    return [squares]
