"""Content keys: the hash of what produced a row is its primary key."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


def content_key(*parts: object) -> str:
    """Return 32 hex digits (128 bits of SHA-256) of the parts' canonical JSON; dataclasses count as their fields."""
    text = json.dumps([_plain(part) for part in parts], ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _plain(value: object) -> Any:
    if value is None or isinstance(value, str | int | float | bool):  # most are
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_plain(v) for v in value]
    raise TypeError(f"cannot make a content key of a {type(value).__name__}: {value!r}")
