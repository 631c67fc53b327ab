"""What a row of another project's file holds, as plain values; reading and writing the files themselves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Place = tuple[str | int, ...]
"""Where a value stands in a row: keys and positions, outermost first."""


class FormatError(ValueError):
    """A file is not what it should be; the message names the file, the row and what is expected."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text of a row, and where it stands in it; ``place`` is None for one that the row only implies."""

    text: str
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """One model's answers to one question, turn by turn.

    ``question`` is the file's own identifier; of AlpacaEval's files, the instruction.
    """

    question: str
    model: str
    turns: tuple[Text, ...]


@dataclass(frozen=True, slots=True)
class Game:
    """One reply of a judge about one model's answer, alone or beside a baseline's.

    ``baseline`` is None where the answer stands alone ("single") or the file does not say whose it is compared with.
    ``said`` is what the file itself says that the reply means, in a verdict's terms: the rating, or the preference
    for the model in [0, 1]; None where it says that it means nothing. ``shown`` are the answers that the judge saw
    where the row holds them beside the prompt: the model's and the baseline's.
    """

    question: str
    turn: int
    judge: str
    model: str
    baseline: str | None
    order: str
    reply: str
    text: Text
    said: float | None
    prompt: Text | None = None
    system: Text | None = None
    top_logprobs: tuple[tuple[str, float], ...] = ()
    shown: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file: ``schema`` names its kind, ``raw`` is the row itself, ``model`` whose answer it is about.

    ``question`` is the file's own identifier, or the instruction. ``unread`` counts the games that it should hold and
    does not.
    """

    schema: str
    raw: dict[str, Any]
    model: str
    question: str
    conversations: tuple[Conversation, ...] = ()
    games: tuple[Game, ...] = ()
    unread: int = 0


def raw_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON array or of JSON lines; raises FormatError, which names the file and the line."""
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip()[:1] == "[":
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise FormatError(f"{path} is no JSON: {error}") from error
        if not all(isinstance(row, dict) for row in rows):
            raise FormatError(f"{path} is a JSON list, but not of objects")
        return list(rows)
    found = []
    for number, line in enumerate(text.split("\n"), 1):  # never splitlines(): strings may hold U+2028
        if line.strip():
            found.append(_object(path, number, line))
    return found


def first_row(path: Path) -> dict[str, Any] | None:
    """Return the first row of a file of JSON lines; None for any other."""
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError:
                    return None
                return row if isinstance(row, dict) else None
    return None


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines, making the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(_dumped(row) + "\n" for row in rows)


def write_list(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as one JSON list, making the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(_dumped(row) for row in rows) + "\n]\n", encoding="utf-8", newline="\n")


def without(raw: dict[str, Any], places: Iterable[Place]) -> dict[str, Any]:
    """Return a copy of the row with None at these places; ``raw`` stays as it is."""
    top = dict(raw)
    copied: dict[Place, Any] = {(): top}
    for place in places:
        for depth in range(1, len(place)):
            parent = place[:depth]
            if parent not in copied:
                value = copied[parent[:-1]][parent[-1]]
                copied[parent] = dict(value) if isinstance(value, dict) else list(value)
                copied[parent[:-1]][parent[-1]] = copied[parent]
        copied[place[:-1]][place[-1]] = None
    return top


def put(raw: dict[str, Any], place: Sequence[str | int], value: object) -> None:
    """Put a value where ``place`` says, in the row itself."""
    target: Any = raw
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = value


def file_name(name: str) -> str:
    """Return a model's or judge's name as one part of a path."""
    plain = "".join("__" if c in "/\\" else c for c in name if c.isprintable() and c not in ':*?"<>|').strip(" .")
    return plain or "unnamed"


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise FormatError(f"line {number} of {path} is no JSON: {error}") from error
    if not isinstance(row, dict):
        raise FormatError(f"line {number} of {path} is JSON, but no object: {line[:60]!r}")
    return row


def _dumped(row: dict[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate: only an escape can say it
        return json.dumps(row)
    return text
