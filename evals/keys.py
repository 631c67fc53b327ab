"""Content keys: the hash of what produced a row is its primary key."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def content_key(*parts: object) -> str:
    """Return 32 hex digits (128 bits of SHA-256) of the parts' canonical JSON; dataclasses count as their fields."""
    text = _CANONICAL.encode([_plain(part) for part in parts])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@cache
def _fields(type_: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(type_))


def _plain(value: object) -> Any:
    if value is None or isinstance(value, str | int | float | bool):  # most are
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(getattr(value, name)) for name in _fields(type(value))}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_plain(v) for v in value]
    raise TypeError(f"cannot make a content key of a {type(value).__name__}: {value!r}")
