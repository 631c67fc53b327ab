"""A point of a search space → what is merged how; and the reading of a space, with all that is wrong with it.

Names of parameters: ``method`` and ``method.GLOB``; ``params.NAME``, ``params.NAME.SOURCE`` (one source's),
``params.NAME.GLOB`` (of the tensors whose names match) and ``params.NAME.SOURCE.GLOB``; ``sources.SOURCE`` (true:
it takes part). What a point does not say, the space's shared ``params`` say, else the method's default.
"""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fuseval.config import ConfigError
from fuseval.space import METHOD, PARAMS, SOURCES, Parameter, ParameterSpec, Point, Space, Value, in_order
from fusion.errors import RecipeError, did_you_mean, listed
from fusion.params import check_value, parameters
from fusion.recipe import Setting
from fusion.settings import check_settings

PLACE = "ablation.space"


@dataclass(frozen=True, slots=True)
class Variant:
    """What one point merges: the arguments of a merge that differ between a study's trials."""

    method: Setting
    params: Mapping[str, Setting]
    sources: tuple[str, ...]  # those that take part, in the space's order


@dataclass(frozen=True, slots=True)
class _Name:
    """A parameter's dotted name, taken apart: ``what`` is method, sources, or the name of a method's parameter."""

    what: str
    source: str | None = None
    glob: str | None = None


def read_space(
    given: Mapping[str, ParameterSpec],
    *,
    sources: Sequence[str],
    method: Setting = None,
    params: Mapping[str, Setting] | None = None,
    place: str = PLACE,
) -> Space:
    """Return the space that a file gives; ConfigError has one line for each mistake.

    A parameter of a method is active only with the methods that take it, and one of a source only where that takes
    part; its own ``when`` narrows that, with globs on values such as ``sce*``.
    """
    found, errors = [], []
    space = Space((), tuple(sources), method, dict(params or {}))
    for name, spec in given.items():
        try:
            found.append(_parameter(name, spec, given, space))
        except (RecipeError, ValueError) as error:
            errors.append(f"{error} ({place}[{name!r}])")
    try:
        _check_shared(space, given)
        ordered = in_order(found)
    except (RecipeError, ValueError) as error:
        errors.append(f"{error} ({place})")
    if errors:
        raise ConfigError("\n".join(errors))
    return replace(space, parameters=ordered)


def variant(space: Space, point: Point) -> Variant:
    """Return what ``point`` merges, checked as far as can be without the models; RecipeError where it cannot be."""
    sources = tuple(name for name in space.sources if point.get(f"{SOURCES}.{name}", True))
    if not sources:
        raise RecipeError("no source takes part; a merge needs one")
    names = {name: _taken_apart(name, space.sources) for name in point}
    method = _over(space.method, {n: point[k] for k, n in names.items() if n.what == METHOD})
    taken = _takes(method)
    setters = {name.what for name in names.values() if name.what not in (METHOD, SOURCES)}
    params = {}
    for key in dict.fromkeys((*space.params, *setters)):
        if key in taken:
            said = {name: point[given] for given, name in names.items() if name.what == key}
            params[key] = _setting(key, said, space, sources, method)
    check_settings(method, params, sources=len(sources))
    return Variant(method, params, sources)


def can_be(space: Space, point: Point) -> bool:
    """Say whether ``point`` makes a merge: not where no source takes part, or too few for the method."""
    try:
        variant(space, point)
    except RecipeError:
        return False
    return True


def _setting(key: str, said: Mapping[_Name, Value], space: Space, sources: Sequence[str], method: Setting) -> Setting:
    """Return one parameter's setting for the sources that take part."""
    shared = space.params.get(key)
    whole = {name: value for name, value in said.items() if name.source is None}
    parted = per_source(key, method) and is_parted(shared, len(space.sources))
    everyone = len(whole) == len(said) and tuple(sources) == space.sources
    if len(whole) == len(said) and (not parted or (everyone and not whole)):
        return _over(shared if shared is not None else _default(key, method), whole)
    if not per_source(key, method):
        raise RecipeError(f"{key!r} of merge method {method!r} is one for all sources; leave the source's name out")
    by_source = []
    for number, source in enumerate(space.sources):
        if source in sources:
            rest = of_source(shared, number) if parted else shared
            rest = _over(_default(key, method) if rest is None else rest, whole)
            own = {name: value for name, value in said.items() if name.source == source}
            by_source.append(_over(rest, own))
    return by_source


