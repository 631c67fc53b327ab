"""A merge method applied tensor by tensor: one stream of (name, tensor), for a disk or for a live engine.

Reading, computing and writing overlap: the next tensors are read ahead by the kernel while worker threads, or a GPU,
compute some and the caller takes the finished ones in order. Memory holds a few tensors, whatever the model's size.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from fusion.checkpoints import Checkpoint
from fusion.errors import CheckpointError, FusionError
from fusion.params import PER_SOURCE, Tell
from fusion.plan import Piece, Plan, plan
from fusion.pool import cores, in_order
from fusion.recipe import MergeRecipe
from fusion.settings import layer_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

R = TypeVar("R")

_IN_FLIGHT = 1 << 26  # elements for each further worker, beside one tensor of the largest ...
_MOST_IN_FLIGHT = 1 << 28  # ... and for all of them
_TOGETHER = 1 << 28  # elements of a tensor's variants that are merged in one pass
_GPU_WORKERS = 3  # one copies in, one computes, one copies out
_mine = threading.local()


@dataclass(frozen=True, slots=True)
class Coefficient:
    """A number that a merge used of a tensor: for one source, by its number from 0, or (None) for all together."""

    tensor: str
    source: int | None
    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Merged:
    """One tensor of the result in some of its variants, from number ``first`` on, and what was used for each."""

    name: str
    first: int
    variants: tuple[Tensor, ...]
    coefficients: tuple[tuple[Coefficient, ...], ...]


def merge(
    recipe: MergeRecipe,
    *,
    on_tensor: Callable[[int, int], None] | None = None,
    on_coefficient: Callable[[Coefficient], None] | None = None,
    device: str | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield every merged tensor of the model; ``on_tensor`` hears (done, total) after each.

    ``device`` computes: by default a GPU if there is one. Everything that can be wrong with the recipe or the
    models' shapes is raised before the first tensor is read.
    """
    planned = plan(recipe)

    def hand_on(merged: Merged) -> tuple[str, Tensor]:
        for coefficient in merged.coefficients[0] if on_coefficient else ():
            on_coefficient(coefficient)  # type: ignore[misc]
        return merged.name, merged.variants[0]

    return map(hand_on, merge_planned(planned, seed=recipe.seed, on_tensor=on_tensor, device=device))


def merge_planned(
    planned: Plan,
    *,
    seed: int = 0,
    on_tensor: Callable[[int, int], None] | None = None,
    device: str | None = None,
    energies: Mapping[str, Sequence[Mapping[str, object]]] | None = None,
) -> Iterator[Merged]:
    """Yield what was planned, in its order, every tensor in all its variants; of a large one only some at a time.

    ``energies`` are those of ``grouped``, where the plan is a part of another.
    """
    import torch

    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    workers = cores() if place.type == "cpu" else _GPU_WORKERS
    if energies is None:
        energies = grouped(planned, source_energies(planned))
    weighed = energies

    def work(piece: Piece) -> Merged:
        known = weighed.get(piece.name, ())[piece.first :]
        return _merge_piece(piece, planned, place, seed, known[: len(piece.params)] or [{}] * len(piece.params))

    parts = [part for piece in planned.pieces for part in _parts(piece)]
    total = len(parts)
    stream = _in_order(planned, parts, work, workers)
    try:
        for done in range(1, total + 1):
            yield next(stream)  # no name for it here: it would keep the tensor until the next is there
            if on_tensor is not None:
                on_tensor(done, total)
    finally:
        stream.close()
        if place.type == "cuda":
            torch.cuda.empty_cache()  # an engine may want it next


