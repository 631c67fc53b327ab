"""mergekit's methods and their parameters by our names, and how mergekit finds a parameter's value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Pairs = list[tuple[str | None, Any]]
"""Filters and values in the order in which they are asked; the filter None is for every tensor."""

_REQUIRED = object()


class Mistake(Exception):
    """Something in mergekit's YAML that cannot be read, and its place."""

    def __init__(self, place: str, text: str):
        super().__init__(f"{text} ({place})")
        self.place, self.text = place, text


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter: its name here, mergekit's default, and whom it is for.

    ``scope``: "all" models at once; each "source"; or the "only" model that there is.
    """

    ours: str
    default: object = _REQUIRED
    scope: Literal["all", "source", "only"] = "all"
    kind: type = float
    values: Mapping[object, object] = field(default_factory=dict)  # mergekit's values by ours


@dataclass(frozen=True, slots=True)
class Method:
    """A merge method of mergekit's YAML: its name there and here, its parameters and what it merges."""

    name: str
    ours: str
    parameters: Mapping[str, Parameter]
    base: Literal["required", "optional", "ignored"] = "required"
    most: int | None = None  # models; without the base, where there must be one
    fixed: Mapping[str, object] = field(default_factory=dict)  # what we do only as mergekit does by default


_WEIGHT = {"weight": Parameter("weights", scope="source")}
_DENSITY = {"density": Parameter("density", 1.0, "source")}
_LAMBDA = {"lambda": Parameter("scale", 1.0)}
_TOPK = {"select_topk": Parameter("select_topk", 1.0)}
_RESCALE = {"rescale": Parameter("rescale", True, kind=bool, values={True: "l1", False: "none"})}
_GAMMA = {"gamma": Parameter("gamma", 0.01, "source")}
_EPSILON = {"epsilon": Parameter("epsilon", 0.15, "source")}
_NO_RESCALE = {"rescale": False}
_EPS = {"eps": 1e-8}


def _normalize(default: bool, name: str = "normalize") -> dict[str, Parameter]:
    return {name: Parameter("normalize", default, kind=bool)}


_SPARSE = {**_WEIGHT, **_DENSITY, **_LAMBDA}
_ALL = (
    Method("linear", "linear", {**_WEIGHT, **_normalize(True)}, base="ignored"),
    Method("slerp", "slerp", {"t": Parameter("t")}, most=1),
    Method("multislerp", "multislerp", {**_WEIGHT, **_normalize(True, "normalize_weights")}, "optional", fixed=_EPS),
    Method("task_arithmetic", "task_arithmetic", {**_WEIGHT, **_LAMBDA, **_normalize(False)}),
    Method("ties", "ties", {**_SPARSE, **_normalize(True)}, fixed=_NO_RESCALE),
    Method("dare_linear", "dare_linear", {**_SPARSE, **_normalize(False), **_RESCALE}),
    Method("dare_ties", "dare_ties", {**_SPARSE, **_normalize(False), **_RESCALE}),
    Method("della", "della", {**_SPARSE, **_EPSILON, **_normalize(True), **_RESCALE}),
    Method("della_linear", "della_linear", {**_SPARSE, **_EPSILON, **_normalize(False), **_RESCALE}),
    Method("breadcrumbs", "breadcrumbs", {**_SPARSE, **_GAMMA, **_normalize(False)}, fixed=_NO_RESCALE),
    Method("breadcrumbs_ties", "breadcrumbs_ties", {**_SPARSE, **_GAMMA, **_normalize(False)}, fixed=_NO_RESCALE),
    Method("model_stock", "model_stock", {"filter_wise": Parameter("filter_wise", False, kind=bool)}),
    Method("sce", "sce_mergekit", _TOPK),
    Method("passthrough", "passthrough", {"scale": Parameter("scale", 1.0, "only")}, base="ignored", most=1),
    # Ours, which mergekit does not have.
    Method("sce_fusechat", "sce_fusechat", _TOPK),
    Method("sce_mergekit", "sce_mergekit", _TOPK),
    Method("varm", "varm", {"granularity": Parameter("granularity", "matrix", kind=str)}),
)
METHODS = {method.name: method for method in _ALL}
UNSUPPORTED = ("nuslerp", "nearswap", "ram", "ramplus_tl", "arcee_fusion", "karcher")
USED_BY_SOME = {name for method in _ALL for name in (*method.parameters, *method.fixed)}


def chain(name: str, parameter: Parameter, scopes: Sequence[tuple[Mapping[str, Any], str]]) -> Pairs:
    """Return what mergekit asks for a parameter's value, in its order: each scope's filters, then the default."""
    found: Pairs = []
    for settings, place in scopes:
        if name in settings:
            found += _pairs(settings[name], parameter, f"{place}.{name}")
            if None in (filters := [text for text, _ in found]):
                return found[: filters.index(None) + 1]
    if parameter.default is not _REQUIRED:
        return [*found, (None, _ours(parameter, parameter.default))]
    if not found and scopes[0][1] == "base_model.parameters":
        raise Mistake(
            "base_model", f"mergekit averages the base_model in, and it has no {name}; list it among the models with "
            "one, or leave base_model out"
        )  # fmt: skip
    if not found:
        raise Mistake(scopes[0][1], f"{name} is missing, which the merge method needs; give it here or for all models")
    return found


def constant(value: object) -> str:
    """Return a value as YAML has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _pairs(given: Any, parameter: Parameter, place: str) -> Pairs:
    if isinstance(given, Mapping):
        given = [given]
    if isinstance(given, list) and given and all(isinstance(one, Mapping) for one in given):
        return [_conditional(one, parameter, f"{place}[{i}]") for i, one in enumerate(given)]
    return [] if given == [] else [(None, _plain(given, parameter, place))]


def _conditional(given: Mapping[str, Any], parameter: Parameter, place: str) -> tuple[str | None, Any]:
    if "value" not in given or set(given) - {"value", "filter"}:
        raise Mistake(
            place, f"a value for some tensors has the keys filter and value, not {', '.join(map(str, given))}"
        )
    text = given.get("filter")
    if text is not None and not isinstance(text, str):
        raise Mistake(place, f"the filter {text!r} must be text that occurs in the tensors' names; put it in quotes")
    return (None if text in (None, "*", "") else text), _plain(given["value"], parameter, place)


def _plain(given: Any, parameter: Parameter, place: str) -> Any:
    """Return a constant, or a gradient of numbers."""
    if not isinstance(given, list):
        return _ours(parameter, _read(given, parameter.kind, place))
    if len(given) == 1:
        return _plain(given[0], parameter, place)
    if parameter.kind is not float or not given:
        raise Mistake(place, f"a gradient is of numbers, not {given!r}; write filters with one value each")
    return [_read(one, float, place) for one in given]


def _read(given: Any, kind: type, place: str) -> Any:
    """Return a value as mergekit reads it: numbers written as text are numbers, 0 and 1 are false and true."""
    try:
        if kind is float and isinstance(given, str | bool):
            return float(given)
        if kind is float and isinstance(given, int | float):
            return given
    except ValueError:
        pass
    if kind is bool and given in (True, False, "true", "false"):
        return given in (True, "true")
    if kind is str and isinstance(given, str):
        return given
    wanted = {float: "a number", bool: "true or false", str: "a name"}[kind]
    raise Mistake(place, f"{given!r} is not {wanted}, nor a list of numbers, nor a list of {{filter, value}}")


def _ours(parameter: Parameter, value: Any) -> Any:
    return parameter.values.get(value, value) if parameter.values else value
