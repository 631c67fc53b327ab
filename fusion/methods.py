"""Merge methods: tensors in, tensor out; a method's keyword arguments are its configuration.

``base`` is θ₀ and ``tuned`` the θₖ, all of one shape (*s,); storage dtypes may differ. Arithmetic is in float32
whatever the storage dtype; the result has the base's dtype and device. Where no source changed a tensor, the
result is the base's, bit for bit.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Annotated, get_type_hints

import numpy as np
import torch
from torch import Tensor

from fusion.errors import RecipeError

Weights = Annotated[Sequence[float], "one finite number a source"]
Share = Annotated[float, "a number in (0, 1]"]
Scale = Annotated[float, "a finite number"]
Switch = Annotated[bool, "true or false"]


def linear(
    base: Tensor, tuned: Sequence[Tensor], *, weights: Weights | None = None, normalize: Switch = True
) -> Tensor:
    """Average the sources:  θ = Σₖ wₖ θₖ / Σₖ wₖ, without the division where ``normalize`` is false.

    Wortsman et al. 2022, arXiv:2203.05482. Equal weights unless given. The base lends shape and dtype only: list it
    among the sources to have it in the mean.
    """
    if normalize and all(_same(tuned[0], source) for source in tuned[1:]):
        return tuned[0].to(dtype=base.dtype, device=base.device, copy=True)  # no rounding where all agree
    chosen = [1.0] * len(tuned) if weights is None else [float(w) for w in weights]
    total = math.fsum(chosen) if normalize else 1.0
    mean = torch.zeros_like(base, dtype=torch.float32)
    for weight, source in zip(chosen, tuned, strict=True):
        mean.add_(source.to(mean), alpha=weight / total)
    return mean.to(base.dtype)


def task_arithmetic(base: Tensor, tuned: Sequence[Tensor], *, weights: Weights, scale: Scale = 1.0) -> Tensor:
    """Add weighted task vectors to the base:  θ = θ₀ + λ · Σₖ wₖ (θₖ − θ₀).

    Ilharco et al. 2023, arXiv:2212.04089. ``scale`` is λ; the weights are not normalised.
    """
    if all(_same(base, source) for source in tuned):
        return base.clone()
    start = base.float()
    update = torch.zeros_like(start)
    for weight, source in zip(weights, tuned, strict=True):
        update.add_(source.to(start) - start, alpha=float(weight))
    return start.add(update, alpha=float(scale)).to(base.dtype)


def sce(base: Tensor, tuned: Sequence[Tensor], *, select_topk: Share = 0.1) -> Tensor:
    """Select, Calculate, Erase:  θ = θ₀ + Σₖ ηₖ dₖ′, Algorithm 1 of the FuseChat paper.

    Wan et al. 2024, arXiv:2408.07990. With δₖ = θₖ − θ₀, for each tensor: *select* the ⌊τ·numel⌋ elements whose
    variance across the sources is largest (τ is ``select_topk``; of equal variances the lowest flat index goes
    first), which makes δₖ into dₖ; *calculate* ηₖ = Σ dₖ² / Σⱼ Σ dⱼ²; *erase* in every element the dₖ whose sign
    differs from that of Σₖ dₖ, which makes dₖ into dₖ′. Nothing is renormalised afterwards, as in the paper and
    unlike the public code. Elements that were not selected keep the base's bits.
    """
    if all(_same(base, source) for source in tuned):
        return base.clone()
    start = base.float()
    deltas = [source.to(start) - start for source in tuned]  # n × (*s,)
    chosen = _top(_variance(deltas).reshape(-1), _count(select_topk, base.numel()))  # (k,)
    picked = torch.stack([delta.reshape(-1)[chosen] for delta in deltas])  # (n, k)
    energy = picked.double().square().sum(dim=1)  # (n,)
    if not energy.any():
        return base.clone()
    eta = (energy / energy.sum()).float()
    kept = torch.where(picked.sign() == picked.sum(dim=0).sign(), picked, 0.0)
    update = (eta[:, None] * kept).sum(dim=0)  # (k,)
    merged = base.clone(memory_format=torch.contiguous_format)
    merged.view(-1)[chosen] = (start.reshape(-1)[chosen] + update).to(base.dtype)
    return merged


METHODS: dict[str, Callable[..., Tensor]] = {
    "linear": linear,
    "sce": sce,
    "task_arithmetic": task_arithmetic,
}

# Variance across a single model is zero everywhere, so there would be nothing to select by.
FEWEST_SOURCES = {"sce": 2}


def check_params(method: str, params: Mapping[str, object], *, sources: int) -> None:
    """Hold ``params`` against the method's signature; RecipeError says what is wrong and what would be right."""
    if method not in METHODS:
        raise RecipeError(
            f"there is no merge method {method!r}; there are {_listed(METHODS)}.{_nearest(method, METHODS)}"
        )
    if sources < (fewest := FEWEST_SOURCES.get(method, 1)):
        raise RecipeError(f"merge method {method!r} needs at least {fewest} sources, and there are {sources}; add some")
    hints = get_type_hints(METHODS[method], include_extras=True)
    known = {
        name: parameter
        for name, parameter in inspect.signature(METHODS[method]).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    for name in params:
        if name not in known:
            raise RecipeError(
                f"merge method {method!r} takes no {name!r}; it takes {_listed(known)}.{_nearest(name, known)}"
            )
    for name, parameter in known.items():
        if name in params:
            _check_value(f"{name!r} of merge method {method!r}", params[name], hints[name], sources)
        elif parameter.default is parameter.empty:
            raise RecipeError(f"merge method {method!r} needs {name!r}; it takes {_listed(known)}")
    _check_sum(method, params)


def _check_value(what: str, value: object, hint: object, sources: int) -> None:
    if hint == Switch:
        if not isinstance(value, bool):
            raise RecipeError(f"{what} is {value!r}; it must be true or false")
    elif hint == Share:
        if not _is_number(value) or not 0 < float(value) <= 1:  # type: ignore[arg-type]
            raise RecipeError(f"{what} is {value!r}; it must be a number in (0, 1]")
    elif hint == Scale:
        if not _is_number(value):
            raise RecipeError(f"{what} is {value!r}; it must be a finite number")
    elif value is None and hint == Weights | None:
        pass
    elif not isinstance(value, Sequence) or isinstance(value, str) or not all(map(_is_number, value)):
        raise RecipeError(f"{what} is {value!r}; it must be a list of finite numbers, one a source")
    elif len(value) != sources:
        raise RecipeError(f"{what} has {len(value)} numbers for {sources} sources; give one a source")


def _check_sum(method: str, params: Mapping[str, object]) -> None:
    weights = params.get("weights")
    if method == "linear" and params.get("normalize", True) and weights and math.fsum(weights) == 0:  # type: ignore[arg-type]
        raise RecipeError(
            f"'weights' of merge method 'linear' are {weights!r} and sum to 0, by which normalize would divide; "
            "change them, or set normalize to false"
        )


def _is_number(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names))


