"""What is merged with what: every tensor of the result, where it lies in each model, and how it is merged.

What is wrong with a recipe or with the models' shapes is found here, before any weight is read.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion.checkpoints import Checkpoint, check_dtype
from fusion.errors import CheckpointError, RecipeError
from fusion.lora import Adapted, is_adapter
from fusion.recipe import Grid, MergeRecipe, Slice
from fusion.settings import check_settings, depth_of, layer_of, moved_to, resolve_all
from fusion.vocabulary import Vocabulary, plan_vocabulary, vocabulary_names

if TYPE_CHECKING:
    import torch

# The output layer and the input embedding that it is the same as, where config.json says tie_word_embeddings.
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_MOST_LISTED = 10
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_LARGE = 1 << 25  # elements of a tensor

Source = Checkpoint | Adapted


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of the result."""

    name: str
    base: str  # its name in the base
    sources: tuple[tuple[int, str], ...]  # the sources that take part, by number from 0, and its name in each
    method: str
    params: tuple[Mapping[str, Any], ...]  # the method's arguments, for each variant
    over_vocabulary: bool
    numel: int
    first: int = 0  # the number of the first of these variants


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe with its models opened."""

    base: Checkpoint
    sources: tuple[Source, ...]
    pieces: tuple[Piece, ...]
    vocabulary: Vocabulary | None  # None: all models share one
    dtype: torch.dtype | None  # of the result; None: of the base's tensors
    config: Mapping[str, Any] = field(default_factory=dict)  # what changes in the base's config.json


def plan(recipe: MergeRecipe, grid: Grid | None = None) -> Plan:
    """Open the models and say what is merged how, in one variant or in one for each value of the grid.

    Raises RecipeError, and CheckpointError with a list of all that does not fit.
    """
    import torch

    if not recipe.sources:
        raise RecipeError("a merge needs at least one source")
    if recipe.dtype is not None:
        check_dtype(recipe.dtype)
    if grid is not None and not grid.values:
        raise RecipeError(f"the grid of {grid.parameter!r} has no values; give some, or leave the grid out")
    given: list[dict[str, Any]] = [{}] if grid is None else [{grid.parameter: value} for value in grid.values]
    if not recipe.slices:  # else each slice has its own sources and parameters
        for more in given:
            check_settings(recipe.method, {**recipe.params, **more}, sources=len(recipe.sources))
    base = Checkpoint(recipe.base)
    sources = tuple(_open(path, base) for path in recipe.sources)
    _check_slices(recipe.slices, base, sources)
    slices = recipe.slices or (_all_layers(base, len(sources)),)
    _check_dtypes(base, recipe.dtype)
    vocabulary = plan_vocabulary(base, sources, recipe.tokenizer)
    places = _places(base, sources, slices)
    _check_models(base, sources, places, fitted=vocabulary is not None, whole=not recipe.slices)
    return Plan(
        base,
        sources,
        tuple(_spread(_pieces(recipe, given, base, slices, places))),
        vocabulary,
        None if recipe.dtype is None else getattr(torch, recipe.dtype),
        _layer_config(base, slices) if recipe.slices else {},
    )


def _check_dtypes(base: Checkpoint, dtype: str | None) -> None:
    eight = [name for name in base.names if base.dtype(name).itemsize == 1 and base.dtype(name).is_floating_point]
    if eight and dtype is None:
        raise RecipeError(
            f"tensor {eight[0]!r} in {base.file(eight[0])} is stored as {base.dtype(eight[0])}, to which a merge "
            "cannot be rounded; set dtype to bfloat16"
        )


def _open(path: Path, base: Checkpoint) -> Source:
    return Adapted(path, base) if is_adapter(path) else Checkpoint(path)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor of the result comes from."""

    slice: int
    base: str
    sources: tuple[tuple[int, str], ...]
    depth: float


def _all_layers(base: Checkpoint, sources: int) -> Slice:
    layers = (0, _layers(base))
    return Slice(layers, (layers,) * sources)


def _layers(model: Source) -> int:
    return 1 + max((layer for name in model.names if (layer := layer_of(name)) is not None), default=-1)


def _check_slices(slices: Sequence[Slice], base: Checkpoint, sources: Sequence[Source]) -> None:
    for number, part in enumerate(slices, 1):
        if len(part.sources) != len(sources):
            raise RecipeError(f"slice {number} speaks of {len(part.sources)} sources, and there are {len(sources)}")
        if all(given is None for given in part.sources):
            raise RecipeError(f"slice {number} takes nothing from any source; give one of them layers")
        for model, given in ((base, part.base), *zip(sources, part.sources, strict=True)):
            if given is None:
                continue
            if given[1] - given[0] != part.base[1] - part.base[0]:
                raise RecipeError(f"slice {number} takes layers {given} of {model.folder} and {part.base} of the base")
            if not 0 <= given[0] <= given[1] <= _layers(model):
                raise RecipeError(
                    f"slice {number} takes layers {list(given)} of {model.folder}, which has {_layers(model)}"
                )


