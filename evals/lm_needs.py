"""What a task of lm-eval needs besides lm-eval: packages, and nltk's data, which its code downloads when imported."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterable
from pathlib import Path

_PACKAGES = {"sentencepiece": "sentencepiece", "antlr4": "antlr4-python3-runtime==4.11", "sklearn": "scikit-learn"}
_SOUGHT = re.compile(rb"nltk\.data\.find\(\s*[\"'](\w+/(\w+))[\"']")


def make_repeatable() -> None:
    """Have langdetect, by which IFEval tells a text's language, draw alike every time, where a task has imported it."""
    if "langdetect" in sys.modules:
        sys.modules["langdetect"].DetectorFactory.seed = 0


def lacking_package(task: str, error: ImportError) -> str:
    """Say which package a task lacks, and how to get it."""
    lacking = getattr(error, "name", None) or ""
    package = _PACKAGES.get(lacking, lacking)
    ending = f"pip install {package}" if package else "See the task's README in lm-eval"
    return f"lm_eval:{task} needs a package that is not installed: {error}. {ending}"


def lacking_words(task: str, files: Iterable[Path]) -> str | None:
    """Say what data of nltk a task's Python ``files`` look for that are not there; None where nothing lacks.

    The code goes on where a download fails, and would fail at the first answer that is measured.
    """
    sought = {match.groups() for file in files for match in _SOUGHT.finditer(file.read_bytes())}
    if not sought or importlib.util.find_spec("nltk") is None:
        return None
    import nltk

    for place, name in sorted((a.decode(), b.decode()) for a, b in sought):
        try:
            nltk.data.find(place)
        except LookupError:
            return (
                f"lm_eval:{task} needs nltk's data {name}, which are not here and could not be downloaded: run `python "
                f"-m nltk.downloader {name}` where the network can be reached, and put its folder nltk_data/{place} "
                "into a folder that the environment variable NLTK_DATA names"
            )
    return None
