"""An experiment's merges, as fusion.recipe has them, and their weights."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from evals.records import Coefficient
from fuseval.experiment import Experiment, Merge
from fuseval.models import Candidate, Stream, Watch, inputs, make, resolve
from fusion.recipe import Grid, MergeRecipe, Slice

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Where:
    """Who merges, and into files of how many bytes; by default this process."""

    ray: str | None = None  # a Ray cluster's address, see fuseval.cluster.joined
    max_shard_bytes: int | None = None

    @contextmanager
    def options(self) -> Iterator[dict[str, Any]]:
        """Yield what fusion.publish is told of it, while the cluster is there."""
        told: dict[str, Any] = {} if self.max_shard_bytes is None else {"max_shard_bytes": self.max_shard_bytes}
        if self.ray is None:
            yield told
            return
        from fuseval.cluster import joined
        from fuseval.ray_tasks import over

        with joined(self.ray) as ray:
            yield {**told, "workers": over(ray)}


HERE = Where()


def merge_recipe(
    experiment: Experiment,
    grid: Grid | None,
    output: Path,
    *,
    beside: Path,
    cache: Path,
    watch: Watch,
    where: Where = HERE,
) -> dict[str, Candidate]:
    """Make what a recipe file says, read as an experiment, in ``output``: a checkpoint, or of a grid one a value.

    Returns all its models by name, the merges last.
    """
    models = resolve(experiment, beside=beside, cache=cache)
    names = [merge.name for merge in experiment.fusion.merges]
    for name in names:
        folder = output / name if grid else output
        models[name] = replace(models[name], folder=folder, model=replace(models[name].model, source=str(folder)))
    for name in dict.fromkeys(needed for merged in names for needed in inputs(models[merged], models)):
        make(models[name], models, watch=watch)
    _settle()
    merge_weights([models[name] for name in names], models, watch=watch, grid=grid, where=where)
    return models


def _settle() -> None:
    """Load what merges with, and have the garbage collector leave it alone, which would look through it at the exit."""
    import fusion.methods  # noqa: F401

    if "duckdb" not in sys.modules:  # which complains of what outlives it
        gc.freeze()


def mean_coefficients(merged: Sequence[Candidate]) -> list[dict[str, object]]:
    """Return, for each merge, source and coefficient, the mean over the tensors, as rows of a table."""
    from fusion.publish import read_coefficients

    rows: list[dict[str, object]] = []
    for candidate in merged:
        values: dict[tuple[str, str], list[float]] = {}
        for _, source, name, value in read_coefficients(_folder(candidate)):
            values.setdefault((name, source or "all together"), []).append(value)
        rows += [
            {"merge": candidate.name, "coefficient": name, "source": source, "mean": round(fmean(found), 4)}
            for (name, source), found in sorted(values.items())
        ]
    return rows


def merge_weights(
    candidates: Sequence[Candidate],
    models: Mapping[str, Candidate],
    *,
    watch: Watch,
    grid: Grid | None = None,
    where: Where = HERE,
) -> None:
    """Make the weights of a merge, or of a grid's merges together; their inputs are made already.

    Of a grid, ``candidates`` are the merges of its values, in their order.
    """
    from fusion.publish import merge_to_folders

    first = candidates[0].merge
    assert first is not None
    sources = [models[name] for name in first.sources]
    provenance = {
        "base": {first.base: models[first.base].id},
        "sources": {source.name: source.id for source in sources},
        "ids": [candidate.id for candidate in candidates],
    }
    with where.options() as told:
        merge_to_folders(
            _recipe(first, models, without=grid.parameter if grid else None),
            {_folder(candidate): candidate.name for candidate in candidates},
            grid=grid,
            provenance=provenance,
            on_tensor=_teller(watch, f"merge {' '.join(candidate.name for candidate in candidates)}"),
            **told,
        )


def streamed(
    candidate: Candidate, models: Mapping[str, Candidate], *, hear: Callable[[Sequence[Coefficient]], None]
) -> Candidate:
    """Return the merge as one that is never written: its weights are merged anew each time that they are loaded.

    The merge's base and sources must have been made by then, and it must have its base's shape. ``hear`` gets what
    was used of every tensor, when all of them are there.
    """
    merge = candidate.merge
    assert merge is not None
    sources = [models[name].id for name in merge.sources]

    def tensors() -> Iterator[tuple[str, Tensor]]:
        from fusion.merge import merge as merge_stream

        used: list[Coefficient] = []
        yield from merge_stream(
            _recipe(merge, models, without=None),
            on_coefficient=lambda c: used.append(
                Coefficient(candidate.id, c.tensor, None if c.source is None else sources[c.source], c.name, c.value)
            ),
        )
        hear(used)

    return replace(candidate, stream=Stream(_folder(models[merge.base]), tensors))


def lay_over(candidate: Candidate, under: Candidate, *, watch: Watch) -> None:
    """Make the weights of a LoRA adapter's model: those of the model under it, with the adapter's added."""
    from fusion.publish import merge_to_folder

    assert candidate.adapter is not None and under.folder is not None
    merge_to_folder(
        MergeRecipe("passthrough", under.folder, (candidate.adapter,)),
        _folder(candidate),
        title=candidate.name,
        provenance={"base": {under.name: under.id}, "sources": {candidate.name: candidate.id}},
        on_tensor=_teller(watch, f"lay {candidate.name} over {under.name}"),
    )


def laid_over(source: Candidate, merge: Merge) -> bool:
    """Tell whether a source is an adapter of the merge's own base: then it is merged from the adapter, unrounded."""
    return source.adapter is not None and source.adapter_of == merge.base


def _recipe(merge: Merge, models: Mapping[str, Candidate], *, without: str | None) -> MergeRecipe:
    return MergeRecipe(
        merge.method,
        _folder(models[merge.base]),
        tuple(_source(models[name], merge) for name in merge.sources),
        {name: setting for name, setting in merge.params.items() if name != without},
        dtype=merge.dtype,
        tokenizer=merge.tokenizer_of,
        slices=tuple(
            Slice(
                (part.base[0], part.base[1]),
                tuple((layers[0], layers[1]) if layers else None for layers in part.sources),
                part.params,
            )
            for part in merge.slices
        ),
        seed=merge.seed,
    )


def _source(candidate: Candidate, merge: Merge) -> Path:
    if laid_over(candidate, merge):
        assert candidate.adapter is not None
        return candidate.adapter
    return _folder(candidate)


def _folder(candidate: Candidate) -> Path:
    assert candidate.folder is not None  # endpoints are refused when the experiment is read
    return candidate.folder


def _teller(watch: Watch, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: watch(stage, done, total)