def _places(base: Checkpoint, sources: Sequence[Source], slices: Sequence[Slice]) -> dict[str, _Place]:
    """Return where every tensor of the result comes from, by its name, in the base's order."""
    found: dict[str, _Place] = {}
    for name in base.names:
        if name == _HEAD and _is_tied(base):
            continue
        layer = layer_of(name)
        if layer is None:
            number = len(slices) - 1 if depth_of(name, 1) else 0
            some = [k for k, given in enumerate(slices[number].sources) if given is not None]
            stored = tuple((k, _stored_as(sources[k], name)) for k in some)
            found[name] = _Place(number, name, stored, depth_of(name, 1))
            continue
        first = 0  # of the slice, among the result's layers
        for number, part in enumerate(slices):
            offset, length = layer - part.base[0], part.base[1] - part.base[0]
            if 0 <= offset < length:
                inside = moved_to(name, offset)
                taking = [(k, given[0]) for k, given in enumerate(part.sources) if given is not None]
                stored = tuple((k, moved_to(name, start + offset)) for k, start in taking)
                found[moved_to(name, first + offset)] = _Place(number, name, stored, depth_of(inside, length))
            first += length
    return found


def _pieces(
    recipe: MergeRecipe,
    given: Sequence[Mapping[str, Any]],
    base: Checkpoint,
    slices: Sequence[Slice],
    places: Mapping[str, _Place],
) -> tuple[Piece, ...]:
    settled = [_settled(recipe, more, slices, places) for more in given]
    over = set(vocabulary_names(base))
    return tuple(
        Piece(
            name,
            place.base,
            place.sources,
            settled[0][name][0],
            tuple(params[name][1] for params in settled),
            place.base in over,
            math.prod(base.shape(place.base)),
        )
        for name, place in places.items()
    )


def _spread(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Yield the pieces so that before and after a large one come others of as many elements, to be merged beside it.

    Two large ones, as embedding and head are, would take twice the memory at the same time; and one that came first
    would have to be done before any other could be handed on.
    """
    large = deque(piece for piece in pieces if piece.numel > _LARGE)
    others = deque(piece for piece in pieces if piece.numel <= _LARGE)
    while large:
        beside = large[0].numel
        while others and beside > 0:
            beside -= others[0].numel
            yield others.popleft()
        yield large.popleft()
    yield from others


def _settled(
    recipe: MergeRecipe, more: Mapping[str, Any], slices: Sequence[Slice], places: Mapping[str, _Place]
) -> dict[str, tuple[str, dict[str, object]]]:
    """Return every tensor's method and constant arguments."""
    settled: dict[str, tuple[str, dict[str, object]]] = {}
    for number, part in enumerate(slices):
        taking = sum(given is not None for given in part.sources)
        depths = {name: place.depth for name, place in places.items() if place.slice == number}
        settled |= resolve_all(recipe.method, {**recipe.params, **part.params, **more}, depths=depths, sources=taking)
    return settled


def _layer_config(base: Checkpoint, slices: Sequence[Slice]) -> dict[str, Any]:
    """Return what config.json says of layers, of the result's: their number, and lists of one entry a layer."""
    taken, before = [layer for part in slices for layer in range(*part.base)], _layers(base)
    inner = base.config.get("text_config")
    said: Mapping[str, Any] = inner if isinstance(inner, dict) else base.config
    keys = [key for key in _LAYER_KEYS if key in said] or _LAYER_KEYS[:1]
    changed: dict[str, Any] = dict.fromkeys(keys, len(taken))
    for key, value in said.items():
        if isinstance(value, list) and len(value) == before and before > 1:
            changed[key] = [value[layer] for layer in taken]
    return {"text_config": {**said, **changed}} if said is inner else changed


def _check_models(
    base: Checkpoint, sources: Sequence[Source], places: Mapping[str, _Place], *, fitted: bool, whole: bool
) -> None:
    """Raise one error that lists all that does not fit."""
    over = set(vocabulary_names(base)) if fitted else set()
    wrong = [
        f"{model.folder} is quantised; merge the full-precision model"
        for model in (base, *sources)
        if "quantization_config" in model.config
    ]
    for name, place in places.items():
        for number, stored in place.sources:
            source, shape = sources[number], base.shape(place.base)
            if stored not in source:
                wrong.append(f"{source.folder} lacks {stored}")
            elif (given := source.shape(stored)) != shape and not (place.base in over and given[1:] == shape[1:]):
                wrong.append(f"{source.folder} has {stored} of shape {given}, not {shape} as the base's {name}")
    known = set(base.names) - {_HEAD if _is_tied(base) else ""}
    for source in sources if whole else ():
        for name in source.names:
            if name not in known and not (name == _HEAD and _is_tied(source)):
                why = f" (its {_HEAD} is its own, where the base's is its embedding)" if name == _HEAD else ""
                wrong.append(f"{source.folder} has {name}, which the base lacks{why}")
    if wrong:
        more = f"\n  … and {len(wrong) - _MOST_LISTED} more" if len(wrong) > _MOST_LISTED else ""
        raise CheckpointError(
            f"these models cannot be merged onto {base.folder}; sources must be fine-tunes of the base:\n  "
            + "\n  ".join(wrong[:_MOST_LISTED])
            + more
        )


def _is_tied(model: Source) -> bool:
    return _EMBEDDING in model and bool(model.config.get("tie_word_embeddings", _HEAD not in model))


def _stored_as(model: Source, name: str) -> str:
    return _EMBEDDING if name == _HEAD and _is_tied(model) else name
