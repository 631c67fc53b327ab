from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fusion.errors import CheckpointError
from fusion.shards import ShardWriter, dtype_names, layout, main_dtype, name_shards, read_header


def write(folder: Path, tensors: dict[str, Tensor]) -> ShardWriter:
    with ShardWriter(folder, max_bytes=1 << 30) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
    name_shards(folder, writer.shards)
    return writer


def test_safetensors_reads_back_every_dtype_and_shape_that_we_write(tmp_path: Path):
    tensors = {
        f"{code} {shape}": torch.arange(24)[: torch.Size(shape).numel()].reshape(shape).to(dtype)
        for code, dtype in dtype_names().items()
        for shape in [(), (1,), (2, 3, 4), (0, 2)]
    }
    write(tmp_path, dict(sorted(tensors.items(), key=lambda item: -item[1].element_size())))
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert written[name].dtype == tensor.dtype
        assert written[name].shape == tensor.shape
        assert written[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))


def test_a_transposed_tensor_is_written_as_it_looks(tmp_path: Path):
    tensor = torch.arange(6.0).reshape(2, 3).T
    write(tmp_path, {"a": tensor})
    assert load_file(tmp_path / "model.safetensors")["a"].equal(tensor)


def test_what_would_lie_askew_goes_into_a_shard_of_its_own(tmp_path: Path):
    tensors = {"odd": torch.ones(3, dtype=torch.bfloat16), "wide": torch.ones(2)}
    written = write(tmp_path, tensors).shards
    assert layout([(name, x.dtype, x.shape) for name, x in tensors.items()], max_bytes=1 << 30) == written
    assert load_file(tmp_path / "model-00002-of-00002.safetensors")["wide"].tolist() == [1, 1]


def test_more_names_than_a_header_has_room_for_make_another_shard(tmp_path: Path):
    write(tmp_path, {f"model.layers.{n}.mlp.experts.gate_up_proj.weight": torch.ones(1) for n in range(5000)})
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    names = set()
    for file in files:
        with safe_open(file, framework="pt") as opened:
            names |= set(opened.keys())
    assert len(names) == 5000


def test_the_config_is_told_the_dtype_of_most_numbers(tmp_path: Path):
    writer = write(tmp_path, {"norm": torch.ones(4), "matrix": torch.ones(40, dtype=torch.bfloat16)})
    assert main_dtype(writer.shards) == "bfloat16"


def test_a_name_comes_once(tmp_path: Path):
    writer = ShardWriter(tmp_path, max_bytes=1 << 30)
    writer.add("a", torch.ones(1))
    with writer, pytest.raises(CheckpointError, match="'a' came twice"):
        writer.add("a", torch.ones(1))


def test_a_header_is_read_in_the_order_of_the_data(tmp_path: Path):
    write(tmp_path, {"z": torch.ones(1), "a": torch.ones(2)})
    assert list(read_header(tmp_path / "model.safetensors")) == ["z", "a"]


@pytest.mark.parametrize("keep", [0, 7, 40, -1])
def test_a_file_cut_short_is_recognised(tmp_path: Path, keep: int):
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(100)}, file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors .*fetch it again"):
        read_header(file)
