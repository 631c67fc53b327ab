"""What can go wrong in this room.

FusionError
├── CheckpointError   a model's files are missing, broken, of the wrong kind, or cannot be written
└── RecipeError       what was asked for makes no sense: method, parameters, or training data
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable


class FusionError(Exception):
    """A fusion step failed; the message names the value, the place and the next step."""


class CheckpointError(FusionError):
    """A model's files are missing, broken, of the wrong kind, or cannot be written."""


class RecipeError(FusionError):
    """A merge or training recipe asks for something that does not exist or makes no sense."""


def need(*packages: str, extra: str) -> None:
    """Raise FusionError when one of the packages, which fuseval's ``extra`` brings, is not installed."""
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        raise FusionError(f"this needs {', '.join(missing)}, not installed here: pip install 'fuseval[{extra}]'")


def listed(names: Iterable[str]) -> str:
    """Return the names in order, as a message lists them."""
    return ", ".join(sorted(names))


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest of the names, or nothing."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
