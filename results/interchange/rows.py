"""What a row of another project's file holds, as plain values; reading and writing the files themselves."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Place = tuple[str | int, ...]
"""Where a value stands in a row: keys and positions, outermost first."""


_DEEPEST = 100  # levels of lists and objects; Python's own limit depends on who asks
_LONGEST = 100  # bytes of a name in a path; folders take 255, and there are suffixes


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


@dataclass(frozen=True, slots=True)
class Target:
    """Where a project keeps a row: ``form`` is a path with a {} for each of ``names``, whose letters may be any."""

    form: str
    names: tuple[str, ...] = ()


def raw_rows(path: Path, *, faults: list[str] | None = None) -> list[dict[str, Any]]:
    """Return the rows of a JSON array or of JSON lines; raises FormatError, which names the file and the line.

    With ``faults``, what is no row is left out and told there, as long as there are some that are.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is no UTF-8 text: {error}") from error
    if text.lstrip()[:1] == "[":
        rows = _loaded(text, str(path))
        found = [row for row in rows if isinstance(row, dict)]
        wrong = [f"{path} is a JSON list, but not only of objects"] * (len(rows) - len(found))
    else:
        found, wrong = _from_lines(path, text)
    if wrong and (faults is None or not found):
        raise FormatError(wrong[0])
    if faults is not None:
        faults += wrong
    return found


def first_row(path: Path) -> dict[str, Any] | None:
    """Return the first row of a file of JSON lines; None for any other, and for one that cannot be read."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            row = next((json.loads(line) for line in file if line.strip()), None)
    except (OSError, ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


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
    """Return a model's or judge's name as one part of a path; a long one is cut, and ends in a digest of the whole."""
    plain = "".join("__" if c in "/\\" else c for c in name if c.isprintable() and c not in ':*?"<>|').strip(" .")
    return _told_apart(plain, name) if len(plain.encode()) > _LONGEST else plain or "unnamed"


def file_names(names: Iterable[str]) -> dict[str, str]:
    """Return, by name, what each is called as one part of a path: no two alike, not even where case does not count."""
    found = {name: file_name(name) for name in sorted(set(names))}
    apart: set[str] = set()
    while True:
        alike = defaultdict(set)
        for name, part in found.items():
            alike[unicodedata.normalize("NFC", part).casefold()].add(name)
        shared = {name for group in alike.values() if len(group) > 1 for name in group} - apart
        if not shared:
            return found
        found |= {name: _told_apart(found[name], name) for name in shared}
        apart |= shared


def _told_apart(part: str, name: str) -> str:
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    if part.endswith(f"-{digest}"):
        return part
    return f"{part.encode()[:_LONGEST].decode(errors='ignore').rstrip(' .')}-{digest}"


def _loaded(text: str, place: str) -> Any:
    try:
        value = json.loads(text)
        if text.count("[") + text.count("{") > _DEEPEST and _deeper(value):
            raise RecursionError
    except ValueError as error:
        raise FormatError(f"{place} is no JSON: {error}") from error
    except RecursionError as error:
        raise FormatError(f"{place} is JSON that is nested too deeply") from error
    return value


def _deeper(value: object) -> bool:
    """Tell whether a value is nested more deeply than rows are, so that it could be read but perhaps not written."""
    inside = [value]
    for _ in range(_DEEPEST):
        lists = [list(v.values()) if isinstance(v, dict) else v for v in inside if isinstance(v, dict | list)]
        inside = [v for values in lists for v in values]
    return bool(inside)


def _from_lines(path: Path, text: str) -> tuple[list[dict[str, Any]], list[str]]:
    rows, wrong = [], []
    for number, line in enumerate(text.split("\n"), 1):  # never splitlines(): strings may hold U+2028
        if line.strip():
            try:
                rows.append(_object(path, number, line))
            except FormatError as error:
                wrong.append(str(error))
    return rows, wrong


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    row = _loaded(line, f"line {number} of {path}")
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
