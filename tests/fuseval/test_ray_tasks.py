"""Merging over a local Ray cluster of two workers."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fuseval.cluster import joined
from fuseval.ray_tasks import cores_of_a_part, over
from fusion.errors import CheckpointError
from fusion.publish import merge_to_folder
from fusion.recipe import MergeRecipe

MOST = 100_000  # bytes of a file


@pytest.fixture(scope="module")
def ray() -> Any:
    pytest.importorskip("ray", reason="needs Ray: pip install -r requirements/ray.txt")
    with joined("local", cpus=2) as connected:
        yield connected


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    folder, draw = tmp_path_factory.mktemp("models"), torch.Generator().manual_seed(1)
    names = [f"model.layers.{n}.mlp.up_proj.weight" for n in range(8)]
    base = {name: torch.randn(200, 100, generator=draw) for name in names}
    for model in ("base", "one", "two"):
        (folder / model).mkdir()
        (folder / model / "config.json").write_text(json.dumps({"model_type": "llama"}))
        moved = {n: x + (model != "base") * torch.randn(x.shape, generator=draw) / 9 for n, x in base.items()}
        save_file(moved, folder / model / "model.safetensors")
    return [folder / model for model in ("base", "one", "two")]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".parquet"}


@pytest.mark.parametrize(
    ("free", "count", "share"),
    [([64, 64], None, 64), ([64, 56, 0], None, 56), ([64, 3], None, 64), ([0], None, 1), ([], None, 1), ([8, 8], 4, 4)],
)
def test_a_part_takes_what_is_free_on_most_machines(free, count, share):
    assert cores_of_a_part(free, count=count) == share


@pytest.mark.slow
def test_two_workers_write_the_bytes_of_one_process(ray, tmp_path: Path, models: list[Path]):
    recipe = MergeRecipe("varm", models[0], tuple(models[1:]), {"granularity": "model"})
    merge_to_folder(recipe, tmp_path / "here", title="merged", max_shard_bytes=MOST)
    merge_to_folder(recipe, tmp_path / "there", title="merged", max_shard_bytes=MOST, workers=over(ray, count=2))
    assert len(list((tmp_path / "there").glob("*.safetensors"))) == 8
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


@pytest.mark.slow
def test_what_is_wrong_with_a_model_is_told_as_it_is_here(ray, tmp_path: Path, models: list[Path]):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((models[1] / "config.json").read_bytes())
    names = [f"model.layers.{n}.mlp.up_proj.weight" for n in range(8)]
    save_file({name: torch.full((200, 100), torch.nan) for name in names}, broken / "model.safetensors")
    recipe = MergeRecipe("linear", models[0], (broken,))
    with pytest.raises(CheckpointError, match="20000 NaN or infinite"):
        merge_to_folder(recipe, tmp_path / "out", title="merged", max_shard_bytes=MOST, workers=over(ray, count=2))
    assert not (tmp_path / "out").exists()


def once_killed(marker: str) -> str:
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


@pytest.mark.slow
def test_a_part_whose_worker_is_killed_is_done_again(ray, tmp_path: Path):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no worker could import it
    assert list(over(ray, count=2)(once_killed, [str(tmp_path / "a"), str(tmp_path / "b")])) == ["done", "done"]


@pytest.mark.slow
def test_engines_that_hold_cores_are_not_waited_for(ray, tmp_path: Path):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

    class Engine:
        def begin(self) -> None: ...

    engine = ray.remote(num_cpus=1)(Engine).remote()
    ray.get(engine.begin.remote())
    (tmp_path / "a").touch()
    assert list(over(ray)(once_killed, [str(tmp_path / "a")])) == ["done"]
    ray.kill(engine)
