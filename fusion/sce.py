"""SCE (Select, Calculate, Erase) in its three published forms.

Wan et al. 2024, FuseChat, arXiv:2408.07990. The paper's Algorithm 1, the code that made FuseChat-7B-v2.0 and FuseO1
(fanqiwan/FuseAI@7d9a307), and mergekit 0.1.5's are three different methods; all compute in float32 here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fusion.blocks import Group, Masked, cuts, top
from fusion.params import Share, Tell, silent

_MERGEKIT_LEAST = 1e-6  # below this sum of mean squares mergekit weighs equally; and the least it divides by
_PART = 1 << 20
_FEW = 0.25  # the share up to which gathering the selected is faster than masking the rest


def sce(base: Tensor, tuned: Sequence[Tensor], *, select_topk: Share = 0.1, tell: Tell = silent) -> Tensor:
    """Select, Calculate, Erase:  θ = θ₀ + Σₖ ηₖ dₖ′, Algorithm 1 of the FuseChat paper.

    Wan et al. 2024, arXiv:2408.07990. With δₖ = θₖ − θ₀, for each tensor: *select* the ⌊τ·numel⌋ elements whose variance across the sources is largest
    (τ is ``select_topk``; of equal variances the lowest flat index goes first), which makes δₖ into dₖ; *calculate*
    ηₖ = Σ dₖ² / Σⱼ Σ dⱼ²; *erase* in every element the dₖ whose sign differs from that of Σₖ dₖ, which makes dₖ into
    dₖ′. Nothing is renormalised afterwards, as in the paper and unlike the public code. Elements that were not
    selected keep the base's bits. Tells ``eta`` a source, and the share of ``selected`` elements.
    """
    return sce_grid(base, tuned, select_topk=(select_topk,), tells=(tell,))[0]


def sce_fusechat(base: Tensor, tuned: Sequence[Tensor], *, select_topk: Share = 1.0, tell: Tell = silent) -> Tensor:
    """SCE as the code that made FuseChat-7B-v2.0 and FuseO1 has it:  θ = θ₀ + Σₖ ηₖ δₖ′ / Σₖ ηₖ [δₖ′ ≠ 0].

    The selected elements only give the weights ηₖ; signs are elected, and deltas merged, over all elements: in each,
    the δₖ whose sign differs from that of Σₖ δₖ are erased (a zero counts as positive), and the sum is divided by the
    weights of those that stay. τ is ``select_topk``, of the elements whose variance is not zero; with none selected
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

    def merge(selected: Selected, tell: Tell) -> None:
        energy = _energy(selected)
        eta = [e / (sum(energy) or 1.0) for e in energy]
        tell("eta", eta)
        for place, start, deltas in selected.blocks():
            total, less = _sum(deltas), torch.zeros_like(start)
            for delta, weight in zip(deltas, eta, strict=True):
                less.add_(delta.mul_(_agrees(delta, total)), alpha=-weight)
            selected.put(place, start.sub_(less))  # -0.0 less 0.0 stays -0.0, and plus 0.0 it would not

    return _grid(base, tuned, select_topk, tells, merge, of_nonzero=False)


def sce_mergekit_grid(
    base: Tensor, tuned: Sequence[Tensor], *, select_topk: Sequence[float], tells: Sequence[Tell]
) -> list[Tensor]:
    """Return ``sce_mergekit`` for each τ; the thresholds for all of them come from one pass."""

    def merge(selected: Selected, tell: Tell) -> None:
        energy = _energy(selected)
        light = sum(energy) / base.numel() < _MERGEKIT_LEAST
        eta = [1 / len(energy) if light else e / sum(energy) for e in energy]
        tell("eta", eta)
        _average(selected, eta, least=_MERGEKIT_LEAST)

    return _grid(base, tuned, select_topk, tells, merge, of_nonzero=True)