def is_parted(setting: Setting, sources: int) -> bool:
    """Tell whether a setting of what is given per source has lists with an entry for each of so many, and no others."""
    lengths = list(_lengths(setting))
    return bool(lengths) and set(lengths) == {sources}


def of_source(setting: Setting, number: int) -> Setting:
    """Return what a setting that is parted says of one source."""
    if isinstance(setting, Mapping):
        return {glob: of_source(inner, number) for glob, inner in setting.items()}
    return setting[number] if isinstance(setting, list | tuple) else setting


def _lengths(setting: Setting) -> Iterator[int]:
    if isinstance(setting, Mapping):
        for inner in setting.values():
            yield from _lengths(inner)
    elif isinstance(setting, list | tuple):
        yield len(setting)


def per_source(key: str, method: Setting) -> bool:
    """Tell whether a method's parameter is given per source."""
    return bool(_takes(method)[key].kind.per_source)


def _over(rest: Setting, said: Mapping[_Name, Any]) -> Setting:
    """Return a setting with what is said of single globs before what is said of all tensors."""
    globs = {name.glob: value for name, value in said.items() if name.glob is not None}
    for name, value in said.items():
        if name.glob is None:
            rest = value
    if not globs:
        return rest
    if rest is None:
        raise RecipeError(f"nothing is said of the tensors that {listed(globs)} leaves out; give a value for all too")
    return {**globs, **(rest if isinstance(rest, Mapping) else {"*": rest})}


def _parameter(name: str, spec: ParameterSpec, given: Mapping[str, ParameterSpec], space: Space) -> Parameter:
    parameter = spec.parameter(name)
    for parent in parameter.when:
        if parent not in given or parent == name:
            raise ValueError(
                f"`when` names {parent!r}, which is no other parameter of the space; there are "
                f"{listed(set(given) - {name}) or 'none'}.{did_you_mean(parent, given)}"
            )
    when = {parent: _matching(parent, values, given[parent]) for parent, values in parameter.when.items()}
    apart = _taken_apart(name, space.sources)
    if apart.what == SOURCES:
        if any(not isinstance(value, bool) for value in parameter.values or (0,)):
            raise ValueError(f"whether a source takes part is true or false: write {name}: [true, false]")
    elif apart.what == METHOD:
        for value in parameter.values or ("",):
            _table(value)
    else:
        when = _narrowed(parameter, apart, when, given, space)
    return replace(parameter, when=when)


def _narrowed(
    parameter: Parameter,
    apart: _Name,
    when: dict[str, tuple[Value, ...]],
    given: Mapping[str, ParameterSpec],
    space: Space,
) -> dict[str, tuple[Value, ...]]:
    """Return when a method's parameter is active, having checked its values with every method that it meets."""
    methods = _methods(given, space)
    takers = [method for method in methods if apart.what in _table(method)]
    if not takers:
        known = {key for method in methods for key in _table(method)}
        raise ValueError(
            f"none of {listed(methods)} takes {apart.what!r}; they take {listed(known)}."
            f"{did_you_mean(apart.what, known)}"
        )
    meant = [method for method in methods if method in when[METHOD]] if METHOD in when else takers
    if wrong := [method for method in meant if method not in takers]:
        raise ValueError(f"{listed(wrong)} takes no {apart.what!r}, which `when` gives it to; name others in `when`")
    if METHOD in given and METHOD not in when and len(takers) < len(methods):
        when = {METHOD: tuple(takers), **when}
    if apart.source is not None and (switch := f"{SOURCES}.{apart.source}") in given:
        when = {**when, switch: (True,)}
    for method in meant:
        kind = _table(method)[apart.what].kind
        if apart.source is not None and not kind.per_source:
            raise ValueError(
                f"{apart.what!r} of merge method {method!r} is one for all sources; write params.{apart.what}"
            )
        for value in parameter.values or (parameter.low, parameter.high):
            check_value(f"{apart.what!r} of merge method {method!r}", value, kind, sources=len(space.sources))
    return when


