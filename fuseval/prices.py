"""Which price a model has: the endpoint's own, one of the user's file, or one of the table that comes with fuseval.

The table (``prices.yaml``) is dated and holds for the vendors' own base URLs alone: what OpenAI asks for a model says
nothing about a server elsewhere that calls its model the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from evals.prices import Price
from fuseval.config import ConfigError, did_you_mean, read_mapping

OPENAI = "https://api.openai.com/v1"  # what a base URL of None means
TABLE = Path(__file__).with_name("prices.yaml")

_NUMBERS = ("input", "output", "cached_input", "batch")
_FIELDS = (*_NUMBERS, "as_of", "source")
_SECTION = ("source", "hosts", "models")

# What vendors put behind a model's name to say when it was made: -2024-08-06, -20241022, -0613, -001, -latest. Nothing
# else may follow: gpt-4o-audio-preview is not gpt-4o, o3-pro is not o3.
_DATED = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|\d{4}|00\d|\d{2}-\d{4}|latest)$")


def find_price(
    model: str, *, base_url: str | None, own: Mapping[str, object] | None = None, file: Path | None = None
) -> Price | None:
    """Return the price of a model at a base URL (None: OpenAI's own), or None where nobody knows it.

    ``own`` is what the endpoint says itself, as ``{"input": 2.5, "output": 10}`` with the other fields of
    :class:`evals.prices.Price` if wanted; ``file`` is the user's, of the form of ``prices.yaml``. The first of own,
    file and table that knows the model is taken whole. Raises ConfigError for a price that cannot be one.
    """
    if own is not None:
        return _price(own, "price of the endpoint", source="the experiment")
    host = urlsplit(base_url or OPENAI).hostname or ""
    users = _find(_read(file), model, host=host) if file else None
    return users or _find(_table(), model, host=host)


def unpriced(name: str, *, model: str, base_url: str | None) -> str:
    """Return why a budget cannot hold for the experiment's model ``name``, and what to write."""
    return (
        f"model {name!r} needs a price for the budget: none is known of {model!r} at {base_url or OPENAI}. Give its "
        "endpoint price: {input: ..., output: ...} in US dollars per million tokens (0 for a server of your own)"
    )


_Table = Mapping[str, tuple[frozenset[str], Mapping[str, Price]]]  # section -> its hosts, and prices by model


@cache
def _table() -> _Table:
    return _read(TABLE)


def _read(file: Path) -> _Table:
    """Read a file of prices: sections of ``source``, ``hosts`` and ``models``."""
    found = {}
    for name, section in read_mapping(file, "file of prices").items():
        place = f"{name} in {file.name}"
        if not isinstance(section, dict) or not isinstance(section.get("models"), dict):
            raise ConfigError(f"a section of prices is a mapping with models, each with input and output ({place})")
        _known(section, _SECTION, place)
        hosts = section.get("hosts") or []
        if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
            raise ConfigError(f"hosts is a list of host names, like [api.example.com], not {hosts!r} ({place})")
        source = str(section.get("source") or file.name)
        models = {
            str(model): _price(given, f"{name}.models.{model} in {file.name}", source=source)
            for model, given in section["models"].items()
        }
        found[str(name)] = frozenset(hosts), models
    return found


def _find(table: _Table, model: str, *, host: str) -> Price | None:
    sections = [models for hosts, models in table.values() if not hosts or host in hosts]
    bare = model.removeprefix("models/")  # as Gemini's endpoint lists its own
    for name in dict.fromkeys((model, bare, _DATED.sub("", bare))):
        for models in sections:
            if name in models:
                return models[name]
    return None


def _price(given: Any, place: str, *, source: str) -> Price:
    if not isinstance(given, Mapping):
        raise ConfigError(f"a price is a mapping like {{input: 2.5, output: 10}}, not {given!r} ({place})")
    _known(given, _FIELDS, place)
    numbers: dict[str, float] = {}
    for name in _NUMBERS:
        value = given.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise ConfigError(
                f"{name} is a number from 0 on, in US dollars per million tokens, not {value!r} ({place})"
            )
        numbers[name] = float(value)
    for name in ("input", "output"):
        if name not in numbers:
            raise ConfigError(f"{name!r} is missing: a price needs input and output ({place})")
    return Price(**numbers, as_of=str(given.get("as_of") or ""), source=str(given.get("source") or source))


def _known(given: Mapping[Any, object], names: tuple[str, ...], place: str) -> None:
    for key in given:
        if key not in names:
            raise ConfigError(
                f"there is no {key!r} here; there are {', '.join(names)}.{did_you_mean(key, names)} ({place})"
            )
