"""Methods whose result is a linear combination of whole tensors.

The coefficients are given (``linear``, ``passthrough``, ``slerp``'s t) or come from the tensors' geometry: norms and
angles, read off the Gram matrix of a first pass. ``base`` is θ₀ and ``tuned`` the θₖ, all of one shape (*s,); storage
dtypes may differ. Arithmetic is in float32 with sums in float64; the result has the base's dtype and device. NaN and
infinities raise NotFinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fusion.blocks import Group, NotFinite, arithmetic, same
from fusion.params import Part, Scale, Switch, Tell, Weights, per_source, shares_of, silent

_PARALLEL = 0.9995  # above this |cos|, mergekit's slerp interpolates linearly
_EPS = 1e-8  # added to norms, or the least one, as in mergekit
_OPPOSITE = 1e-6  # a mean direction as short as float32's rounding has no direction
_LEAST = 2.0**-126  # float32's smallest normal number: what 0 is divided by
_SINGULAR = 1e-6  # model stock's denominator below which mergekit keeps the base


def linear(
    base: Tensor, tuned: Sequence[Tensor], *, weights: Weights = 1.0, normalize: Switch = True, tell: Tell = silent
) -> Tensor:
    """Average the sources:  θ = Σₖ wₖ θₖ / Σₖ wₖ, without the division where ``normalize`` is false.

    Wortsman et al. 2022, model soups, arXiv:2203.05482. Equal weights unless given. The base lends shape and dtype
    only: list it among the sources to have it in the mean. Where all sources agree on the tensor, it is theirs, bit
    for bit, unless ``normalize`` is false. Tells the ``weight`` of each source, after normalisation.
    """
    chosen = _weights(weights, len(tuned), normalize=normalize)
    tell("weight", chosen)
    if normalize and _agree(tuned):
        return _copy(base, tuned[0])
    return _weighted(base, tuned, chosen)


def passthrough(base: Tensor, tuned: Sequence[Tensor], *, scale: Scale = 1.0, tell: Tell = silent) -> Tensor:
    """Take the one source's tensor:  θ = λ θ₁, where λ is ``scale``; bit for bit where it is 1.

    As in mergekit 0.1.5. The base lends shape and dtype only. Tells the ``weight``, which is λ.
    """
    [source] = tuned
    tell("weight", [scale])
    return _copy(base, source) if scale == 1 else _weighted(base, tuned, [scale])


def slerp(base: Tensor, tuned: Sequence[Tensor], *, t: Part, tell: Tell = silent) -> Tensor:
    """Go from the base to the one source on a great arc:  θ = (sin((1−t)φ) θ₀ + sin(tφ) θ₁) / sin φ.

    Shoemake 1985, doi:10.1145/325165.325242, as mergekit 0.1.5 has it: φ is the angle between the tensors, each taken
    as one vector; their lengths stay as they are; where |cos φ| > 0.9995 it is θ = (1−t) θ₀ + t θ₁, as it is of
    ordinary fine-tunes. t = 0 is the base and t = 1 the source, bit for bit. Tells ``t`` and the ``angle`` φ in
    radians.
    """
    [source] = tuned
    group = Group(base, tuned)
    cosine = _cosine(group)
    tell("t", [t])
    tell("angle", [math.acos(cosine)])
    if t == 0 or group.unchanged():
        return base.clone()
    if t == 1:
        return _copy(base, source)
    if abs(cosine) > _PARALLEL:
        both, one = 1.0, t
    else:
        angle = math.acos(cosine)
        one = math.sin(t * angle) / math.sin(angle)
        both = math.sin((1 - t) * angle) / math.sin(angle) + one
    for place, start, [delta] in group.blocks():
        group.put(place, start.mul_(both).add_(delta, alpha=one))  # a θ₀ + b θ₁ = (a + b) θ₀ + b δ₁
    return group.result()


def multislerp(
    base: Tensor,
    tuned: Sequence[Tensor],
    *,
    weights: Weights = 1.0,
    normalize: Switch = True,
    origin: Literal["base", "zero"] = "base",
    tell: Tell = silent,
) -> Tensor:
    """Average directions and lengths apart:  θ = o + (Σₖ wₖ |vₖ|) · m / |m|, where m = Σₖ wₖ vₖ / |vₖ|.

    vₖ = θₖ − o, each tensor taken as one vector; the origin o is the base or, as mergekit has it without a base,
    zero. mergekit 0.1.5 (goddard.blog, "Multi-SLERP") writes this as an exponential map at m / |m| of the mean of
    tangent vectors, which is zero at that very point, whatever the weights. Where |m| is 0, as of two opposite
    vectors, θ = o + Σₖ wₖ vₖ (mergekit stops there with three sources or more, as it does of a tensor that none
    changed). A single source is taken as it is. The weights are divided by their sum unless ``normalize`` is false.
    Tells the ``weight`` of each source so divided, and the ``length`` of each vₖ.
    """
    chosen = _weights(weights, len(tuned), normalize=normalize)
    group = Group(base if origin == "base" else torch.zeros_like(base), tuned)
    gram = _gram(group)
    length = [math.sqrt(gram[k][k]) for k in range(len(tuned))]
    tell("weight", chosen)
    tell("length", length)
    if group.unchanged():
        return group.base.clone().view(base.shape)
    if len(tuned) == 1 or (normalize and _agree(tuned)):
        return _copy(base, tuned[0])
    direction = [w / (norm + _EPS) for w, norm in zip(chosen, length, strict=True)]
    mean = _norm(group, direction, gram)
    if mean < _OPPOSITE * math.fsum(map(abs, chosen)):
        return _moved(group, chosen)
    far = math.fsum(w * norm for w, norm in zip(chosen, length, strict=True))
    return _moved(group, [d * far / mean for d in direction])


def model_stock(base: Tensor, tuned: Sequence[Tensor], *, filter_wise: Switch = False, tell: Tell = silent) -> Tensor:
    """Go from the base towards the mean of the sources:  θ = θ₀ + t · (1/n) Σₖ δₖ, t = n cos φ / (1 + (n−1) cos φ).

    Jang et al. 2024, arXiv:2403.19522. cos φ is the mean cosine between two of the n deltas δₖ = θₖ − θ₀, of the
    whole tensor or, with ``filter_wise``, of each row of its last dimension (a vector is one row). As in mergekit
    0.1.5, t is not held within [0, 1], and 0 where its denominator is below 1e-6. Unlike there, a cosine is one
    however short the deltas (mergekit divides by at least 1e-6, so that of deltas whose lengths multiply to less, as
    a light fine-tune's rows do, t goes to 0 and nothing is merged); with a zero delta it is 0. Tells ``t`` and the
    ``cosine``, or their means over the rows.
    """
    row = base.shape[-1] if filter_wise and base.dim() > 1 else base.numel()
    group = Group(base, tuned, row=max(row, 1) if filter_wise else 1)
    if group.unchanged():
        return base.clone()
    if row == base.numel():
        t, cosine = _stock([[torch.tensor([g], dtype=torch.float64) for g in line] for line in _gram(group)])
        merged = _moved(group, [float(t) / len(tuned)] * len(tuned))
    else:
        t, cosine = _stock_by_row(group, row)
        merged = group.result()
    tell("t", [float(t.mean())])
    tell("cosine", [float(cosine.mean())])
    return merged


def varm(
    base: Tensor,
    tuned: Sequence[Tensor],
    *,
    granularity: Literal["matrix", "layer", "model", "element"] = "matrix",
    energies: Sequence[float] | None = None,
    tell: Tell = silent,
) -> Tensor:
    """Weigh the sources by how far each moved (VaRM):  θ = Σₖ Wₖ θₖ, Wₖ = E[δₖ²] / Σⱼ E[δⱼ²], δₖ = θₖ − θ₀.

    Wan et al. 2024, FuseChat, arXiv:2402.16107v1, Eq. 7, which the code published with it does not compute. The mean
    is over the tensor (``matrix``, the method), over all tensors of its layer or of the model, whose Σ δₖ² are then
    ``energies`` (see the function of that name; without them the tensor is its own layer), or each element has
    weights of its own (``element``). Where no source moved, the weights are equal. Tells the ``weight`` of each
    source; of ``element``, the mean.
    """
    group = Group(base, tuned)
    if granularity == "element":
        return _by_element(group, tell)
    moved = _energies(group) if energies is None or granularity == "matrix" else energies
    total = math.fsum(moved)
    weights = [e / total if total else 1 / len(tuned) for e in moved]
    tell("weight", weights)
    return base.clone() if group.unchanged() else _moved(group, weights)


def energies(base: Tensor, tuned: Sequence[Tensor]) -> list[float]:
    """Return Σ (θₖ − θ₀)² of each source; over the tensors of a layer they add up to what ``varm`` weighs by."""
    return _energies(Group(base, tuned))


def _weights(weights: float | Sequence[float], sources: int, *, normalize: bool) -> list[float]:
    chosen = per_source(weights, sources)
    return shares_of(chosen) if normalize else chosen


def _agree(tuned: Sequence[Tensor]) -> bool:
    return all(same(tuned[0].reshape(-1), source.reshape(-1)) for source in tuned[1:])


def _copy(base: Tensor, source: Tensor) -> Tensor:
    """Return the source in the base's dtype, without rounding where it has it."""
    _check([source])
    return source.detach().to(dtype=base.dtype, device=base.device, copy=True)


def _check(tuned: Sequence[Tensor]) -> None:
    for k, source in enumerate(tuned):
        if not math.isfinite(source.sum().item()) and not source.isfinite().all():  # a sum may overflow without one
            raise NotFinite(k)


def _weighted(base: Tensor, tuned: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return Σₖ wₖ θₖ, without a look at θ₀."""
    group, given = Group(base, tuned), np.array(weights, np.float32)
    for place, _, sources in group.stretches():
        out = group.merged[place] if group.rounds else torch.empty(sources[0].shape, device=base.device)
        if not arithmetic(base.device).weighted(sources, given, out):
            _check([source[place] for source in group.tuned])
        if not group.rounds:
            group.put(place, out)
    return group.result()


def _moved(group: Group, weights: Sequence[float]) -> Tensor:
    """Return θ₀ + Σₖ wₖ δₖ."""
    for place, start, deltas in group.blocks():
        for delta, weight in zip(deltas, weights, strict=True):
            start.add_(delta, alpha=weight)
        group.put(place, start)
    return group.result()


def _inner(one: Tensor, other: Tensor) -> float:
    """Return Σ one · other to seven digits: torch.dot has five of a block of bfloat16's short numbers."""
    return float((one * other).sum())


def _energies(group: Group) -> list[float]:
    total = [0.0] * len(group.tuned)
    for _, _, deltas in group.blocks():
        for k, delta in enumerate(deltas):
            total[k] += _inner(delta, delta)
    return total


def _gram(group: Group) -> list[list[float]]:
    """Return the inner products of all pairs of deltas."""
    sources = range(len(group.tuned))
    gram = [[0.0] * len(sources) for _ in sources]
    for _, _, deltas in group.blocks():
        for i in sources:
            for j in range(i + 1):
                gram[i][j] += _inner(deltas[i], deltas[j])
    return [[gram[max(i, j)][min(i, j)] for j in sources] for i in sources]


def _cosine(group: Group) -> float:
    """Return the cosine of the angle between the base and the one source, as mergekit has it."""
    base, source, both = 0.0, 0.0, 0.0
    for _, start, [delta] in group.blocks():
        other = delta.add_(start)
        base += _inner(start, start)
        source += _inner(other, other)
        both += _inner(start, other)
    one, other_one = (norm if norm > _EPS else 1.0 for norm in (math.sqrt(base), math.sqrt(source)))
    return max(-1.0, min(1.0, both / one / other_one))


def _norm(group: Group, weights: Sequence[float], gram: Sequence[Sequence[float]]) -> float:
    """Return |Σₖ wₖ δₖ|."""
    terms = [w * v * gram[i][j] for i, w in enumerate(weights) for j, v in enumerate(weights)]
    if (square := math.fsum(terms)) > 1e-3 * math.fsum(map(abs, terms)):
        return math.sqrt(square)
    square = 0.0  # the terms cancel nearly, and with them the digits: sum before squaring
    for _, _, deltas in group.blocks():
        total = torch.zeros_like(deltas[0])
        for delta, weight in zip(deltas, weights, strict=True):
            total.add_(delta, alpha=weight)
        square += _inner(total, total)
    return math.sqrt(square)


def _stock(gram: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
    """Return t and the mean cosine of each row, given the inner products (rows,) of its deltas i and j ≤ i."""
    n = len(gram)
    cosines = [
        (gram[i][j] / (gram[i][i] * gram[j][j]).sqrt()).nan_to_num(0.0, 0.0, 0.0).clamp(-1, 1)
        for i in range(n)
        for j in range(i)
    ]
    cosine = torch.stack(cosines).mean(dim=0)
    divisor = 1 + (n - 1) * cosine
    return torch.where(divisor.abs() < _SINGULAR, 0.0, n * cosine / divisor), cosine


def _stock_by_row(group: Group, row: int) -> tuple[Tensor, Tensor]:
    """Put the merged rows, and return t and the mean cosine of each."""
    found = []
    for place, start, deltas in group.blocks():
        rows = [delta.view(-1, row) for delta in deltas]
        gram = [[(one * other).sum(dim=1).double() for other in rows[: i + 1]] for i, one in enumerate(rows)]
        found.append(_stock(gram))
        mean = rows[0]
        for other in rows[1:]:
            mean.add_(other)
        t = found[-1][0].float().div_(len(rows)).unsqueeze(1)  # (rows, 1)
        group.put(place, start.add_(mean.mul_(t).view(-1)))
    ts, cosines = zip(*found, strict=True)
    return torch.cat(ts), torch.cat(cosines)


def _by_element(group: Group, tell: Tell) -> Tensor:
    """Return θ₀ + Σₖ δₖ³ / Σⱼ δⱼ² in each element, and tell the mean weights."""
    sums, still = [0.0] * len(group.tuned), 0
    for place, start, deltas in group.blocks():
        total = torch.zeros_like(start)
        for delta in deltas:
            total.addcmul_(delta, delta)
        still += total.numel() - int(torch.count_nonzero(total))
        total.clamp_(min=_LEAST)
        for k, delta in enumerate(deltas):
            weight = (delta * delta).div_(total)
            sums[k] += float(weight.sum())
            start.addcmul_(delta, weight)
        group.put(place, start)
    n = len(sums)
    tell("weight", [(s + still / n) / group.numel if group.numel else 1 / n for s in sums])
    return group.base.clone().view(group.shape) if group.unchanged() else group.result()
