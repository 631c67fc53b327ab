"""The rows of imported files, as the ledger keeps them: what answers, judgments and requests do not hold of them."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evals.records import Imported
from results.interchange.rows import Row, Target, Text, put, without
from results.tables import clean

if TYPE_CHECKING:
    from results.store import Ledger

_SHORT = 64  # characters; a shorter text stays where it is
_BATCH = 20_000

_TEXTS = {
    "answer": "SELECT key, text FROM answers WHERE key IN (SELECT unnest(?::VARCHAR[]))",
    "judgment": "SELECT key, text FROM judgments WHERE key IN (SELECT unnest(?::VARCHAR[]))",
    "request": "SELECT key, messages FROM judge_requests WHERE key IN (SELECT unnest(?::VARCHAR[]))",
}


@dataclass(frozen=True, slots=True)
class Held:
    """A text of a row that a record holds: in ``table`` "answer" or "judgment", or a "request"'s message by role.

    ``content`` is a digest that tells this text from others.
    """

    text: Text
    table: str
    key: str
    content: str
    role: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """An imported row put together again; ``requests`` and ``answers`` are the keys of the records made of it."""

    schema: str
    version: str
    target: Target
    model: str
    answers: tuple[str, ...]
    requests: tuple[str, ...]
    raw: dict[str, Any]


def digest(*parts: str | int | None) -> str:
    """Return 32 hex digits that are the parts': a content key for long texts."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = b"none" if part is None else str(part).encode("utf-8", "surrogatepass")
        found.update(b"%d:" % len(data) + data)
    return found.hexdigest()


def keep(
    row: Row, *, version: str, model: str, target: Target, held: Sequence[Held], requests: Sequence[str], position: int,
    again: Callable[[str], int],
) -> Imported:  # fmt: skip
    """Return the row without the texts that records hold, with the keys that put them back.

    The same row of the same model's has the same key, until a file repeats it: ``again`` counts those.
    """
    fill = [
        (h.text.place, h.table, h.key, h.role)
        for h in held
        if h.text.place and len(h.text.text) >= _SHORT and clean(h.text.text) == h.text.text
    ]
    left = json.dumps(without(row.raw, [place for place, *_ in fill]))
    same = digest(row.schema, version, model, left, *(h.content for h in held))
    extra = {
        "version": version,
        "model": model,
        "target": target.form,
        "names": target.names,
        "answers": [h.key for h in held if h.table == "answer"],
        "requests": requests,
        "fill": fill,
    }
    text = f'{json.dumps(extra)[:-1]}, "row": {left}}}'
    return Imported(key=digest(same, again(same)), kind=row.schema, position=position, extra=text)


def next_position(ledger: Ledger) -> int:
    """Return the position after the last imported row's."""
    [(last,)] = ledger.sql("SELECT coalesce(max(position), 0) FROM imported").fetchall()
    return int(last) + 1


def already(ledger: Ledger, keys: Collection[str]) -> set[str]:
    """Return those of these rows' keys that are stored."""
    query = "SELECT key FROM imported WHERE key IN (SELECT unnest(?::VARCHAR[]))"
    return {key for (key,) in ledger.sql(query, list(keys)).fetchall()}


def kept_rows(ledger: Ledger, *, kind: str, version: str | None, models: Collection[str] | None) -> list[Kept]:
    """Return the rows imported from ``kind``'s files, in the order of importing; ``models`` are identities."""
    query = "SELECT kind, extra FROM imported WHERE starts_with(kind, ?) ORDER BY position, key"
    stored = [(schema, json.loads(extra)) for schema, extra in ledger.sql(query, f"{kind}/").fetchall()]
    wanted = [
        (schema, extra)
        for schema, extra in stored
        if version in (None, extra["version"]) and (models is None or extra["model"] in models)
    ]
    keys: dict[str, set[str]] = defaultdict(set)
    for _, extra in wanted:
        for _, table, key, _ in extra["fill"]:
            keys[table].add(key)
    texts = {table: _texts(ledger, table, sorted(found)) for table, found in keys.items()}
    return [
        Kept(
            schema=schema,
            version=extra["version"],
            target=_target(extra),
            model=extra["model"],
            answers=tuple(extra["answers"]),
            requests=tuple(extra["requests"]),
            raw=_filled(extra, texts),
        )
        for schema, extra in wanted
    ]


def _texts(ledger: Ledger, table: str, keys: list[str]) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for begun in range(0, len(keys), _BATCH):
        for key, text in ledger.sql(_TEXTS[table], keys[begun : begun + _BATCH]).fetchall():
            if table != "request":
                found[key, ""] = text
                continue
            for message in json.loads(text):
                found[key, message["role"]] = message["content"]
    return found


def _target(extra: Mapping[str, Any]) -> Target:
    if "names" in extra:
        return Target(extra["target"], tuple(extra["names"]))
    parts = extra["target"].split("/")  # as it was kept once: a path
    return Target("/".join("{}" for _ in parts), tuple(parts))


def _filled(extra: Mapping[str, Any], texts: Mapping[str, Mapping[tuple[str, str], str]]) -> dict[str, Any]:
    row: dict[str, Any] = extra["row"]
    for place, table, key, role in extra["fill"]:
        put(row, place, texts[table][key, role])
    return row
