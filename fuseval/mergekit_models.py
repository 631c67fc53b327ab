"""mergekit's models and slices: which model takes part in which layers, and what is said of it there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fuseval.config import did_you_mean
from fuseval.mergekit_methods import Method, Mistake


@dataclass(frozen=True, slots=True)
class Input:
    """A model of one part of the result."""

    model: str
    parameters: Mapping[str, Any]
    place: str
    layers: tuple[int, int] | None = None

    @property
    def settings_place(self) -> str:
        """Where its parameters stand."""
        return f"{self.place.removesuffix('.model')}.parameters"


@dataclass(frozen=True, slots=True)
class Part:
    """What makes some of the result's layers, or all of them where ``models`` says what is merged."""

    inputs: tuple[Input, ...]
    parameters: Mapping[str, Any]
    place: str

    def of(self, model: str) -> Input | None:
        """Return the model's part in it."""
        return next((one for one in self.inputs if one.model == model), None)

    @property
    def length(self) -> int:
        """The number of layers; 0 is not known."""
        first = self.inputs[0].layers
        return first[1] - first[0] if first else 0


def read_parts(given: Mapping[str, Any]) -> list[Part]:
    """Return the parts that models or slices speak of."""
    models, slices = given.get("models"), given.get("slices")
    if bool(models) == bool(slices):
        raise Mistake("models", "give exactly one of models and slices")
    if models:
        return [Part(_inputs(models, "models", ("model", "parameters")), {}, "models")]
    parts = []
    for number, one in enumerate(_list(slices, "slices")):
        place = f"slices[{number}]"
        only(one, ("sources", "base_model", "parameters", "residual_weight"), place)
        inputs = _inputs(one.get("sources"), f"{place}.sources", ("model", "parameters", "layer_range"))
        parts.append(Part(inputs, settings_of(one.get("parameters"), f"{place}.parameters"), place))
        if len({layers[1] - layers[0] for layers in (i.layers for i in inputs) if layers}) > 1:
            raise Mistake(place, "its sources have not the same number of layers; make their layer_range equally long")
        if one.get("base_model") and reference(one["base_model"], place) != reference(
            given.get("base_model") or one["base_model"], "base_model"
        ):
            raise Mistake(f"{place}.base_model", "a slice cannot have a base of its own; give one base_model for all")
    given_bases = {reference(one["base_model"], "slices") for one in slices if one.get("base_model")}  # type: ignore[union-attr]
    if given_bases and not given.get("base_model"):
        raise Mistake(
            "slices", f"write base_model: {sorted(given_bases)[0]} at the top level, as the base of all slices"
        )
    return parts


def _inputs(given: object, place: str, keys: Sequence[str]) -> tuple[Input, ...]:
    found: list[Input] = []
    for number, one in enumerate(_list(given, place)):
        here = f"{place}[{number}]"
        only(one, keys, here, more=": what a model is given stands under its parameters")
        model = reference(one.get("model"), f"{here}.model")
        if model in (other.model for other in found):
            raise Mistake(f"{here}.model", f"{model!r} is listed twice; list it once")
        layers = _layers(one.get("layer_range"), f"{here}.layer_range") if "layer_range" in keys else None
        parameters = settings_of(one.get("parameters"), f"{here}.parameters")
        found.append(Input(model, parameters, f"{here}.model", layers))
    return tuple(found)


def with_base(parts: list[Part], base: str | None, method: Method) -> tuple[list[Part], str | None]:
    """Have the base among the models, as mergekit does, where ``models`` does not name it."""
    if base is None:
        if method.base == "required":
            raise Mistake("base_model", f"merge method {method.name!r} needs base_model; name the common ancestor")
        return parts, None
    first = parts[0]
    if first.length == 0 and first.of(base) is None:
        parts = [Part((*first.inputs, Input(base, {}, "base_model")), first.parameters, first.place)]
    return parts, base


def check_inputs(parts: Sequence[Part], base: str | None, method: Method) -> None:
    """Raise Mistake where a part lacks the base, or has more models than the method takes."""
    for part in parts:
        others = [one.model for one in part.inputs if one.model != base or method.base == "ignored"]
        if base is not None and method.base != "ignored" and part.of(base) is None:
            raise Mistake(part.place, f"the base_model {base!r} is not among its sources; add it")
        if method.most is not None and len(others) > method.most:
            besides = " besides the base_model" if method.base == "required" else ", the base_model counted"
            raise Mistake(
                part.place, f"merge method {method.name!r} takes {method.most} model{besides}, and there are "
                f"{len(others)}; take some out"
            )  # fmt: skip


def reference(given: object, place: str) -> str:
    """Return a model as one string: path or id, @revision, +adapter."""
    if isinstance(given, Mapping):
        if given.get("override_architecture"):
            raise Mistake(place, "override_architecture is not read; leave it out")
        only(given, ("model", "lora", "path", "revision", "override_architecture"), place)
        own = given.get("model", given.get("path"))
        text = reference(own, place) + (f"@{given['revision']}" if given.get("revision") else "")
        return text + (f"+{reference(given['lora'], place)}" if given.get("lora") else "")
    if not isinstance(given, str) or not given:
        raise Mistake(
            place, f"a model is missing, not {given!r}: give a path or a hub id, org/name@revision or +adapter"
        )
    return given


def settings_of(given: object, place: str) -> Mapping[str, Any]:
    """Return a mapping of parameters, empty where there is none."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise Mistake(place, f"parameters are a mapping of names to values, not {given!r}")
    return given


def _layers(given: object, place: str) -> tuple[int, int]:
    match given:
        case [int(start), int(stop)] if 0 <= start < stop:
            return start, stop
    raise Mistake(place, f"layer_range is {given!r}; give the first layer and the one after the last, like [0, 16]")


def _list(given: object, place: str) -> list[Mapping[str, Any]]:
    if not isinstance(given, list) or not given or not all(isinstance(one, Mapping) for one in given):
        raise Mistake(place, f"a list of models is missing, not {given!r}; see docs/merging.md for an example")
    return given


def only(given: Any, keys: Sequence[str], place: str, *, more: str = "") -> None:
    """Raise Mistake unless this is a mapping with no other keys."""
    if not isinstance(given, Mapping):
        raise Mistake(place, f"a mapping is missing, not {given!r}")
    for key in given:
        if key not in keys:
            raise Mistake(
                f"{place}.{key}".lstrip("."), f"there is no {key!r} here{more}; there are {', '.join(keys)}."
                + did_you_mean(key, keys)
            )  # fmt: skip