def _parts(piece: Piece) -> Iterator[Piece]:
    """Yield the piece with as many of its variants at a time as memory is for; that takes a pass for each."""
    at_once = max(1, _TOGETHER // max(1, piece.numel))
    for first in range(0, len(piece.params), at_once):
        yield replace(piece, params=piece.params[first : first + at_once], first=first)


def _in_order(
    planned: Plan, pieces: Sequence[Piece], work: Callable[[Piece], R], workers: int
) -> Generator[R, None, None]:
    def size(piece: Piece) -> int:
        return piece.numel * len(piece.params)

    most = max(map(size, pieces), default=0) + min((workers - 1) * _IN_FLIGHT, _MOST_IN_FLIGHT)

    def ahead(piece: Piece) -> None:
        for model, stored in ((planned.base, piece.base), *((planned.sources[k], name) for k, name in piece.sources)):
            if isinstance(model, Checkpoint):  # an adapter is small
                model.prefetch(stored)

    return in_order(pieces, work, size=size, most=most, workers=workers, ahead=ahead)


def _merge_piece(
    piece: Piece, planned: Plan, device: torch.device, seed: int, more: Sequence[Mapping[str, object]]
) -> Merged:
    """Read one tensor of every model and merge it, in all its variants."""
    import torch

    from fusion.blocks import NotFinite

    start, tuned = _read(piece, planned)
    if not start.is_floating_point():
        same = _unanimous(piece, start, tuned, planned)
        return Merged(piece.name, piece.first, tuple(same.clone() for _ in piece.params), ((),) * len(piece.params))
    dtype = planned.dtype or start.dtype
    heard: list[list[Coefficient]] = [[] for _ in piece.params]
    with _stream(device):
        start, tuned = _sent(start, device), [_sent(tensor, device) for tensor in tuned]
        if dtype != start.dtype:
            start = start.float()  # rounded once, at the end
        given = [
            {**params, **arguments, "tell": _ear(piece, into)}
            for params, arguments, into in zip(piece.params, more, heard, strict=True)
        ]
        try:
            merged = _variants(piece, start, tuned, given, seed=_seed(seed, piece.name))
        except NotFinite:
            raise _not_finite(piece, planned) from None
        except torch.OutOfMemoryError as error:
            raise FusionError(
                f"the GPU's memory does not hold tensor {piece.name!r} of {1 + len(tuned)} models: free it, or merge "
                "on the CPU (CUDA_VISIBLE_DEVICES= hides the GPUs)"
            ) from error
        results = [_fetched(tensor.to(dtype)) for tensor in merged]
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
    for tensor in results:
        _check_range(piece, tensor)
    return Merged(piece.name, piece.first, tuple(results), tuple(map(tuple, heard)))


def _variants(
    piece: Piece, start: Tensor, tuned: Sequence[Tensor], given: Sequence[Mapping[str, Any]], *, seed: int
) -> list[Tensor]:
    """Return the merged tensor for each of the given arguments, from one pass where the method knows how."""
    import torch

    from fusion.methods import GRIDS, METHODS, RANDOM

    parameter, together = GRIDS.get(piece.method, ("", None))
    apart = [{key: value for key, value in params.items() if key not in (parameter, "tell")} for params in given]
    if together and len(given) > 1 and parameter in given[0] and all(params == apart[0] for params in apart):
        values, tells = [params[parameter] for params in given], [params["tell"] for params in given]
        return together(start, tuned, **apart[0], **{parameter: values}, tells=tells)
    merged = []
    for params in given:
        drawn = {"generator": torch.Generator().manual_seed(seed)} if piece.method in RANDOM else {}
        merged.append(METHODS[piece.method](start, tuned, **params, **drawn))
    return merged


def _seed(seed: int, name: str) -> int:
    """Return a tensor's own seed, so that what is drawn depends on no order."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _ear(piece: Piece, into: list[Coefficient]) -> Tell:
    def tell(name: str, values: Sequence[float]) -> None:
        if name in PER_SOURCE:
            into.extend(
                Coefficient(piece.name, source, name, float(value))
                for (source, _), value in zip(piece.sources, values, strict=True)
            )
        else:
            into.extend(Coefficient(piece.name, None, name, float(value)) for value in values)

    return tell


def _read(piece: Piece, planned: Plan) -> tuple[Tensor, list[Tensor]]:
    start = planned.base.tensor(piece.base)
    tuned = [planned.sources[number].tensor(stored) for number, stored in piece.sources]
    if piece.over_vocabulary and planned.vocabulary is not None:
        return planned.vocabulary.fit(start, tuned, sources=[number for number, _ in piece.sources])
    return start, tuned


def _stream(device: torch.device) -> AbstractContextManager[object]:
    import torch

    if device.type != "cuda":
        return nullcontext()
    if not hasattr(_mine, "stream"):  # one a thread: torch keeps memory for every stream
        _mine.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return torch.cuda.stream(_mine.stream)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _fetched(tensor: Tensor) -> Tensor:
    import torch

    if tensor.device.type != "cuda":
        return tensor
    result = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return result.copy_(tensor, non_blocking=True)


def weighed_together(planned: Plan) -> list[Piece]:
    """Return the tensors that VaRM weighs by their layer or by the model."""
    return [piece for piece in planned.pieces if any(_group(piece, params) for params in piece.params)]


def source_energies(planned: Plan) -> dict[str, list[float]]:
    """Return Σ δ² of each source for every tensor that is weighed together with others: a pass over those tensors."""
    from fusion.averages import energies
    from fusion.blocks import NotFinite

    def work(piece: Piece) -> tuple[str, list[float]]:
        try:
            return piece.name, energies(*_read(piece, planned))
        except NotFinite:
            raise _not_finite(piece, planned) from None

    wanted = weighed_together(planned)
    return dict(_in_order(planned, wanted, work, cores())) if wanted else {}


def grouped(planned: Plan, found: Mapping[str, Sequence[float]]) -> dict[str, list[dict[str, object]]]:
    """Return, of what source_energies found, each source's sum over a tensor's group: an argument for each variant."""
    groups = {piece.name: [_group(piece, params) for params in piece.params] for piece in weighed_together(planned)}
    sums: dict[tuple[str, int], float] = defaultdict(float)  # by group and source; added up in the plan's order
    wanted = [piece for piece in planned.pieces if piece.name in groups]
    for piece in wanted:
        for group in {group for group in groups[piece.name] if group}:
            for (source, _), energy in zip(piece.sources, found[piece.name], strict=True):
                sums[group, source] += energy
    return {
        piece.name: [
            {"energies": [sums[group, source] for source, _ in piece.sources]} if group else {}
            for group in groups[piece.name]
        ]
        for piece in wanted
    }


def _group(piece: Piece, params: Mapping[str, object]) -> str | None:
    """Return the name of the tensors that a tensor is weighed together with; None: it is weighed alone."""
    layer = layer_of(piece.name)
    if params.get("granularity") == "layer":
        return f"tensor {piece.name}" if layer is None else f"layer {layer}"
    return "the model" if params.get("granularity") == "model" else None


def _unanimous(piece: Piece, start: Tensor, tuned: Sequence[Tensor], planned: Plan) -> Tensor:
    for tensor, (number, stored) in zip(tuned, piece.sources, strict=True):
        if not start.equal(tensor):
            raise CheckpointError(
                f"tensor {stored!r} is of {start.dtype} and differs in {planned.sources[number].folder}; "
                "whole numbers cannot be merged"
            )
    return start


def _check_range(piece: Piece, result: Tensor) -> None:
    if not result.numel() or all(math.isfinite(end) for end in result.aminmax()):
        return
    import torch

    largest = torch.finfo(result.dtype).max
    raise CheckpointError(
        f"the merged tensor {piece.name!r} does not fit into {str(result.dtype).removeprefix('torch.')}, whose numbers "
        f"end at {largest:g}; "
        + ("set dtype to bfloat16 or float32" if largest < 1e38 else "make weights and scale smaller")
    )


def _not_finite(piece: Piece, planned: Plan) -> CheckpointError:
    """Return the error of the tensor that is not finite; of a fitted vocabulary, rows of one reach the others."""
    stored = ((planned.base, piece.base), *((planned.sources[number], name) for number, name in piece.sources))
    for model, name in stored:
        tensor = model.tensor(name)
        if bad := int((~tensor.isfinite()).sum()):
            return CheckpointError(
                f"tensor {name!r} in {model.file(name)} has {bad} NaN or infinite of {tensor.numel()} numbers; "
                "that model is broken: train or fetch it again"
            )
    return CheckpointError(f"the differences of tensor {piece.name!r} between the models overflow float32")
