from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from torch import Tensor

from fusion.checkpoints import Checkpoint, content_hash
from fusion.errors import CheckpointError, RecipeError
from fusion.merge import merge
from fusion.publish import merge_to_folder, merge_to_folders, read_coefficients
from fusion.recipe import Grid, MergeRecipe

EMBEDDING = "model.embed_tokens.weight"


def weights(value: float, *, dtype: torch.dtype = torch.float32, **more: Tensor) -> dict[str, Tensor]:
    return {EMBEDDING: torch.full((3, 2), value, dtype=dtype), "norm": torch.full((2,), 2 * value, dtype=dtype), **more}


def random(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"model.layers.{i}.w": torch.randn(8, 8, generator=generator) for i in range(2)}


def test_a_merge_in_a_folder_says_what_it_is(make_checkpoint, tmp_path: Path):
    base, one, other = (make_checkpoint(str(i), weights(i)) for i in (0, 1, 3))
    merge_to_folder(
        MergeRecipe("sce", base, (one, other), {"select_topk": 0.5}, "bfloat16"),
        tmp_path / "out",
        title="Both",
        provenance={"base": {"Zero": "00"}, "sources": {"One": "11", "Other": "33"}},
    )
    assert Checkpoint(tmp_path / "out").tensor("norm").dtype == torch.bfloat16
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    told = json.loads((tmp_path / "out/recipe.json").read_text())
    assert (told["method"], told["params"], told["seed"]) == ("sce", {"select_topk": 0.5}, 0)
    assert (told["base"], told["sources"]) == ({"Zero": "00"}, {"One": "11", "Other": "33"})
    assert str(tmp_path) not in (tmp_path / "out/recipe.json").read_text()
    card = (tmp_path / "out/README.md").read_text()
    assert "# Both" in card
    assert "| One | eta | 0.1 |" in card  # 1² of 1² + 3²


def test_without_provenance_the_inputs_are_hashed(make_checkpoint, tmp_path: Path):
    base, source = make_checkpoint("base", weights(0)), make_checkpoint("source", weights(1))
    merge_to_folder(MergeRecipe("linear", base, (source,)), tmp_path / "out", title="m")
    told = json.loads((tmp_path / "out/recipe.json").read_text())
    assert (told["base"], told["sources"]) == ({"base": content_hash(base)}, {"source": content_hash(source)})


def test_the_coefficients_of_every_tensor_and_source_lie_beside_the_weights(make_checkpoint, tmp_path: Path):
    base, one, other = (make_checkpoint(str(i), weights(i)) for i in (0, 1, 3))
    merge_to_folder(MergeRecipe("varm", base, (one, other)), tmp_path / "out", title="m")
    assert read_coefficients(tmp_path / "out") == [
        (EMBEDDING, "1", "weight", 0.1),
        (EMBEDDING, "3", "weight", 0.9),
        ("norm", "1", "weight", 0.1),
        ("norm", "3", "weight", 0.9),
    ]
    table = pyarrow.parquet.read_table(tmp_path / "out/coefficients.parquet")
    assert table.column_names == ["tensor", "source", "coefficient", "value"]


def test_a_checkpoint_without_coefficients_has_none_and_a_broken_file_is_an_error(tmp_path: Path):
    assert read_coefficients(tmp_path) == []
    (tmp_path / "coefficients.parquet").write_text("no")
    with pytest.raises(CheckpointError, match=r"coefficients\.parquet cannot be read.*merge again"):
        read_coefficients(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sce", "sce_fusechat", "sce_mergekit", "ties", "dare_ties", "task_arithmetic"])
def test_a_grid_writes_what_single_merges_would(make_checkpoint, tmp_path: Path, method: str):
    base, one, other = (make_checkpoint(str(i), random(i)) for i in (0, 1, 2))
    parameter = {"ties": "density", "dare_ties": "density", "task_arithmetic": "scale"}.get(method, "select_topk")
    values = (0.1, 0.5, 1.0)
    folders = {tmp_path / f"{value}": f"m-{value}" for value in values}
    merge_to_folders(MergeRecipe(method, base, (one, other)), folders, grid=Grid(parameter, values))
    for folder, value in zip(folders, values, strict=True):
        alone = dict(merge(MergeRecipe(method, base, (one, other), {parameter: value})))
        assert all(Checkpoint(folder).tensor(name).equal(tensor) for name, tensor in alone.items())
        assert json.loads((folder / "recipe.json").read_text())["params"] == {parameter: value}
        assert read_coefficients(folder)


def test_a_grid_with_a_value_that_cannot_be_is_refused_before_anything_is_written(make_checkpoint, tmp_path: Path):
    base, one, other = (make_checkpoint(str(i), random(i)) for i in (0, 1, 2))
    recipe = MergeRecipe("sce", base, (one, other))
    for values, said in (((0.1, 1.5), "select_topk.* 1.5"), ((), "no values")):
        with pytest.raises(RecipeError, match=said):
            merge_to_folders(recipe, {tmp_path / "a": "a", tmp_path / "b": "b"}, grid=Grid("select_topk", values))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]


KILLED = """
import os, signal, sys
from pathlib import Path
from fusion.publish import merge_to_folder
from fusion.recipe import MergeRecipe
base, out = Path(sys.argv[1]), Path(sys.argv[2])
def die(done, total):
    if done == 1:
        print(sorted(path.name for path in out.parent.iterdir()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
merge_to_folder(MergeRecipe("linear", base, (base,)), out, title="m", on_tensor=die)
"""


@pytest.mark.slow
def test_a_killed_merge_leaves_no_half_checkpoint_and_the_next_cleans_up(make_checkpoint, tmp_path: Path):
    base, out = make_checkpoint("base", random(0)), tmp_path / "made" / "out"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, base, out], capture_output=True, text=True, check=False, timeout=60
    )
    assert killed.returncode == -9, killed.stderr
    assert ".out.partial-" in killed.stdout
    assert not out.exists()
    merge_to_folder(MergeRecipe("linear", base, (base,)), out, title="m")
    assert [path.name for path in out.parent.iterdir()] == ["out"]


FULL = """
import os, sys
from pathlib import Path
from fusion.errors import CheckpointError
from fusion.publish import merge_to_folder
from fusion.recipe import MergeRecipe
base, disk = Path(sys.argv[1]), Path(sys.argv[2])
try:
    merge_to_folder(MergeRecipe("linear", base, (base,)), disk / "out", title="m")
except CheckpointError as error:
    print(error)
print(os.listdir(disk))
"""


@pytest.mark.slow
def test_a_full_disk_is_said_and_nothing_is_left_on_it(make_checkpoint, tmp_path: Path):
    base, disk = make_checkpoint("base", {"w": torch.ones(1 << 19)}), tmp_path / "disk"
    disk.mkdir()
    mounted = 'mount -t tmpfs -o size=1m tmpfs "$2" && exec "$0" -c "$3" "$1" "$2"'
    command = ["unshare", "-rm", "sh", "-c", mounted, sys.executable, base, disk, FULL]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"a disk to fill needs the right to mount one in a namespace: {done.stderr.strip()}")
    assert "the disk is full: " in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