def _nearest(name: str, names: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype:
        wide = torch.promote_types(one.dtype, other.dtype)
        one, other = one.to(wide), other.to(wide)
    return torch.equal(one, other.to(one.device))


def _variance(deltas: Sequence[Tensor]) -> Tensor:
    """Return the population variance over the list, element by element.

    Sums of whole tensors: ``torch.var`` over a stacked dimension of size 3 takes ten times as long on a CPU.
    """
    mean = torch.zeros_like(deltas[0])
    for delta in deltas:
        mean.add_(delta)
    mean.div_(len(deltas))
    squares = torch.zeros_like(mean)
    for delta in deltas:
        difference = delta - mean
        squares.addcmul_(difference, difference)
    return squares.div_(len(deltas))


def _count(share: float, numel: int) -> int:
    # 0.29 * 100 is 28.999…: what is a whole number in decimals must stay one.
    return min(numel, math.floor(share * numel * (1 + 1e-12)))


def _top(values: Tensor, k: int) -> Tensor:
    """Return the flat indices, ascending, of the ``k`` largest values; of equal ones the lowest indices."""
    if k >= values.numel():
        return torch.arange(values.numel(), device=values.device)
    if k == 0:
        return torch.empty(0, dtype=torch.long, device=values.device)
    place = values.numel() - k
    if values.device.type == "cpu":  # numpy's selection is ten times faster than torch.kthvalue
        threshold = torch.from_numpy(np.partition(values.numpy(), place)[place : place + 1])
    else:
        threshold = torch.kthvalue(values, place + 1).values
    chosen = values > threshold
    ties = (values == threshold).nonzero().squeeze(1)
    chosen[ties[: k - int(chosen.sum())]] = True
    return chosen.nonzero().squeeze(1)
