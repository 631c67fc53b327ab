"""Settings: what a recipe says of each parameter, made into what a method is given for one tensor.

A setting is a constant; a list of two numbers or more, which is a gradient over depth; or a mapping of globs on whole
tensor names to settings, of which the first that matches counts. What a method takes per source may be a list of
settings, one a source. Globs are a shell's: ``*``, ``?``, ``[abc]``, ``{0..11}`` and ``{q,k,v}``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fusion.errors import RecipeError, did_you_mean, listed
from fusion.params import Kind, Parameter, check_value, parameters
from fusion.recipe import Setting

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)(?:\.|$)")
_EMBEDDING = re.compile(r"embed(?!_out)|(?:^|\.)w[tp]e\.")
_PIECE = re.compile(r"(\[[^\]]+\]|\{[^{}]*\})")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")

Known = Mapping[str, Mapping[str, Parameter]]  # the parameters of each method


def resolve(
    recipe_method: Setting, params: Mapping[str, Setting], *, name: str, depth: float, sources: int, known: Known
) -> tuple[str, dict[str, object]]:
    """Return the method of tensor ``name``, which lies at ``depth`` in [0, 1], and its keyword arguments as constants.

    Of ``params``, only those that the method takes are passed on. Raises RecipeError where no glob matches, or where
    a list has not one entry a source.
    """
    method = _at("'method'", recipe_method, name, depth, per_source=False)
    chosen = {}
    for key, setting in params.items():
        if parameter := known[method].get(key):
            what = f"{key!r} of merge method {method!r}"
            chosen[key] = value = _at(what, setting, name, depth, per_source=parameter.kind.per_source)
            if isinstance(value, list):
                _check_length(what, value, sources)
    return method, chosen


def resolve_all(
    method: Setting, params: Mapping[str, Setting], *, depths: Mapping[str, float], sources: int
) -> dict[str, tuple[str, dict[str, object]]]:
    """Return each tensor's method and arguments, by its name, all checked; ``depths`` are the tensors'."""
    from fusion.methods import METHODS, check_params

    check_settings(method, params, sources=sources)
    known = {key: parameters(METHODS[key]) for key in _leaves(method)}
    found, checked = {}, set()
    for name, depth in depths.items():
        found[name] = chosen, values = resolve(method, params, name=name, depth=depth, sources=sources, known=known)
        if (seen := repr((chosen, values))) not in checked:
            try:
                check_params(chosen, values, sources=sources)
            except RecipeError as error:
                raise RecipeError(f"{error} (at tensor {name!r})") from None
            checked.add(seen)
    return found


def check_method(method: Setting) -> None:
    """Raise RecipeError unless this is the name of a method, or a mapping of globs to such names."""
    from fusion.methods import METHODS

    _check_globs("'method'", method)
    for name in _leaves(method):
        if not isinstance(name, str):
            raise RecipeError(f"'method' is {name!r}; give a method's name, or a mapping of globs to names")
        if name not in METHODS:
            raise RecipeError(
                f"there is no merge method {name!r}; there are {listed(METHODS)}.{did_you_mean(name, METHODS)}"
            )


def check_settings(method: Setting, params: Mapping[str, Setting], *, sources: int) -> None:
    """Raise RecipeError for what is wrong whatever the tensors are called: methods, parameters, values and globs.

    What parameters forbid each other is checked here where all are constants; ``resolve_all`` checks it tensor by
    tensor.
    """
    from fusion.methods import METHODS, check_params

    check_method(method)
    known = {name: parameters(METHODS[name]) for name in _leaves(method)}
    for key in params:
        if not any(key in table for table in known.values()):
            raise RecipeError(_unknown(key, known))
    for name, table in known.items():
        given = {key: setting for key, setting in params.items() if key in table}
        for key, parameter in table.items():
            if key in given:
                _check(f"{key!r} of merge method {name!r}", given[key], parameter, sources)
            elif parameter.required:
                raise RecipeError(f"merge method {name!r} needs {key!r}; it takes {listed(table)}")
        if all(_is_constant(given[key], table[key].kind) for key in given):
            check_params(name, given, sources=sources)


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a tensor belongs to; None for embeddings and what follows the layers."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def moved_to(name: str, layer: int) -> str:
    """Return what a tensor of some layer is called in another."""
    found = _LAYER.search(name)
    return name if found is None else f"{name[: found.start(1)]}{layer}{name[found.end(1) :]}"


def depth_of(name: str, layers: int) -> float:
    """Return where a tensor of a model of so many layers lies: embeddings at 0, the last layer and what follows at 1.

    Layer i is at i/(layers − 1), as in mergekit, and a single layer at 1. The final norm and the output layer are
    at 1, where mergekit has them at 0.
    """
    layer = layer_of(name)
    if layer is None:
        return 0.0 if _EMBEDDING.search(name) else 1.0
    return min(1.0, layer / (layers - 1)) if layers > 1 else 1.0


def interpolate(gradient: Sequence[float], depth: float) -> float:
    """Return the value at ``depth`` in [0, 1] of a gradient: linear between evenly spaced anchors."""
    place = depth * (len(gradient) - 1)
    left = int(place)
    right = min(len(gradient) - 1, left + 1)
    share = place - left
    return (1 - share) * gradient[left] + share * gradient[right]


def ordered(setting: Setting) -> Any:
    """Return a setting with each mapping as a list of pairs: for JSON with sorted keys, where the order must count."""
    if isinstance(setting, Mapping):
        return [[glob, ordered(inner)] for glob, inner in setting.items()]
    return [ordered(inner) for inner in setting] if isinstance(setting, list | tuple) else setting


def matches(glob: str, name: str) -> bool:
    """Say whether a glob matches the whole of a tensor's name; raises RecipeError for one that is malformed."""
    return _compiled(glob).fullmatch(name) is not None


