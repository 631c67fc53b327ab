"""A merge done in parts by several processes or machines that see the same files: the same bytes as from one.

Every part is one file of the result. Who does the parts is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from fusion.memory import release, spare
from fusion.merge import Coefficient, grouped, merge_planned, source_energies, weighed_together
from fusion.plan import Plan, plan
from fusion.recipe import Grid, MergeRecipe
from fusion.shards import Shard, ShardWriter, layout

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")


class Workers(Protocol):
    """What runs a function elsewhere."""

    def __call__(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """Yield ``work(item)`` of every item, in the items' order. Work that was lost is done again.

        ``work`` is a function of a module, and the items are picklable.
        """


@dataclass(frozen=True, slots=True)
class Part:
    """Some tensors of a merge, and the file that they go into."""

    recipe: MergeRecipe
    grid: Grid | None
    names: tuple[str, ...]
    number: int  # of the file, from 0
    folders: tuple[Path, ...] = ()  # of the variants; seen by all that work
    max_bytes: int = 0
    energies: Mapping[str, Sequence[Mapping[str, object]]] | None = None  # see fusion.merge.grouped


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a part: for each variant its file's contents, and what was used of every tensor."""

    shards: tuple[Shard, ...]
    coefficients: tuple[tuple[Coefficient, ...], ...]


def merge_in_parts(
    recipe: MergeRecipe,
    grid: Grid | None,
    works: Sequence[Path],
    *,
    workers: Workers,
    max_bytes: int,
    on_tensor: Callable[[int, int], None] | None = None,
) -> tuple[list[list[Shard]], list[list[Coefficient]]]:
    """Have the merge's files written into ``works``, a folder for each variant, by whatever ``workers`` are.

    Returns the files' contents and the coefficients, for each variant.
    """
    there = tuple(path.absolute() for path in recipe.sources)  # who works elsewhere is in another folder
    recipe = replace(recipe, base=recipe.base.absolute(), sources=there)
    planned = plan(recipe, grid)
    expected = layout(_tensors(planned), max_bytes=max_bytes)
    parts = [Part(recipe, grid, tuple(shard.entries), number) for number, shard in enumerate(expected)]
    if wanted := {piece.name for piece in weighed_together(planned)}:
        measured: dict[str, Sequence[float]] = {}
        for found in workers(energies_of, [part for part in parts if wanted & set(part.names)]):
            measured |= found
        energies = grouped(planned, measured)
        parts = [replace(part, energies={n: energies[n] for n in part.names if n in energies}) for part in parts]
    else:
        parts = [replace(part, energies={}) for part in parts]
    parts = [replace(part, folders=tuple(work.absolute() for work in works), max_bytes=max_bytes) for part in parts]
    shards: list[list[Shard]] = [[] for _ in works]
    heard: list[list[Coefficient]] = [[] for _ in works]
    done = 0
    for part, written in zip(parts, workers(write_part, parts), strict=True):
        for variant, (shard, coefficients) in enumerate(zip(written.shards, written.coefficients, strict=True)):
            shards[variant].append(shard)
            heard[variant] += coefficients
        for _ in part.names if on_tensor else ():
            done += 1
            on_tensor(done, len(planned.pieces))  # type: ignore[misc]
    return shards, heard


def energies_of(part: Part) -> dict[str, list[float]]:
    """Return each source's Σ δ² of those of a part's tensors that are weighed together with others."""
    return source_energies(_of(part))


def write_part(part: Part) -> Written:
    """Merge a part and write its file, again from the start if somebody had begun it."""
    heard: list[list[Coefficient]] = [[] for _ in part.folders]
    with ExitStack() as stack:
        stack.callback(release)
        writers = [
            stack.enter_context(ShardWriter(folder, max_bytes=part.max_bytes, first=part.number))
            for folder in part.folders
        ]
        for merged in merge_planned(_of(part), seed=part.recipe.seed, energies=part.energies):
            for variant, (tensor, used) in enumerate(
                zip(merged.variants, merged.coefficients, strict=True), merged.first
            ):
                writers[variant].add(merged.name, tensor)
                heard[variant] += used
                spare(tensor)
            del merged, tensor  # or they would be kept until the next are there
    for writer in writers:  # what went into a second file would have no name, and be lost
        assert [tuple(shard.entries) for shard in writer.shards] == [part.names], "the merge is not as it was planned"
    return Written(tuple(writer.shards[0] for writer in writers), tuple(map(tuple, heard)))


def _of(part: Part) -> Plan:
    planned, names = plan(part.recipe, part.grid), set(part.names)
    return replace(planned, pieces=tuple(piece for piece in planned.pieces if piece.name in names))


def _tensors(planned: Plan) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Yield name, dtype and shape of every tensor of the result, in its order."""
    for piece in planned.pieces:
        dtype, shape = planned.base.dtype(piece.base), planned.base.shape(piece.base)
        if planned.dtype is not None and dtype.is_floating_point:
            dtype = planned.dtype
        if piece.over_vocabulary and planned.vocabulary is not None:
            shape = (planned.vocabulary.size, *shape[1:])
        yield piece.name, dtype, shape
