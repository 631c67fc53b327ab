"""A merge that other processes do in parts has the same bytes as one that is done here."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from fusion.publish import merge_to_folder, merge_to_folders
from fusion.recipe import Grid, MergeRecipe

MOST = 3000  # bytes of a file


@pytest.fixture
def models(make_checkpoint) -> list[Path]:
    draw = torch.Generator().manual_seed(1)
    shapes = {f"model.layers.{n}.mlp.up_proj.weight": (20, 30) for n in range(6)} | {"model.norm.weight": (20,)}
    base = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    tuned = [{n: x + torch.randn(x.shape, generator=draw) / 9 for n, x in base.items()} for _ in range(2)]
    return [make_checkpoint(name, made) for name, made in zip(("base", "one", "two"), (base, *tuned), strict=True)]


def here(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    return map(work, items)


def in_processes(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, items)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".parquet"}


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("sce", {"select_topk": 0.3}),
        ("dare_ties", {"weights": 0.5, "density": 0.5}),
        ("varm", {"granularity": "layer"}),
        ("varm", {"granularity": "model"}),
    ],
)
def test_parts_make_the_same_files(tmp_path: Path, models: list[Path], method: str, params: dict[str, Any]):
    recipe = MergeRecipe(method, models[0], tuple(models[1:]), params, dtype="bfloat16")
    merge_to_folder(recipe, tmp_path / "a", title="merged", max_shard_bytes=MOST)
    heard: list[tuple[int, int]] = []
    merge_to_folder(
        recipe, tmp_path / "b", title="merged", max_shard_bytes=MOST, workers=here, on_tensor=lambda *n: heard.append(n)
    )
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 2
    assert contents(tmp_path / "b") == contents(tmp_path / "a")
    assert (tmp_path / "b" / "coefficients.parquet").read_bytes()[:4] == b"PAR1"
    assert heard == [(n, 7) for n in range(1, 8)]


@pytest.mark.slow
def test_a_grid_is_made_by_two_processes(tmp_path: Path, models: list[Path]):
    recipe = MergeRecipe("ties", models[0], tuple(models[1:]), {"weights": 1.0})
    for name, workers in (("a", None), ("b", in_processes)):
        titles = {tmp_path / name / str(value): f"d{value}" for value in (0.2, 0.6)}
        merge_to_folders(recipe, titles, grid=Grid("density", (0.2, 0.6)), max_shard_bytes=2 * MOST, workers=workers)
    for value in ("0.2", "0.6"):
        assert contents(tmp_path / "b" / value) == contents(tmp_path / "a" / value)


def test_a_part_that_fails_leaves_no_checkpoint(tmp_path: Path, models: list[Path]):
    def broken(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        yield work(items[0])
        raise RuntimeError("a machine is gone")

    recipe = MergeRecipe("linear", models[0], tuple(models[1:]))
    with pytest.raises(RuntimeError, match="gone"):
        merge_to_folder(recipe, tmp_path / "out", title="merged", max_shard_bytes=MOST, workers=broken)
    assert [file for file in tmp_path.iterdir() if "out" in file.name] == []
