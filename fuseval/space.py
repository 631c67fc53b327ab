"""The space that an ablation searches: parameters of a merge, the values that each may have, and when it has one.

A parameter's dotted name says what of a merge it sets (see :mod:`fuseval.variant`). A point gives a value to every
parameter that is active in it: one whose ``when`` holds. Records here are plain, and go into JSON and back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fuseval.strict import Strict

Value = str | bool | int | float
Point = Mapping[str, Value]

METHOD, SOURCES, PARAMS = "method", "sources", "params"
MOST = 100_000  # points of a grid that anyone would wait for
DIGITS = 4  # of a proposed coefficient that are kept: more say nothing, and nobody can read them
_SLACK = 1e-9  # of a step, by which rounding may miss the last value


@dataclass(frozen=True, slots=True)
class Parameter:
    """One coordinate: a choice of ``values``, or a number from ``low`` to ``high``, both included.

    ``step`` None is continuous. ``when`` names parameters before it and the values that they must have.
    """

    name: str
    kind: str  # choice, float or int
    values: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Space:
    """The parameters, those that others depend on first, and what all merges share."""

    parameters: tuple[Parameter, ...]
    sources: tuple[str, ...]  # names, in the order in which merges take them
    method: Any = None  # None: a parameter
    params: Mapping[str, Any] = field(default_factory=dict)


class ParameterSpec(Strict):
    """A parameter as a file gives it: ``values``, or ``low`` and ``high``; a bare list is ``values``."""

    values: Annotated[list[str | bool | int | float], Field(min_length=1)] | None = None
    low: float | None = None
    high: float | None = None
    step: Annotated[float, Field(gt=0)] | None = None  # None: any number between
    log: bool = False  # small numbers as often as large ones
    kind: Literal["choice", "float", "int"] | None = None  # None: a choice of values, else float
    when: dict[str, Any] = Field(default_factory=dict)  # parameters, and the value or list of values they must have

    @model_validator(mode="before")
    @classmethod
    def _bare_list(cls, given: Any) -> Any:
        return {"values": given} if isinstance(given, list) else given

    @model_validator(mode="after")
    def _one_way(self) -> ParameterSpec:
        if self.values is not None:
            self._check_choice(self.values)
        elif self.low is None or self.high is None:
            raise ValueError("give values: [...], or low and high")
        else:
            self._check_range(self.low, self.high)
        return self

    def _check_choice(self, values: list[str | bool | int | float]) -> None:
        if (self.low, self.high, self.step, self.log) != (None, None, None, False) or self.kind in ("float", "int"):
            raise ValueError("values are a choice: leave low, high, step, log and kind out, or leave values out")
        if len({(isinstance(value, bool), value) for value in values}) != len(values):
            raise ValueError(f"values {values!r} hold one twice; write each once")

    def _check_range(self, low: float, high: float) -> None:
        if self.kind == "choice":
            raise ValueError("a choice needs values: [...]; low and high are of kind float or int")
        if low >= high:
            raise ValueError(f"low {low:g} is not below high {high:g}; swap them, or fix the value in params")
        if self.log and (low <= 0 or self.step is not None):
            raise ValueError(f"log needs a low above 0 (here {low:g}) and no step; leave log out")
        if self.kind == "int" and any(x is not None and x != int(x) for x in (low, high, self.step)):
            raise ValueError("an int has a whole low, high and step; make it a float, or round them")
        if self.step is not None and self.step > high - low:
            raise ValueError(f"step {self.step:g} is longer than from low to high; make it smaller")

    def parameter(self, name: str) -> Parameter:
        """Return the parameter that this is."""
        when = {key: tuple(value) if isinstance(value, list) else (value,) for key, value in self.when.items()}
        if self.values is not None:
            return Parameter(name, "choice", tuple(self.values), when=when)
        step = 1.0 if self.kind == "int" and self.step is None and not self.log else self.step
        return Parameter(
            name, self.kind or "float", (), self.low or 0.0, self.high or 0.0, step=step, log=self.log, when=when
        )


def to_json(space: Space) -> str:
    """Return the space as JSON text, the same for the same space; :func:`from_json` gives it back.

    Mappings keep their order, which counts where they are globs.
    """
    return json.dumps(asdict(space), ensure_ascii=False)


def from_json(text: str) -> Space:
    """Return the space that :func:`to_json` wrote."""
    given = json.loads(text)
    parameters = tuple(
        Parameter(
            **{
                **each,
                "values": tuple(each["values"]),
                "when": {name: tuple(values) for name, values in each["when"].items()},
            }
        )
        for each in given["parameters"]
    )
    return Space(parameters, tuple(given["sources"]), given["method"], given["params"])


def is_active(parameter: Parameter, point: Point) -> bool:
    """Say whether the parameter has a value beside those of ``point``, which holds all parameters before it."""
    return all(name in point and holds(point[name], values) for name, values in parameter.when.items())


def holds(value: Value, values: tuple[Value, ...]) -> bool:
    """Say whether the value is one of these; true is not 1."""
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in values)


def fits(space: Space, point: Point) -> bool:
    """Say whether ``point`` gives every active parameter a value that it may have, and nothing to others."""
    active = [parameter for parameter in space.parameters if is_active(parameter, point)]
    return {each.name for each in active} == set(point) and all(_may_be(each, point[each.name]) for each in active)


def rounded(parameter: Parameter, value: Value) -> Value:
    """Return the value as people write it: on its step, or with :data:`DIGITS` significant digits, within bounds."""
    if parameter.kind == "choice":
        return value
    number = float(value)
    if parameter.step is not None:
        number = parameter.low + round((number - parameter.low) / parameter.step) * parameter.step
        number = float(f"{number:.12g}")
    elif parameter.kind == "float":
        number = float(f"{number:.{DIGITS}g}")
    number = min(max(number, parameter.low), parameter.high)
    return round(number) if parameter.kind == "int" else number


def values_of(parameter: Parameter) -> tuple[Value, ...] | None:
    """Return all values of a parameter, rising; None of one that is continuous."""
    if parameter.kind == "choice":
        return parameter.values
    if parameter.kind == "int" and parameter.log:
        return tuple(range(round(parameter.low), round(parameter.high) + 1))
    if parameter.step is None:
        return None
    count = math.floor((parameter.high - parameter.low) / parameter.step + _SLACK) + 1
    return tuple(rounded(parameter, parameter.low + number * parameter.step) for number in range(count))


def continuous(space: Space) -> tuple[str, ...]:
    """Return the names of the parameters that no grid can go through."""
    return tuple(parameter.name for parameter in space.parameters if values_of(parameter) is None)


def points(space: Space) -> Iterator[Point]:
    """Yield every point of a space without continuous parameters, the last parameter's values changing fastest.

    Raises ValueError where one is continuous, and for more than :data:`MOST` points.
    """
    if names := continuous(space):
        raise ValueError(
            f"a grid needs every value of {', '.join(map(repr, names))}: give values: [...] or a step, or search with "
            "random, tpe or cma_es"
        )
    for count, point in enumerate(_points(space.parameters, {})):
        if count == MOST:
            raise ValueError(f"the grid has more than {MOST:,} points: give fewer values, or search with tpe")
        yield point


def _points(parameters: tuple[Parameter, ...], point: Point) -> Iterator[Point]:
    if not parameters:
        yield point
        return
    first, *rest = parameters
    if not is_active(first, point):
        yield from _points(tuple(rest), point)
        return
    for value in values_of(first) or ():
        yield from _points(tuple(rest), {**point, first.name: value})


def _may_be(parameter: Parameter, value: Value) -> bool:
    if (values := values_of(parameter)) is not None:
        return holds(value, values)
    number = not isinstance(value, bool | str) and math.isfinite(value)
    return number and parameter.low <= float(value) <= parameter.high


def in_order(parameters: list[Parameter]) -> tuple[Parameter, ...]:
    """Return the parameters with those first that others depend on; ValueError where one waits for itself."""
    placed: list[Parameter] = []
    waiting = list(parameters)
    names = {parameter.name for parameter in parameters}
    while waiting:
        done = {each.name for each in placed}
        free = [each for each in waiting if all(name in done or name not in names for name in each.when)]
        if not free:
            raise ValueError(f"{', '.join(repr(e.name) for e in waiting)} depend on each other; drop one `when`")
        placed += free
        waiting = [each for each in waiting if each not in free]
    return tuple(placed)
