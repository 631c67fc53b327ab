"""What a merge method's keyword arguments may be: kinds, said in its signature, and what is wrong with a value."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from numbers import Real
from operator import contains
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from fusion.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Kind:
    """What one value must be; ``per_source``: one for all sources, or a list of one a source."""

    text: str
    fits: Callable[[Any], bool]
    per_source: bool = False


@dataclass(frozen=True, slots=True)
class Parameter:
    """One keyword argument of a method."""

    kind: Kind
    required: bool
    optional: bool  # None says that it is not given


_ROUNDING = 1e-12  # of a sum of decimals that should be 0


def _number(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


_FINITE = Kind("a finite number", _number)
_SHARE = Kind("a number in (0, 1]", lambda value: _number(value) and 0 < value <= 1)
_PART = Kind("a number in [0, 1]", lambda value: _number(value) and 0 <= value <= 1)

Scale = Annotated[float, _FINITE]
Share = Annotated[float, _SHARE]
Part = Annotated[float, _PART]
Switch = Annotated[bool, Kind("true or false", lambda value: isinstance(value, bool))]
Weights = Annotated[float | Sequence[float], Kind(_FINITE.text, _FINITE.fits, per_source=True)]
Shares = Annotated[float | Sequence[float], Kind(_SHARE.text, _SHARE.fits, per_source=True)]
Parts = Annotated[float | Sequence[float], Kind(_PART.text, _PART.fits, per_source=True)]

Tell = Callable[[str, Sequence[float]], None]
"""Hears a coefficient that a merge used: its name, and one number a source (PER_SOURCE) or one for all together."""

PER_SOURCE = frozenset({"eta", "kept", "rescale", "weight"})
"""The coefficients of which there is one a source."""


def silent(name: str, values: Sequence[float]) -> None:
    """Let a coefficient pass unheard."""


@cache  # a search asks for the same few methods' thousands of times
def parameters(method: Callable[..., object]) -> Mapping[str, Parameter]:
    """Return the arguments that configure a method: the keyword-only ones whose annotation says what they may be."""
    hints = get_type_hints(method, include_extras=True)
    found = {}
    for name, parameter in inspect.signature(method).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and (kind := _kind(hints[name])):
            optional = type(None) in get_args(hints[name])
            found[name] = Parameter(kind, parameter.default is parameter.empty, optional)
    return MappingProxyType(found)


def check_value(what: str, value: object, kind: Kind, *, sources: int) -> None:
    """Raise RecipeError unless ``value`` is of this kind; ``what`` names it."""
    if kind.per_source and isinstance(value, Sequence) and not isinstance(value, str):
        if not all(map(kind.fits, value)):
            raise RecipeError(f"{what} is {value!r}; it must be {kind.text}, or a list of them, one a source")
        if len(value) != sources:
            raise RecipeError(f"{what} has {len(value)} numbers for {sources} sources; give one a source")
    elif not kind.fits(value):
        more = ", or a list of them, one a source" if kind.per_source else ""
        raise RecipeError(f"{what} is {value!r}; it must be {kind.text}{more}")


def shares_of(weights: Sequence[float]) -> list[float]:
    """Return the weights divided by their sum; RecipeError where that is 0."""
    total = math.fsum(weights)
    if abs(total) <= _ROUNDING * math.fsum(map(abs, weights)):
        raise RecipeError(
            f"'weights' are {list(weights)!r} and sum to 0, by which normalize would divide; change them, or set "
            "normalize to false"
        )
    return [weight / total for weight in weights]


def per_source(value: float | Sequence[float], sources: int) -> list[float]:
    """Return one number a source."""
    return [float(v) for v in value] if isinstance(value, Sequence) else [float(value)] * sources


def _kind(hint: Any) -> Kind | None:
    for part in (hint, *get_args(hint)):
        for extra in getattr(part, "__metadata__", ()):
            if isinstance(extra, Kind):
                return extra
        if get_origin(part) is Literal:
            choices = get_args(part)
            return Kind("one of " + ", ".join(map(repr, choices)), partial(contains, choices))
    return None
