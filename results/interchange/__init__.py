"""Other projects' files: FastChat's, AlpacaEval's and Arena-Hard's, in and out, without loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

from results.interchange import alpaca_eval, arena_hard, fastchat
from results.interchange.rows import Row
from results.tables import clean

FORMATS: dict[str, ModuleType] = {"fastchat": fastchat, "alpaca_eval": alpaca_eval, "arena_hard": arena_hard}
BENCHMARKS = {"fastchat": "mt_bench", "alpaca_eval": "alpaca_eval", "arena_hard": "arena_hard"}
MEANINGS: dict[str, str] = {**fastchat.MEANINGS, **alpaca_eval.MEANINGS, **arena_hard.MEANINGS}


def read_rows(kind: str, raws: Sequence[dict[str, Any]]) -> tuple[list[Row], list[str]]:
    """Return the rows of one of ``kind``'s files, and why others could not be read."""
    format_ = FORMATS[kind]
    schemas = [format_.schema(raw) for raw in raws]
    fought = [
        s == arena_hard.BATTLES and raw["winner"] in arena_hard.WINNERS for raw, s in zip(raws, schemas, strict=True)
    ]
    battles = iter(arena_hard.battles([raw for raw, told in zip(raws, fought, strict=True) if told]))
    rows: list[Row] = []
    faults: list[str] = []
    for number, (raw, schema, told) in enumerate(zip(raws, schemas, fought, strict=True), 1):
        if schema is None:
            faults.append(f"row {number} is none of {kind}'s ({', '.join(list(raw)[:6])[:200]})")
            continue
        try:
            row = next(battles) if told else format_.read(raw)
            _check(row)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            faults.append(f"row {number} is not as {schema} rows are ({type(error).__name__}: {str(error)[:200]})")
        else:
            rows.append(_named(row))
    return rows, faults


def likely_kind(raw: dict[str, Any]) -> str | None:
    """Return the project whose row this looks like, or None."""
    return next((kind for kind, format_ in FORMATS.items() if format_.schema(raw)), None)


def _named(row: Row) -> Row:
    """Return the row with names that UTF-8 can hold."""
    names = [row.model, *(said.model for said in row.conversations)]
    names += [name for game in row.games for name in (game.model, game.baseline, game.judge) if name]
    if all(name.isascii() or clean(name) == name for name in names):
        return row
    return replace(
        row,
        model=clean(row.model),
        conversations=tuple(replace(said, model=clean(said.model)) for said in row.conversations),
        games=tuple(
            replace(
                g,
                model=clean(g.model),
                judge=clean(g.judge),
                baseline=None if g.baseline is None else clean(g.baseline),
            )
            for g in row.games
        ),
    )


def _check(row: Row) -> None:
    """Raise TypeError where a name or a text is none."""
    names = [row.model, *(said.model for said in row.conversations)]
    names += [name for game in row.games for name in (game.model, game.judge, game.baseline or "")]
    texts = [text for said in row.conversations for text in said.turns] + [game.text for game in row.games]
    texts += [text for game in row.games for text in (game.prompt, game.system) if text]
    shown = [text for game in row.games for text in game.shown or ()]
    for value in [*names, row.question, *shown, *(text.text for text in texts)]:
        if not isinstance(value, str):
            raise TypeError(f"need a text, got {value!r}")
