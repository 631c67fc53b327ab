"""Merge methods: tensors in, tensor out; a method's keyword arguments are its configuration.

``base`` is θ₀ and ``tuned`` the θₖ, all of one shape (*s,); storage dtypes may differ. Arithmetic is in float32
whatever the storage dtype; the result has the base's dtype and device. Where no source changed a tensor, the
result is the base's, bit for bit. ``tell`` hears the coefficients that were used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from torch import Tensor

from fusion.averages import linear, model_stock, multislerp, passthrough, slerp, varm
from fusion.deltas import (
    breadcrumbs,
    breadcrumbs_ties,
    dare_linear,
    dare_ties,
    della,
    della_linear,
    keep_ranges,
    task_arithmetic,
    ties,
    ties_grid,
)
from fusion.errors import RecipeError, did_you_mean, listed
from fusion.params import check_value, parameters, per_source, shares_of
from fusion.sce import sce, sce_fusechat, sce_fusechat_grid, sce_grid, sce_mergekit, sce_mergekit_grid

METHODS: dict[str, Callable[..., Tensor]] = {
    "breadcrumbs": breadcrumbs,
    "breadcrumbs_ties": breadcrumbs_ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
    "della": della,
    "della_linear": della_linear,
    "linear": linear,
    "model_stock": model_stock,
    "multislerp": multislerp,
    "passthrough": passthrough,
    "sce": sce,
    "sce_fusechat": sce_fusechat,
    "sce_mergekit": sce_mergekit,
    "slerp": slerp,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "varm": varm,
}

# What computes several values of one parameter from one pass: METHODS of each, with a sequence of values and of tells.
GRIDS: dict[str, tuple[str, Callable[..., list[Tensor]]]] = {
    "sce": ("select_topk", sce_grid),
    "sce_fusechat": ("select_topk", sce_fusechat_grid),
    "sce_mergekit": ("select_topk", sce_mergekit_grid),
    "ties": ("density", ties_grid),
}

# Those that draw at random, from the argument ``generator``.
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")

# Those that elect a sign, and divide by the weights of what agrees: these may be of both signs.
ELECTING = ("breadcrumbs_ties", "dare_ties", "della", "ties")

# Variance across a single model is zero everywhere, and one delta has no angle to another.
FEWEST_SOURCES = {"model_stock": 2, "sce": 2, "sce_fusechat": 2, "sce_mergekit": 2}
MOST_SOURCES = {"passthrough": 1, "slerp": 1}


def check_params(method: str, params: Mapping[str, object], *, sources: int) -> None:
    """Hold ``params`` against the method's signature; RecipeError says what is wrong and what would be right."""
    if method not in METHODS:
        raise RecipeError(
            f"there is no merge method {method!r}; there are {listed(METHODS)}.{did_you_mean(method, METHODS)}"
        )
    if sources < (fewest := FEWEST_SOURCES.get(method, 1)):
        raise RecipeError(f"merge method {method!r} needs at least {fewest} sources, and there are {sources}; add some")
    if sources > (most := MOST_SOURCES.get(method, sources)):
        raise RecipeError(f"merge method {method!r} takes {most} source beside the base, and there are {sources}")
    known = parameters(METHODS[method])
    for name in params:
        if name not in known:
            raise RecipeError(
                f"merge method {method!r} takes no {name!r}; it takes {listed(known)}.{did_you_mean(name, known)}"
            )
    for name, parameter in known.items():
        if name not in params:
            if parameter.required:
                raise RecipeError(f"merge method {method!r} needs {name!r}; it takes {listed(known)}")
        elif params[name] is not None or not parameter.optional:
            check_value(f"{name!r} of merge method {method!r}", params[name], parameter.kind, sources=sources)
    _check_sum(method, params, sources=sources)
    if method in ("della", "della_linear"):
        keep_ranges(**{key: params[key] for key in ("density", "epsilon") if key in params}, sources=sources)  # type: ignore[arg-type]


def _check_sum(method: str, params: Mapping[str, object], *, sources: int) -> None:
    default = inspect.signature(METHODS[method]).parameters.get("normalize")
    if method in ELECTING or default is None or not params.get("normalize", default.default):
        return
    try:
        shares_of(per_source(params.get("weights", 1.0), sources))  # type: ignore[arg-type]
    except RecipeError as error:
        raise RecipeError(f"merge method {method!r}: {error}") from None