def _taken_apart(name: str, sources: Sequence[str]) -> _Name:
    what, _, rest = name.partition(".")
    if what == METHOD:
        return _Name(METHOD, glob=rest or None)
    if what == SOURCES and rest in sources:
        return _Name(SOURCES, rest)
    if what == SOURCES:
        raise ValueError(f"{rest!r} is no source; there are {listed(sources)}.{did_you_mean(rest, sources)}")
    key, _, rest = rest.partition(".")
    if what != PARAMS or not key:
        raise ValueError(
            f"there is nothing called {name!r} to search; write method, params.NAME, params.NAME.SOURCE, "
            "params.NAME.GLOB or sources.SOURCE"
        )
    for source in sorted(sources, key=len, reverse=True):
        if rest == source or rest.startswith(f"{source}."):
            return _Name(key, source, rest.removeprefix(source).removeprefix(".") or None)
    return _Name(key, glob=rest or None)


def _matching(parent: str, patterns: tuple[Value, ...], spec: ParameterSpec) -> tuple[Value, ...]:
    """Return the parent's values that these stand for; strings may be globs."""
    if spec.values is None:
        raise ValueError(f"`when` can name values of a choice only, and {parent!r} is a range")
    found: list[Value] = []
    for pattern in patterns:
        if isinstance(pattern, str):
            more: list[Value] = [v for v in spec.values if isinstance(v, str) and fnmatch.fnmatchcase(v, pattern)]
        else:
            more = [v for v in spec.values if v == pattern and isinstance(v, bool) == isinstance(pattern, bool)]
        if not more:
            raise ValueError(f"`when` wants {parent!r} to be {pattern!r}, which is none of its values {spec.values!r}")
        found += [value for value in more if value not in found]
    return tuple(found)


def _check_shared(space: Space, given: Mapping[str, ParameterSpec]) -> None:
    """Hold what all merges share against the methods that there are."""
    if space.method is None and METHOD not in given:
        raise ValueError("which method? give `method` beside the space, or method: [...] in it")
    if space.method is not None and METHOD in given:
        raise ValueError("'method' is in the space and beside it; leave it out of one")
    methods = _methods(given, space)
    known = {key for method in methods for key in _table(method)}
    for key in space.params:
        if key not in known:
            raise ValueError(
                f"none of {listed(methods)} takes {key!r}, which is in params; they take {listed(known)}."
                f"{did_you_mean(key, known)}"
            )
        if f"{PARAMS}.{key}" in given:
            raise ValueError(f"{key!r} is in params and in the space; leave it out of one of them")
    for method in methods:
        for key, parameter in _table(method).items():
            if parameter.required and key not in space.params and f"{PARAMS}.{key}" not in given:
                raise ValueError(f"merge method {method!r} needs {key!r}; give it in params, or values in the space")


def _methods(given: Mapping[str, ParameterSpec], space: Space) -> list[str]:
    """Return every method that some merge of the space uses for some tensor."""
    found = [str(v) for name, spec in given.items() if name.partition(".")[0] == METHOD for v in spec.values or ()]
    return list(dict.fromkeys([*found, *_leaves(space.method)]))


def _leaves(method: Setting) -> list[str]:
    if isinstance(method, Mapping):
        return [leaf for inner in method.values() for leaf in _leaves(inner)]
    return [] if method is None else [str(method)]


def _table(method: object) -> dict[str, Any]:
    from fusion.methods import METHODS

    if method not in METHODS:
        raise RecipeError(
            f"there is no merge method {method!r}; there are {listed(METHODS)}.{did_you_mean(str(method), METHODS)}"
        )
    return dict(parameters(METHODS[str(method)]))


def _takes(method: Setting) -> dict[str, Any]:
    """Return the parameters of the methods that a setting names; of two methods the first one's counts."""
    return {key: kind for leaf in reversed(_leaves(method)) for key, kind in _table(leaf).items()}


def _default(key: str, method: Setting) -> Setting:
    """Return what the methods take where nothing is said; None where they differ or need it."""
    from fusion.methods import METHODS

    signatures = [inspect.signature(METHODS[leaf]).parameters for leaf in _leaves(method)]
    defaults = [each[key].default for each in signatures if key in each]
    same = len(set(map(repr, defaults))) == 1 and defaults[0] is not inspect.Parameter.empty
    return defaults[0] if same else None
