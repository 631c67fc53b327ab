"""Merged checkpoints on disk: weights, tokenizer, recipe.json, coefficients.parquet and a model card."""

from __future__ import annotations

import importlib.metadata
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fusion.checkpoints import MAX_SHARD_BYTES, write_checkpoints, write_folders
from fusion.errors import CheckpointError, RecipeError
from fusion.hashes import content_hash
from fusion.memory import release, spare
from fusion.merge import Coefficient, Merged, merge_planned
from fusion.parts import Workers, merge_in_parts
from fusion.plan import Plan, plan
from fusion.recipe import Grid, MergeRecipe
from fusion.shards import Shard
from fusion.vocabulary import write_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

COEFFICIENTS = "coefficients.parquet"


def merge_to_folder(
    recipe: MergeRecipe,
    folder: Path,
    *,
    title: str,
    provenance: Mapping[str, object] | None = None,
    on_tensor: Callable[[int, int], None] | None = None,
    device: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    workers: Workers | None = None,
) -> None:
    """Write the merge as a checkpoint folder with recipe.json, coefficients.parquet and a model card.

    ``provenance`` says which models these were: ``base`` and ``sources`` map titles to content hashes, and ``ids``
    lists the identities of what is made. Without it the folders' names are the titles, and the hashes are computed.
    No local path is written.
    """
    merge_to_folders(
        recipe,
        {folder: title},
        grid=None,
        provenance=provenance,
        on_tensor=on_tensor,
        device=device,
        max_shard_bytes=max_shard_bytes,
        workers=workers,
    )


def merge_to_folders(
    recipe: MergeRecipe,
    titles: Mapping[Path, str],
    *,
    grid: Grid | None,
    provenance: Mapping[str, object] | None = None,
    on_tensor: Callable[[int, int], None] | None = None,
    device: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    workers: Workers | None = None,
) -> None:
    """Write the merges of a grid, each value's to its folder, from one pass over the models: see merge_to_folder.

    ``titles`` are the folders, in the order of the grid's values, and their models' titles. With ``workers`` they
    do the work; they must see all these folders, and write the same bytes.
    """
    planned = plan(recipe, grid)
    known = provenance or _provenance(recipe)
    names = [str(name) for name in known["sources"]]  # type: ignore[attr-defined]
    if len(names) != len(recipe.sources):
        told = ", ".join(names)
        raise RecipeError(f"{len(recipe.sources)} sources have {len(names)} titles ({told}); give each its own")
    heard: list[list[Coefficient]] = [[] for _ in titles]

    def hear(merged: Merged) -> tuple[str, Sequence[Tensor | None]]:
        last = merged.first + len(merged.variants)
        for into, coefficients in zip(heard[merged.first : last], merged.coefficients, strict=True):
            into.extend(coefficients)
        return merged.name, [*[None] * merged.first, *merged.variants, *[None] * (len(titles) - last)]

    def complete(number: int, folder: Path) -> None:
        title = list(titles.values())[number]
        params = recipe.params if grid is None else {**recipe.params, grid.parameter: grid.values[number]}
        mine = {key: value for key, value in known.items() if key != "ids"}
        if "ids" in known:
            mine["id"] = list(known["ids"])[number]  # type: ignore[call-overload]
        told = _told(title, replace(recipe, params=params), planned, mine)
        if planned.vocabulary is not None:
            write_tokenizer(planned.vocabulary, folder)
        _change_config(folder, planned.config)
        _write_coefficients(heard[number], names, folder)
        text = json.dumps(told, ensure_ascii=False, indent=2)
        (folder / "recipe.json").write_text(text + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_card(title, told, heard[number], names), encoding="utf-8")

    def elsewhere(works: Sequence[Path]) -> list[list[Shard]]:
        assert workers is not None
        shards, heard[:] = merge_in_parts(
            recipe, grid, works, workers=workers, max_bytes=max_shard_bytes, on_tensor=on_tensor
        )
        return shards

    folders = list(titles)
    if workers is not None:
        write_folders(elsewhere, folders, like=recipe.base, complete=complete)
        return
    stream = map(hear, merge_planned(planned, seed=recipe.seed, on_tensor=on_tensor, device=device))
    try:
        write_checkpoints(
            stream, folders, like=recipe.base, complete=complete, written=spare, max_shard_bytes=max_shard_bytes
        )
    finally:
        release()


