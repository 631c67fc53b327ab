"""How each record type lies in its table: columns, primary key, and what happens when a key is stored again."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache, lru_cache
from typing import Any, TypeAlias

from evals.records import (
    Aggregate,
    Answer,
    AnswerFlag,
    Audit,
    Batch,
    Coefficient,
    Difference,
    Failure,
    Imported,
    ItemScore,
    JudgeRequest,
    Judgment,
    Measure,
    Message,
    Model,
    Outcome,
    Question,
    Reward,
    Sampling,
    Score,
    Selection,
    Study,
    TrainingPoint,
    Trial,
    Verdict,
)

Record: TypeAlias = (
    Question
    | Model
    | Answer
    | JudgeRequest
    | Judgment
    | Verdict
    | Score
    | Difference
    | Selection
    | Failure
    | TrainingPoint
    | Coefficient
    | Imported
    | AnswerFlag
    | Audit
    | Batch
    | Reward
    | Study
    | Trial
    | Outcome
    | Measure
    | Aggregate
)


@dataclass(frozen=True, slots=True)
class Column:
    """One column: ``type`` is its DuckDB type, ``store`` and ``load`` carry a field's value in and out."""

    name: str
    type: str
    store: Callable[[Any], Any]
    load: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Table:
    """Where records of one type lie. ``replace``: a row stored again under its key replaces the first.

    ``extra`` are columns that follow those of the record and that no record holds.
    """

    name: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    order: str
    replace: bool
    extra: tuple[Column, ...] = ()

    def row(self, record: Record) -> tuple[Any, ...]:
        """Return the record as a row; a value that its column cannot hold raises TypeError or ValueError."""
        kind: Any = type(record)
        values = _values_of(kind)(record)
        try:
            return tuple([column.store(value) for column, value in zip(self.columns, values, strict=True)])
        except (TypeError, ValueError):
            pass  # said again below, with the name of the field
        names = [field.name for field in fields(record)]
        return tuple(_stored(*each, record) for each in zip(self.columns, names, values, strict=True))

    def record(self, type_: type[Any], row: tuple[Any, ...]) -> Any:
        """Return the record that a row holds."""
        return type_(*[column.load(value) for column, value in zip(self.columns, row, strict=True)])