def _at(what: str, setting: Setting, name: str, depth: float, *, per_source: bool) -> Any:
    if isinstance(setting, Mapping):
        for glob, inner in setting.items():
            if matches(glob, name):
                return _at(what, inner, name, depth, per_source=per_source)
        globs = ", ".join(map(repr, setting))
        raise RecipeError(
            f"{what} says nothing of tensor {name!r}, which none of {globs} matches; add '*' for the rest"
        )
    if not isinstance(setting, list | tuple):
        return setting
    if per_source:
        return [_at(f"{what} for source {i}", e, name, depth, per_source=False) for i, e in enumerate(setting, 1)]
    return interpolate(setting, depth)


def _check(what: str, setting: Setting, parameter: Parameter, sources: int) -> None:
    """Check every value of a setting, and say of which glob or source the wrong one is."""
    kind = parameter.kind
    if isinstance(setting, Mapping):
        _check_globs(what, setting)
        for glob, inner in setting.items():
            _check(f"{what} for {glob!r}", inner, parameter, sources)
    elif isinstance(setting, list | tuple) and kind.per_source and not _is_constant(setting, kind):
        _check_length(what, setting, sources)
        for number, inner in enumerate(setting, 1):
            _check(f"{what} for source {number}", inner, Parameter(_single(kind), True, optional=False), sources)
    elif isinstance(setting, list | tuple) and not kind.per_source and kind.fits(1.0):  # numbers only
        if len(setting) < 2:
            raise RecipeError(f"{what} is {setting!r}; a gradient over depth needs two numbers, a constant no list")
        for anchor in setting:
            check_value(what, anchor, kind, sources=sources)
    elif setting is not None or not parameter.optional:
        check_value(what, setting, kind, sources=sources)


def _check_globs(what: str, setting: Setting) -> None:
    if not isinstance(setting, Mapping):
        return
    if not setting:
        raise RecipeError(f"{what} is an empty mapping; give globs on tensor names and their settings")
    for number, (glob, inner) in enumerate(setting.items(), 1):
        if not isinstance(glob, str):
            raise RecipeError(f"{what} has {glob!r} where a glob on tensor names belongs; put it in quotes")
        _compiled(glob)
        if glob == "*" and number < len(setting):
            raise RecipeError(f"{what} has '*' before other globs, which are never reached; put it last")
        _check_globs(what, inner)


def _check_length(what: str, values: Sequence[object], sources: int) -> None:
    if len(values) != sources:
        raise RecipeError(f"{what} has {len(values)} entries for {sources} sources; give one a source")


def _is_constant(setting: Setting, kind: Kind) -> bool:
    if isinstance(setting, list | tuple):
        return kind.per_source and not any(isinstance(entry, list | tuple | Mapping) for entry in setting)
    return not isinstance(setting, Mapping)


def _single(kind: Kind) -> Kind:
    return replace(kind, per_source=False)


def _leaves(method: Setting) -> Iterator[Any]:
    """Yield every method that a setting names, each once."""
    if not isinstance(method, Mapping):
        yield method
        return
    seen: list[object] = []
    for inner in method.values():
        for leaf in _leaves(inner):
            if leaf not in seen:
                seen.append(leaf)
                yield leaf


@functools.lru_cache(maxsize=1024)
def _compiled(glob: str) -> re.Pattern[str]:
    parts = []
    for piece in filter(None, _PIECE.split(glob)):
        if _PIECE.fullmatch(piece):
            parts.append(_set(piece) if piece[0] == "[" else _choice(piece[1:-1], glob))
        elif bad := re.search(r"[{}\[]", piece):
            raise RecipeError(
                f"the glob {glob!r} has a {bad[0]!r} that is not closed or not opened; write {{0..11}}, {{q,k,v}} or "
                f"[abc], and [{bad[0]}] for the character itself"
            )
        else:
            parts.append(_plain(piece))
    return re.compile("".join(parts), re.DOTALL)


def _choice(inside: str, glob: str) -> str:
    if found := _RANGE.fullmatch(inside):
        first, last = int(found[1]), int(found[2])
        if first > last:
            raise RecipeError(f"the glob {glob!r} has a range that goes down; write {{{last}..{first}}}")
        return f"(?:{'|'.join(map(str, range(first, last + 1)))})"
    if ".." in inside or "," not in inside:
        raise RecipeError(
            f"the glob {glob!r} has {{{inside}}}, which is no range of whole numbers like {{0..11}} and no choice like "
            "{q,k,v}"
        )
    return f"(?:{'|'.join(map(_plain, inside.split(',')))})"


def _set(piece: str) -> str:
    inside, sign = piece[1:-1], ""
    if inside[0] in "!^" and len(inside) > 1:
        inside, sign = inside[1:], "^"
    return "[" + sign + re.sub(r"([\\\[^&~|])", r"\\\1", inside) + "]"


def _plain(text: str) -> str:
    return re.escape(text).replace(r"\*", ".*").replace(r"\?", ".")


def _unknown(key: str, known: Known) -> str:
    names = sorted({name for table in known.values() for name in table})
    who = f"merge method {next(iter(known))!r} takes" if len(known) == 1 else f"none of {listed(known)} takes"
    they = "it takes" if len(known) == 1 else "they take"
    return f"{who} {'no ' if len(known) == 1 else ''}{key!r}; {they} {listed(names)}.{did_you_mean(key, names)}"
