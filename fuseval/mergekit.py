"""mergekit's YAML, read as our recipe: what mergekit 0.1.5 would do, its defaults written out.

Where mergekit ignores what it does not know, we say so: a parameter that a method does not use is a notice, a key
that nobody knows is a mistake. What differs in the numbers is said in docs/merging.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fuseval.config import ConfigError, did_you_mean
from fuseval.mergekit_methods import METHODS, UNSUPPORTED, USED_BY_SOME, Method, Mistake, Pairs, chain, constant
from fuseval.mergekit_models import Part, check_inputs, only, read_parts, reference, settings_of, with_base
from fusion.recipe import Slice

_TOP = (
    "merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "chat_template", "name",
)  # fmt: skip
_MOE = ("experts", "gate_mode", "experts_per_token", "shared_experts")
_DTYPES = ("float32", "bfloat16", "float16")

_SCE = (
    "merge_method sce is read as sce_mergekit, mergekit's form of it; FuseChat-7B-v2.0 and FuseO1 were made by "
    "sce_fusechat: write merge_method: sce_fusechat for it"
)
_TEMPLATE = "chat_template is not applied: the result keeps its tokenizer's own; change tokenizer_config.json for it"


@dataclass(frozen=True, slots=True)
class TranslatedRecipe:
    """A merge recipe of ours; models are as they were written: a path, a hub id, or one of them + an adapter."""

    method: str
    base: str
    sources: tuple[str, ...]
    params: dict[str, Any]
    dtype: str | None
    tokenizer: str
    slices: tuple[Slice, ...]
    notices: tuple[str, ...]
    places: Mapping[str, str]  # where in the YAML the base and each source stand first


def is_mergekit(given: Mapping[str, Any]) -> bool:
    """Say whether this is mergekit's YAML, by a key that only it has."""
    return any(key in given for key in ("merge_method", "modules", *_MOE))


def translate(given: Mapping[str, Any], *, file: str) -> TranslatedRecipe:
    """Return mergekit's YAML as a recipe of ours, or raise ConfigError; ``file`` is what messages call it."""
    try:
        return _translate(given)
    except Mistake as mistake:
        raise ConfigError(f"{mistake.text} ({mistake.place or 'top level'} in {file})") from None


def _translate(given: Mapping[str, Any]) -> TranslatedRecipe:
    method = _method(given)
    wanted = reference(given["base_model"], "base_model") if given.get("base_model") else None
    parts, base = with_base(read_parts(given), wanted, method)
    check_inputs(parts, base, method)
    first = base or parts[0].inputs[0].model
    models = list(dict.fromkeys(one.model for part in parts for one in part.inputs))
    sources = tuple(model for model in models if model != base or method.base == "ignored")
    if not sources:
        raise Mistake("models", f"there is no model to merge onto the base_model {base!r}; list one")
    places = {one.model: one.place for part in reversed(parts) for one in reversed(part.inputs)}
    top = settings_of(given.get("parameters"), "parameters")
    params, slices = _over_layers(method, parts, first, sources, top)
    if method.name == "multislerp":
        params["origin"] = "base" if base else "zero"
    return TranslatedRecipe(
        method=method.ours,
        base=first,
        sources=sources,
        params=params,
        dtype=_dtype(given),
        tokenizer=_tokenizer(given, first, sources),
        slices=slices,
        notices=_notices(given, method, parts, top),
        places={"base": "base_model" if wanted else places[first]}
        | {f"sources[{i}]": places[source] for i, source in enumerate(sources)},
    )


def _method(given: Mapping[str, Any]) -> Method:
    if moe := [key for key in _MOE if key in given]:
        raise Mistake(moe[0], "this is a recipe of mergekit-moe, which joins experts into a new model; make it there")
    if "modules" in given:
        raise Mistake("modules", "modules are not read; write what the module 'default' holds at the top level")
    only(given, _TOP, "")
    name = given.get("merge_method")
    if name in UNSUPPORTED:
        raise Mistake(
            "merge_method", f"mergekit's {name!r} is not among our methods, {', '.join(METHODS)}; use one of these"
        )
    if not isinstance(name, str) or name not in METHODS:
        raise Mistake(
            "merge_method", f"there is no merge method {name!r}; there are {', '.join(METHODS)}."
            + did_you_mean(name, METHODS)
        )  # fmt: skip
    return METHODS[name]


def _over_layers(
    method: Method, parts: Sequence[Part], base: str, sources: Sequence[str], top: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[Slice, ...]]:
    """Return what holds for all layers, and the slices with what holds in them only."""
    starts = [sum(part.length for part in parts[:i]) for i in range(len(parts))]
    each = [_params(method, part, sources, top, start) for part, start in zip(parts, starts, strict=True)]
    if parts[0].length == 0:
        return each[0], ()
    everywhere = all(part.of(source) for part in parts for source in sources)
    shared = {
        parameter.ours: each[0][parameter.ours]
        for parameter in method.parameters.values()
        if (everywhere or parameter.scope != "source")
        and all(p[parameter.ours] == each[0][parameter.ours] for p in each)
    }
    slices = []
    for part, params in zip(parts, each, strict=True):
        layers = tuple(one.layers if (one := part.of(source)) else None for source in sources)
        # A base that takes no part lends the shapes of the layers that the first source has there.
        own = part.of(base) or part.inputs[0]
        assert own.layers is not None
        slices.append(Slice(own.layers, layers, {key: v for key, v in params.items() if key not in shared}))
    return shared, tuple(slices)