def sce_fusechat_grid(
    base: Tensor, tuned: Sequence[Tensor], *, select_topk: Sequence[float], tells: Sequence[Tell]
) -> list[Tensor]:
    """Return ``sce_fusechat`` for each τ; the thresholds for all of them come from one pass."""
    merged = []

    def merge(selected: Selected, tell: Tell) -> None:
        energy = _energy(selected)
        eta = [e / sum(energy) if sum(energy) else 1 / len(energy) for e in energy]
        tell("eta", eta)
        whole = Group(base, tuned)
        _average(whole, eta, least=0.0)
        merged.append(whole.result())

    unselected = _grid(base, tuned, select_topk, tells, merge, of_nonzero=True)
    return merged or unselected


Selected = Group | Masked


def _grid(
    base: Tensor,
    tuned: Sequence[Tensor],
    select_topk: Sequence[float],
    tells: Sequence[Tell],
    merge: Callable[[Selected, Tell], None],
    *,
    of_nonzero: bool,
) -> list[Tensor]:
    """Select for every τ at once, then have what each selects merged.

    Few elements are gathered and merged apart from the rest; with many, masking the rest is faster.
    """
    whole = Group(base, tuned)
    if whole.unchanged():
        return [base.clone() for _ in select_topk]
    few = [share for share in select_topk if share <= _FEW]
    many = [share for share in select_topk if _FEW < share < 1]
    chosen = dict(zip(few, top(whole, _variance, few, of_nonzero=of_nonzero), strict=True)) if few else {}
    cut = dict(zip(many, cuts(whole, _variance, [many], of_nonzero=of_nonzero)[0], strict=True)) if many else {}
    merged = []
    for share, tell in zip(select_topk, tells, strict=True):
        if share in chosen:
            part = whole.at(chosen[share])
            merge(part, tell)
            merged.append(_scattered(base, chosen[share], part.merged))
            tell("selected", [part.numel / base.numel()])
        else:
            dense = Group(base, tuned)
            selected = Masked(dense, _variance, cut[share]) if share < 1 else dense
            merge(selected, tell)
            merged.append(dense.result())
            tell("selected", [selected.taken / base.numel() if isinstance(selected, Masked) else 1.0])
    return merged


def _scattered(base: Tensor, index: Tensor, values: Tensor) -> Tensor:
    merged = base.clone(memory_format=torch.contiguous_format)
    flat = merged.view(-1)
    for place, part in zip(torch.split(index, _PART), torch.split(values, _PART), strict=True):
        flat.index_copy_(0, place.long(), part)  # which takes no 32-bit indices
    return merged


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


def _sum(deltas: Sequence[Tensor]) -> Tensor:
    total = deltas[0].clone()
    for delta in deltas[1:]:
        total.add_(delta)
    return total


def _energy(group: Selected) -> list[float]:
    """Return Σ δₖ² of each source."""
    energy = [0.0] * len(group.tuned)
    for _, _, deltas in group.blocks():
        for k, delta in enumerate(deltas):
            energy[k] += float(torch.dot(delta, delta))
    return energy


def _average(group: Selected, eta: Sequence[float], *, least: float) -> None:
    """Put θ₀ + Σₖ ηₖ δₖ′ / Σₖ ηₖ [δₖ′ ≠ 0], where δₖ′ is δₖ with the elements of the minority sign erased.

    A sum of 0 elects the positive sign. Where the weights of what stays sum to less than ``least``, that divides.
    """
    for place, start, deltas in group.blocks():
        majority = _sum(deltas).ge_(0).mul_(2).sub_(1)  # +1 or -1
        update, weights = torch.zeros_like(start), torch.zeros_like(start)
        for delta, weight in zip(deltas, eta, strict=True):
            stays = _agrees(delta, majority)
            update.add_(delta.mul_(stays), alpha=-weight)
            weights.add_(stays, alpha=weight)
        weights = weights.clamp_(min=least) if least else weights.masked_fill_(weights == 0, 1.0)
        group.put(place, start.sub_(update.div_(weights)))


def _agrees(delta: Tensor, total: Tensor) -> Tensor:
    """Return 1 where both have the same sign, and 0 where not or where one is 0."""
    product = delta.sign().mul_(total)  # of signs: a product of two small numbers would underflow
    return torch.gt(product, 0, out=product)
