"""Other projects' files: FastChat's, AlpacaEval's and Arena-Hard's, in and out, without loss."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from results.interchange import alpaca_eval, arena_hard, fastchat
from results.interchange.rows import Row

FORMATS: dict[str, ModuleType] = {"fastchat": fastchat, "alpaca_eval": alpaca_eval, "arena_hard": arena_hard}
BENCHMARKS = {"fastchat": "mt_bench", "alpaca_eval": "alpaca_eval", "arena_hard": "arena_hard"}
MEANINGS: dict[str, str] = {**fastchat.MEANINGS, **alpaca_eval.MEANINGS, **arena_hard.MEANINGS}


def read_rows(kind: str, raws: Sequence[dict[str, Any]]) -> tuple[list[Row], list[str]]:
    """Return the rows of one of ``kind``'s files, and why others could not be read."""
    format_ = FORMATS[kind]
    schemas = [format_.schema(raw) for raw in raws]
    battles = iter(arena_hard.battles([raw for raw, s in zip(raws, schemas, strict=True) if s == arena_hard.BATTLES]))
    rows: list[Row] = []
    faults: list[str] = []
    for number, (raw, schema) in enumerate(zip(raws, schemas, strict=True), 1):
        if schema is None:
            faults.append(f"row {number} is none of {kind}'s ({', '.join(list(raw)[:6])})")
            continue
        try:
            row = next(battles) if schema == arena_hard.BATTLES else format_.read(raw)
            _check(row)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            faults.append(f"row {number} is not as {schema} rows are ({type(error).__name__}: {error})")
        else:
            rows.append(row)
    return rows, faults


def likely_kind(raw: dict[str, Any]) -> str | None:
    """Return the project whose row this looks like, or None."""
    return next((kind for kind, format_ in FORMATS.items() if format_.schema(raw)), None)


def _check(row: Row) -> None:
    """Raise TypeError where a name or a text is none."""
    names = [row.model, *(said.model for said in row.conversations), *(game.model for game in row.games)]
    texts = [text for said in row.conversations for text in said.turns] + [game.text for game in row.games]
    texts += [text for game in row.games for text in (game.prompt, game.system) if text]
    shown = [text for game in row.games for text in game.shown or ()]
    for value in [*names, row.question, *shown, *(text.text for text in texts)]:
        if not isinstance(value, str):
            raise TypeError(f"need a text, got {value!r}")