def clean(text: str) -> str:
    """Return text that UTF-8 can hold: every lone surrogate becomes U+FFFD, all else (NUL too) stays as it is."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


@cache
def _values_of(type_: type[Any]) -> Callable[[Any], tuple[Any, ...]]:
    return operator.attrgetter(*(field.name for field in fields(type_)))


def _stored(column: Column, field: str, value: Any, record: Record) -> Any:
    try:
        return column.store(value)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{type(record).__name__}.{field} = {value!r} does not fit the ledger's column "
            f"{column.name} ({column.type}): {error}"
        ) from error


def _text(value: Any) -> str:
    if type(value) is str and value.isascii():  # most are
        return value
    if not isinstance(value, str):
        raise TypeError(f"need a str, got {type(value).__name__}")
    return clean(value)


def _integer(value: Any) -> int:
    number = operator.index(value)
    if not -(2**63) <= number < 2**63:
        raise ValueError("need a 64-bit integer")
    return number


def _maybe(store: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else store(value)


def _texts(value: Any) -> list[str]:
    return [_text(item) for item in value]


def _numbers(value: Any) -> list[float | None]:
    return [None if item is None else float(item) for item in value]


def _yes_or_no(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"need a bool, got {type(value).__name__}")
    return value


def _same(value: Any) -> Any:
    return value


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def _json(value: object) -> str:
    return clean(_ENCODER.encode(value))


@lru_cache  # thousands of answers share one
def _store_sampling(sampling: Sampling) -> str:
    return _json(asdict(sampling))


@lru_cache
def _load_sampling(text: str) -> Sampling:
    values = json.loads(text)
    return Sampling(**{**values, "stop": tuple(values["stop"])})


def _store_messages(messages: tuple[Message, ...]) -> str:
    return _json([{"role": message.role, "content": message.content} for message in messages])


def _load_messages(text: str) -> tuple[Message, ...]:
    return tuple(Message(**message) for message in json.loads(text))


def _pairs(name: str, number: str) -> tuple[str, Callable[[Any], Any], Callable[[Any], Any]]:
    def store(value: Any) -> list[dict[str, Any]]:
        return [{name: _text(first), number: float(second)} for first, second in value]

    def load(value: Any) -> tuple[tuple[str, float], ...]:
        return tuple((pair[name], pair[number]) for pair in value)

    return f"STRUCT({name} VARCHAR, {number} DOUBLE)[]", store, load


_TEXT = ("VARCHAR", _text, _same)
_TEXT_OR_NONE = ("VARCHAR", _maybe(_text), _same)
_NUMBER = ("DOUBLE", float, _same)
_NUMBER_OR_NONE = ("DOUBLE", _maybe(float), _same)
_INTEGER = ("BIGINT", _integer, _same)
_KINDS: Mapping[str, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "str": _TEXT,
    "str | None": _TEXT_OR_NONE,
    "int": _INTEGER,
    "float": _NUMBER,
    "float | None": _NUMBER_OR_NONE,
    "bool": ("BOOLEAN", _yes_or_no, bool),
    "tuple[str, ...]": ("VARCHAR[]", _texts, tuple),
    "tuple[float | None, ...]": ("DOUBLE[]", _numbers, tuple),
    "Sampling": ("JSON", _store_sampling, _load_sampling),
    "tuple[Message, ...]": ("JSON", _store_messages, _load_messages),
}
_SPECIAL: Mapping[tuple[type[Any], str], tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    (Judgment, "top_logprobs"): _pairs("token", "logprob"),
    (TrainingPoint, "extra"): _pairs("name", "value"),
    # Part of a primary key, which takes no NULL.
    (Score, "baseline"): ("VARCHAR", lambda value: _text(value or ""), lambda value: value or None),
    (Coefficient, "source"): ("VARCHAR", lambda value: _text(value or ""), lambda value: value or None),
    (Difference, "baseline"): ("VARCHAR", lambda value: _text(value or ""), lambda value: value or None),
}
_RENAMED = {"order": "answer_order", "check": "check_rule"}  # SQL reserves both words


def _table(
    type_: type[Any],
    name: str,
    *,
    key: str = "",
    order: str = "",
    replace: bool = False,
    extra: tuple[Column, ...] = (),
) -> Table:
    columns = [
        Column(_RENAMED.get(f.name, f.name), *(_SPECIAL.get((type_, f.name)) or _KINDS[str(f.type)]))
        for f in fields(type_)
    ]
    return Table(name, tuple(key.split()), tuple(columns), order or ", ".join(key.split()), replace, extra)


_ARRIVAL = (Column("position", "BIGINT", _same, _same),)  # grows, so that rows of one transaction have an order

TABLES: Mapping[type[Any], Table] = {
    Model: _table(Model, "models", key="id", order="name, id", replace=True),
    Question: _table(
        Question,
        "questions",
        key="benchmark version id",
        order="benchmark, version, position",  # the benchmark's own: rowid is not (INSERT OR IGNORE sorts by key)
        extra=_ARRIVAL,
    ),
    Failure: _table(Failure, "failures", key="key", order="stage, model, benchmark, question, key", replace=True),
    Answer: _table(
        Answer, "answers", key="key", order="benchmark, version, question, turn, model, key", extra=_ARRIVAL
    ),
    JudgeRequest: _table(
        JudgeRequest, "judge_requests", key="key", order="benchmark, version, judge, question, turn, model, key"
    ),
    Judgment: _table(Judgment, "judgments", key="key", extra=_ARRIVAL),
    Verdict: _table(
        Verdict,
        "verdicts",
        key="request judge",
        order="benchmark, version, judge, question, turn, model, request",
        replace=True,
        extra=_ARRIVAL,
    ),
    Score: _table(
        Score,
        "scores",
        key="model benchmark version judge baseline metric",
        replace=True,
        extra=(Column("provenance", "JSON", _json, json.loads), Column("scored_at", "TIMESTAMPTZ", _same, _same)),
    ),
    Difference: _table(
        Difference, "differences", key="model other benchmark version judge baseline metric", replace=True
    ),
    Selection: _table(Selection, "selections", key="model benchmark version", replace=True),
    TrainingPoint: _table(TrainingPoint, "training", key="model step", replace=True),
    # The order of rows is that of the merged checkpoint's tensors; two of one name differ in their source.
    Coefficient: _table(Coefficient, "coefficients", key="model tensor name source", replace=True),
    Imported: _table(Imported, "imported", key="key kind position"),
    AnswerFlag: _table(
        AnswerFlag,
        "answer_flags",
        key="answer detector",
        order="benchmark, version, model, question, detector, answer",
        replace=True,
    ),
    Audit: _table(Audit, "audits", key="judge benchmark version measure other", replace=True),
    Batch: _table(Batch, "batches", key="id place", replace=True),
    Reward: _table(Reward, "rewards", key="answer scorer", replace=True),
    Study: _table(Study, "studies", key="id", order="name, id", replace=True),
    Trial: _table(Trial, "trials", key="study number", replace=True),
    Outcome: _table(Outcome, "outcomes", key="study model part rung", replace=True),
    Measure: _table(Measure, "measures", key="answer metric", replace=True),
    Aggregate: _table(Aggregate, "aggregates", key="model benchmark version metric", replace=True),
}

ITEMS = _table(ItemScore, "item_scores", order="model, benchmark, version, judge, baseline, metric, question")
"""Item scores have no key: they come as one data frame a benchmark, see Ledger.put_scores."""
