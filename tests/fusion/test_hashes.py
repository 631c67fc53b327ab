from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fusion.checkpoints import content_hash
from fusion.errors import CheckpointError

WEIGHTS = {"a": torch.ones(3)}


def test_the_hash_is_32_hex_digits_of_the_content_wherever_it_lies(make_checkpoint):
    one, other = (content_hash(make_checkpoint(name, WEIGHTS)) for name in ("one", "other"))
    assert one == other
    assert len(bytes.fromhex(one)) == 16


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "chat_template.jinja", "generation_config.json"])
def test_a_file_that_decides_what_the_model_says_changes_the_hash(make_checkpoint, name: str):
    folder = make_checkpoint("model", WEIGHTS)
    before = content_hash(folder)
    (folder / name).write_text("{}")
    assert content_hash(folder) != before


@pytest.mark.parametrize("name", ["README.md", "recipe.json", "training.json", ".gitattributes"])
def test_a_file_that_only_tells_about_the_model_does_not(make_checkpoint, name: str):
    folder = make_checkpoint("model", WEIGHTS)
    before = content_hash(folder)
    (folder / name).write_text("something else")
    assert content_hash(folder) == before


def test_a_gguf_file_is_hashed_as_a_whole(tmp_path: Path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF one")
    before = content_hash(file)
    file.write_bytes(b"GGUF two")
    assert content_hash(file) != before


def test_a_large_file_is_read_once_until_it_changes(tmp_path: Path):
    file, cache = tmp_path / "model.gguf", tmp_path / "cache"
    file.write_bytes(b"1" * (1 << 20))
    os.utime(file, ns=(1, 1))
    first = content_hash(file, cache=cache)
    file.write_bytes(b"2" * (1 << 20))
    os.utime(file, ns=(1, 1))  # as if it had not changed
    assert content_hash(file, cache=cache) == first
    os.utime(file, ns=(2, 2))
    assert content_hash(file, cache=cache) == content_hash(file) != first


def test_a_broken_cache_is_only_a_lost_one(tmp_path: Path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"1" * (1 << 20))
    (tmp_path / "hashes.json").write_text("{ half")
    assert content_hash(file, cache=tmp_path) == content_hash(file)
    assert content_hash(file, cache=tmp_path) == content_hash(file)


def test_where_there_is_no_model_there_is_no_hash(tmp_path: Path):
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        content_hash(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"holds no \*\.safetensors"):
        content_hash(tmp_path)
