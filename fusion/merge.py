"""A merge method applied tensor by tensor: one stream of (name, tensor), for a disk or for a live engine."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fusion.checkpoints import Checkpoint, check_dtype, write_checkpoint
from fusion.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    from torch import Tensor

# The output layer and the input embedding that it is the same as, where config.json says tie_word_embeddings.
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_MOST_LISTED = 10


@dataclass(frozen=True, slots=True)
class MergeRecipe:
    """What to merge and how: ``params`` are the method's keyword arguments, ``dtype`` None is the base's."""

    method: str
    base: Path
    sources: tuple[Path, ...]
    params: Mapping[str, object]
    dtype: str | None = None


def merge(recipe: MergeRecipe, *, on_tensor: Callable[[int, int], None] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield every merged tensor of the model, in the base's order; ``on_tensor`` hears (done, total) after each.

    Everything that can be wrong with the recipe or the models' shapes is raised before the first tensor is read.
    """
    from fusion.methods import check_params

    if not recipe.sources:
        raise RecipeError("a merge needs at least one source")
    check_params(recipe.method, recipe.params, sources=len(recipe.sources))
    if recipe.dtype is not None:
        check_dtype(recipe.dtype)
    base = Checkpoint(recipe.base)
    sources = [Checkpoint(path) for path in recipe.sources]
    names = _common_names(base, sources)
    return _stream(recipe, base, sources, names, on_tensor)


def _stream(
    recipe: MergeRecipe,
    base: Checkpoint,
    sources: Sequence[Checkpoint],
    names: Sequence[str],
    on_tensor: Callable[[int, int], None] | None,
) -> Iterator[tuple[str, Tensor]]:
    import torch

    from fusion.methods import METHODS

    method = METHODS[recipe.method]
    for done, name in enumerate(names, 1):
        start = _finite(base, name)
        tuned = [_finite(source, _stored_as(source, name)) for source in sources]
        if not start.is_floating_point():
            yield name, _unanimous(name, start, tuned, sources)
        elif recipe.dtype is None:
            yield name, method(start, tuned, **recipe.params)
        else:  # rounded once, at the end
            yield name, method(start.float(), tuned, **recipe.params).to(getattr(torch, recipe.dtype))
        if on_tensor is not None:
            on_tensor(done, len(names))


def merge_to_folder(
    recipe: MergeRecipe,
    folder: Path,
    *,
    title: str,
    provenance: Mapping[str, object],
    on_tensor: Callable[[int, int], None] | None = None,
) -> None:
    """Write the merge as a checkpoint folder with recipe.json and a model card.

    ``provenance`` says which models these were (titles, content hashes): recipe.json holds it, and no local path.
    """
    told = {
        "kind": "merge",
        "title": title,
        "method": recipe.method,
        "params": dict(recipe.params),
        "dtype": recipe.dtype,
        **provenance,
        "fuseval": importlib.metadata.version("fuseval"),
    }
    card = _card(title, told)
    write_checkpoint(merge(recipe, on_tensor=on_tensor), folder, like=recipe.base, recipe=told, card=card)


def _common_names(base: Checkpoint, sources: Sequence[Checkpoint]) -> tuple[str, ...]:
    """Return the names to merge, or raise one error that lists all that does not fit."""
    names = tuple(name for name in base.names if not (name == _HEAD and _is_tied(base)))
    known = set(names)
    wrong = [
        f"{model.folder} is quantised; merge the full-precision model"
        for model in (base, *sources)
        if _is_quantised(model)
    ]
    for source in sources:
        for name in names:
            stored = _stored_as(source, name)
            if stored not in source:
                wrong.append(f"{source.folder} lacks {name}")
            elif source.shape(stored) != base.shape(name):
                wrong.append(f"{source.folder} has {name} of shape {source.shape(stored)}, not {base.shape(name)}")
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
    return names


def _is_tied(model: Checkpoint) -> bool:
    return _EMBEDDING in model and bool(model.config.get("tie_word_embeddings", _HEAD not in model))


def _is_quantised(model: Checkpoint) -> bool:
    return "quantization_config" in model.config


def _stored_as(model: Checkpoint, name: str) -> str:
    return _EMBEDDING if name == _HEAD and _is_tied(model) else name


def _finite(model: Checkpoint, name: str) -> Tensor:
    import torch

    tensor = model.tensor(name)
    # One sum is cheaper than a test of every element, and a NaN or an infinity in one cannot be lost in it.
    if not tensor.is_floating_point() or tensor.sum(dtype=torch.float32).isfinite():
        return tensor
    if bad := int((~tensor.isfinite()).sum()):
        raise CheckpointError(
            f"tensor {name!r} in {model.file(name)} has {bad} NaN or infinite of {tensor.numel()} numbers; "
            "that model is broken: train or fetch it again"
        )
    return tensor


def _unanimous(name: str, start: Tensor, tuned: Sequence[Tensor], sources: Sequence[Checkpoint]) -> Tensor:
    for tensor, source in zip(tuned, sources, strict=True):
        if not start.equal(tensor):
            raise CheckpointError(
                f"tensor {name!r} is of {start.dtype} and differs in {source.folder}; whole numbers cannot be merged"
            )
    return start


def _card(title: str, recipe: Mapping[str, object]) -> str:
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "tags: [merge, fuseval]",
            "---",
            f"# {title}",
            "",
            f"Merged with fuseval {recipe['fuseval']} by the method `{recipe['method']}`; `recipe.json` says of what:",
            "",
            "```json",
            json.dumps(recipe, ensure_ascii=False, indent=2),
            "```",
            "",
        ]
    )
