from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusion.errors import FusionError
from fusion.parquet_shards import ShardFolder, key_of, read_manifest, read_shard

SETTINGS = {"kind": "numbers", "k": 3}


def numbers(start: int) -> pa.Table:
    return pa.table({"n": pa.array(np.arange(start, start + 5), pa.int64())})


def filled(folder: Path, *starts: int, settings: dict[str, object] | None = None) -> ShardFolder:
    shards = ShardFolder(folder, settings or SETTINGS)
    for number, start in enumerate(starts):
        if not shards.has(key_of(start)):
            shards.write(number, key_of(start), numbers(start), rows=5)
    return shards


def test_what_is_written_is_read_back(tmp_path: Path):
    manifest = filled(tmp_path, 0, 10).finish([key_of(0), key_of(10)], note="hello")
    assert manifest == read_manifest(tmp_path)
    first, second = manifest.shards
    assert read_shard(tmp_path, first).equals(numbers(0))
    assert read_shard(tmp_path, second).equals(numbers(10))
    assert (manifest.count("rows"), manifest.told["note"], manifest.settings["k"]) == (10, "hello", 3)
    assert manifest.bytes == sum(file.stat().st_size for file in tmp_path.glob("*.parquet"))


def test_the_same_input_makes_the_same_bytes(tmp_path: Path):
    for name in "ab":
        filled(tmp_path / name, 0).finish([key_of(0)])
    a, b = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in "ab")
    assert a == b


def test_other_tools_can_read_a_shard(tmp_path: Path):
    [shard] = filled(tmp_path, 0).finish([key_of(0)]).shards
    assert pq.read_table(tmp_path / shard.file).equals(numbers(0))


def test_a_shard_without_its_voucher_is_made_again(tmp_path: Path):
    filled(tmp_path, 0, 10)
    next(tmp_path.glob("00001-*.json")).unlink()  # killed between the two
    (tmp_path / ".00002-abc.parquet.77.partial").write_bytes(b"half")
    again = ShardFolder(tmp_path, SETTINGS)
    assert (again.has(key_of(0)), again.has(key_of(10))) == (True, False)
    filled(tmp_path, 0, 10).finish([key_of(0), key_of(10)])
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".json", ".parquet", ".parquet"]


def test_a_folder_that_is_not_finished_is_not_read(tmp_path: Path):
    with pytest.raises(FusionError, match="is no folder of shards"):
        read_manifest(tmp_path)
    shards = filled(tmp_path, 0)
    with pytest.raises(FusionError, match=r"is not finished .*run what makes it again"):
        read_manifest(tmp_path)
    with pytest.raises(FusionError, match=r"lacks shard 1 \(1 of 2 in all\)"):
        shards.finish([key_of(0), key_of(10)])


def test_other_settings_are_refused_by_name(tmp_path: Path):
    filled(tmp_path, 0)
    with pytest.raises(FusionError, match="was begun with k 3, and now it is 4; choose another folder"):
        ShardFolder(tmp_path, {**SETTINGS, "k": 4})


def test_a_damaged_shard_is_named_and_made_again_when_asked(tmp_path: Path):
    [shard] = filled(tmp_path, 0).finish([key_of(0)]).shards
    file = tmp_path / shard.file
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(FusionError, match=rf"{shard.file} is damaged"):
        read_shard(tmp_path, shard)
    with pytest.raises(FusionError, match=rf"{shard.file} is damaged"):
        ShardFolder(tmp_path, SETTINGS)
    mended = ShardFolder(tmp_path, SETTINGS, repair=True)
    assert not mended.has(key_of(0))
    mended.write(0, key_of(0), numbers(0), rows=5)
    [shard] = mended.finish([key_of(0)]).shards
    assert read_shard(tmp_path, shard).equals(numbers(0))


def test_shards_that_are_no_longer_wanted_go_and_those_that_are_stay(tmp_path: Path):
    filled(tmp_path, 0, 10).finish([key_of(0), key_of(10)])
    kept = (tmp_path / read_manifest(tmp_path).shards[0].file).stat().st_mtime_ns
    manifest = filled(tmp_path, 0, 20, 30).finish([key_of(0), key_of(20), key_of(30)])
    assert len(manifest.shards) == 3
    assert (tmp_path / manifest.shards[0].file).stat().st_mtime_ns == kept
    assert len(list(tmp_path.glob("*.parquet"))) == 3


def test_a_shard_that_moves_to_another_place_is_kept(tmp_path: Path):
    filled(tmp_path, 0, 10).finish([key_of(0), key_of(10)])
    [shard] = ShardFolder(tmp_path, SETTINGS).finish([key_of(10)]).shards
    assert shard.number == 0
    assert read_shard(tmp_path, shard).equals(numbers(10))


def test_a_manifest_of_another_format_is_refused(tmp_path: Path):
    filled(tmp_path, 0).finish([key_of(0)])
    value = json.loads((tmp_path / "manifest.json").read_text())
    value["settings"]["format"] = 0
    (tmp_path / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(FusionError, match="has format 0, and this version reads 1"):
        read_manifest(tmp_path)
