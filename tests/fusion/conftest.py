from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

MakeCheckpoint = Callable[..., Path]


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """Write tensors as a checkpoint folder with safetensors' own writer, in one or several files."""

    def make(name: str, *files: Mapping[str, Tensor], **config: object) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "float32", **config}))
        (folder / "tokenizer.json").write_text('{"version": "1.0"}')
        (folder / "README.md").write_text("a model")
        if len(files) == 1:
            save_file(dict(files[0]), folder / "model.safetensors")
            return folder
        weight_map = {}
        for number, tensors in enumerate(files):
            save_file(dict(tensors), folder / f"part{number}.safetensors")
            weight_map |= dict.fromkeys(tensors, f"part{number}.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return folder

    return make


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