def read_coefficients(folder: Path) -> list[tuple[str, str | None, str, float]]:
    """Return (tensor, source's title or None, coefficient's name, value) of a merged checkpoint, if it has them."""
    import duckdb

    if not (file := folder / COEFFICIENTS).is_file():
        return []
    try:
        rows = duckdb.execute("SELECT tensor, source, coefficient, value FROM read_parquet(?)", [str(file)]).fetchall()
    except duckdb.Error as error:
        why = str(error).splitlines()[0]
        raise CheckpointError(f"{file} cannot be read ({why}); remove the checkpoint and merge again") from error
    return [(tensor, source, name, value) for tensor, source, name, value in rows]


def _provenance(recipe: MergeRecipe) -> dict[str, object]:
    names = [path.name for path in recipe.sources]
    titles = [name if names.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(names, 1)]
    hashes = [content_hash(path) for path in recipe.sources]
    return {
        "base": {recipe.base.name: content_hash(recipe.base)},
        "sources": dict(zip(titles, hashes, strict=True)),
    }


def _told(title: str, recipe: MergeRecipe, planned: Plan, provenance: Mapping[str, object]) -> dict[str, Any]:
    return {
        "kind": "merge",
        "title": title,
        "method": recipe.method,
        "params": dict(recipe.params),
        "dtype": recipe.dtype,
        "tokenizer": recipe.tokenizer,
        "slices": [asdict(part) for part in recipe.slices],
        "seed": recipe.seed,
        **({"vocabulary": planned.vocabulary.told} if planned.vocabulary else {}),
        **provenance,
        "fuseval": importlib.metadata.version("fuseval"),
    }


def _change_config(folder: Path, changed: Mapping[str, Any]) -> None:
    if changed:
        file = folder / "config.json"
        config = json.loads(file.read_text(encoding="utf-8")) | changed
        file.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _write_coefficients(coefficients: Sequence[Coefficient], names: Sequence[str], folder: Path) -> None:
    import duckdb  # and not pyarrow, whose first use imports pandas

    columns = [
        [c.tensor for c in coefficients],
        [None if c.source is None else names[c.source] for c in coefficients],
        [c.name for c in coefficients],
        [c.value for c in coefficients],
    ]
    file = str(folder / COEFFICIENTS).replace("'", "''")
    try:
        with duckdb.connect() as database:
            database.execute(
                "CREATE TABLE told AS SELECT unnest(?::VARCHAR[]) AS tensor, unnest(?::VARCHAR[]) AS source, "
                "unnest(?::VARCHAR[]) AS coefficient, unnest(?::DOUBLE[]) AS value",
                columns,
            )
            database.execute(f"COPY told TO '{file}' (FORMAT parquet)")
    except duckdb.Error as error:
        raise CheckpointError(f"{file} cannot be written ({error}); is the disk full?") from error


def _card(title: str, told: Mapping[str, Any], coefficients: Sequence[Coefficient], names: Sequence[str]) -> str:
    method = told["method"] if isinstance(told["method"], str) else "several methods"
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "tags: [merge, fuseval]",
            "---",
            f"# {title}",
            "",
            f"Merged with fuseval {told['fuseval']} by `{method}`. `recipe.json` says of what, "
            f"`{COEFFICIENTS}` with which coefficient in every tensor. On average over the tensors:",
            "",
            *_averages(coefficients, names),
            "",
            "```json",
            json.dumps(told, ensure_ascii=False, indent=2),
            "```",
            "",
        ]
    )


def _averages(coefficients: Sequence[Coefficient], names: Sequence[str]) -> list[str]:
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for c in coefficients:
        values["all together" if c.source is None else names[c.source], c.name].append(c.value)
    if not values:
        return ["(no source changed anything)"]
    rows = [f"| {source} | {name} | {fmean(found):.4g} |" for (source, name), found in sorted(values.items())]
    return ["| source | coefficient | mean |", "|---|---|---|", *rows]