def _params(method: Method, part: Part, sources: Sequence[str], top: Mapping[str, Any], start: int) -> dict[str, Any]:
    """Return every parameter of the method in one part, whose first layer is the result's layer ``start``."""
    shared = [(part.parameters, f"{part.place}.parameters"), (top, "parameters")]
    found: dict[str, Any] = {}
    for name, parameter in method.parameters.items():
        if parameter.scope == "all":
            found[parameter.ours] = _setting(chain(name, parameter, shared))
            continue
        each = []
        for one in filter(None, map(part.of, sources)):
            pairs = chain(name, parameter, [(one.parameters, one.settings_place), *shared])
            if one.layers and one.layers[0] != start:
                _check_filters(name, pairs, part)
            each.append(_setting(pairs))
        found[parameter.ours] = each if parameter.scope == "source" else each[0]
    return found


def _check_filters(name: str, pairs: Pairs, part: Part) -> None:
    for text, _ in pairs:
        if text and re.search(r"\d", text):
            raise Mistake(
                part.place,
                f"the filter {text!r} of {name} names a layer, which mergekit counts in the model itself and not in "
                "the result; split the slice at that layer and give each its parameters",
            )


def _setting(pairs: Pairs) -> Any:
    """Return filters and values as a setting."""
    if len(pairs) == 1 and pairs[0][0] is None:
        return _value(pairs[0][1], None)
    found: dict[str, Any] = {}
    for text, value in pairs:
        glob = "*" if text is None else "*" + re.sub(r"[*?\[{}]", r"[\g<0>]", text) + "*"
        found.setdefault(glob, _value(value, text))
    return found


def _value(value: Any, text: str | None) -> Any:
    if not isinstance(value, list) or value[0] == value[-1] or (text and re.search("att|mlp", text)):
        return value
    # Of a gradient, what lies in no layer gets the first value in mergekit: the final norm and output layer too.
    return {"*{layer,layers,h,block,blocks}.[0-9]*": value, "*": value[0]}


def _dtype(given: Mapping[str, Any]) -> str | None:
    for key in ("out_dtype", "dtype"):
        if given.get(key):
            name = str(given[key]).removeprefix("torch.")
            if name not in _DTYPES:
                raise Mistake(key, f"there is no dtype {given[key]!r} here; there are {', '.join(_DTYPES)}")
            return name
    return None


def _tokenizer(given: Mapping[str, Any], base: str, sources: Sequence[str]) -> str:
    wanted, place = given.get("tokenizer_source"), "tokenizer_source"
    if tokenizer := given.get("tokenizer"):
        if wanted:
            raise Mistake("tokenizer", "give tokenizer_source or tokenizer, not both")
        place = "tokenizer.source"
        only(tokenizer, ("source", "tokens", "pad_to_multiple_of"), "tokenizer")
        if tokenizer.get("tokens"):
            raise Mistake("tokenizer.tokens", "embeddings of single tokens cannot be chosen; leave tokens out")
        if tokenizer.get("pad_to_multiple_of"):
            raise Mistake("tokenizer.pad_to_multiple_of", "the vocabulary is not padded; leave pad_to_multiple_of out")
        wanted = tokenizer.get("source", "union")
    if wanted in (None, "base", "union"):
        return wanted or "base"
    model = reference(wanted, place)
    if model == base:
        return "base"
    if model not in sources:
        raise Mistake(place, f"{model!r} is none of the models; write base, union or one of {', '.join(sources)}")
    return str(sources.index(model) + 1)


def _notices(
    given: Mapping[str, Any], method: Method, parts: Sequence[Part], top: Mapping[str, Any]
) -> tuple[str, ...]:
    found = [_SCE] if method.name == "sce" else []
    if given.get("chat_template"):
        found.append(_TEMPLATE)
    places = [(top, "parameters", False)]
    for part in parts:
        places.append((part.parameters, f"{part.place}.parameters", False))
        places += [(one.parameters, one.settings_place, True) for one in part.inputs]
    for parameters, place, of_model in places:
        for name in parameters:
            if name == "int8_mask":  # has no effect on the numbers
                continue
            known = {**method.parameters, **method.fixed}
            if name not in USED_BY_SOME:
                raise Mistake(
                    f"{place}.{name}", f"merge method {method.name!r} takes no {name!r}; it takes "
                    f"{', '.join(known) or 'none'}.{did_you_mean(name, known)}"
                )  # fmt: skip
            if name in method.fixed and parameters[name] != method.fixed[name]:
                raise Mistake(
                    f"{place}.{name}", f"merge method {method.name!r} has {name} {constant(method.fixed[name])} only, "
                    f"not {constant(parameters[name])}; leave it out"
                )  # fmt: skip
            if name not in known:
                found.append(f"{name} is not used by merge method {method.name}, in mergekit neither ({place})")
            elif of_model and name in method.parameters and method.parameters[name].scope == "all":
                found.append(f"{name} is one for all models, and mergekit reads none under a single model ({place})")
    return tuple(dict.fromkeys(found))
