"""Reading a ledger: typed records, in an order that depends on nothing but the records, and any query."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from evals.records import (
    PROMPTS,
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
    Model,
    Outcome,
    Question,
    Reward,
    Score,
    Selection,
    Study,
    TrainingPoint,
    Trial,
    Verdict,
)
from results.tables import ITEMS, TABLES, clean
from results.unite import Batches

T = TypeVar("T")

AMONG = "(SELECT unnest(?::VARCHAR[]))"
"""The texts of a list that is a query's parameter."""


class Records:
    """What can be read of an open ledger; :class:`results.store.Ledger` says from where."""

    def _cursor(self) -> Any:
        """Return a cursor that sees everything added so far."""
        raise NotImplementedError

    def have(
        self, table: Literal["answers", "judgments", "judge_requests", "verdicts", "measures"], keys: Iterable[str]
    ) -> set[str]:
        """Return those of ``keys`` that are stored (of verdicts and measures: the keys of what they are about)."""
        key = {"verdicts": "request", "measures": "answer"}.get(table, "key")
        cursor = self._cursor()
        with cursor:
            query = f"SELECT {key} FROM {table} WHERE {key} IN {AMONG}"
            return {stored for (stored,) in cursor.execute(query, [cleaned(keys)]).fetchall()}

    def questions(self, benchmark: str, version: str) -> list[Question]:
        """Return a benchmark's questions in the order in which they were first added."""
        return self._read(Question, benchmark=benchmark, version=version)

    def models(self) -> list[Model]:
        """Return every model, by name."""
        return self._read(Model)

    def answers(
        self,
        *,
        keys: Iterable[str] | None = None,
        benchmark: str | None = None,
        version: str | None = None,
        models: Iterable[str] | None = None,
    ) -> list[Answer]:
        """Return answers; ``models`` are identities, and None anywhere means all."""
        return self._read(Answer, among={"key": keys, "model": models}, benchmark=benchmark, version=version)

    def judge_requests(
        self,
        *,
        keys: Iterable[str] | None = None,
        benchmark: str | None = None,
        version: str | None = None,
        judge: str | None = None,
    ) -> list[JudgeRequest]:
        """Return judge requests, answered or not."""
        return self._read(JudgeRequest, among={"key": keys}, benchmark=benchmark, version=version, judge=judge)

    def judgments(self, *, keys: Iterable[str] | None = None) -> list[Judgment]:
        """Return judgments by key."""
        return self._read(Judgment, among={"key": keys})

    def verdicts(
        self,
        *,
        benchmark: str | None = None,
        version: str | None = None,
        judge: str | None = None,
        models: Iterable[str] | None = None,
    ) -> list[Verdict]:
        """Return verdicts; those of checks have the judge "check"."""
        return self._read(Verdict, among={"model": models}, benchmark=benchmark, version=version, judge=judge)

    def item_scores(
        self,
        *,
        benchmark: str | None = None,
        version: str | None = None,
        metric: str | None = None,
        models: Iterable[str] | None = None,
    ) -> list[ItemScore]:
        """Return scores of single questions."""
        return self._read(ItemScore, among={"model": models}, benchmark=benchmark, version=version, metric=metric)

    def scores(self, *, benchmark: str | None = None, model: str | None = None) -> list[Score]:
        """Return scores; ``model`` is an identity."""
        return self._read(Score, benchmark=benchmark, model=model)

    def differences(self, *, benchmark: str | None = None, version: str | None = None) -> list[Difference]:
        """Return paired differences between models."""
        return self._read(Difference, benchmark=benchmark, version=version)

    def selections(self, *, benchmark: str | None = None, version: str | None = None) -> list[Selection]:
        """Return what the last run wanted of each model on each benchmark."""
        return self._read(Selection, benchmark=benchmark, version=version)

    def failures(self, *, stage: str | None = None, benchmark: str | None = None) -> list[Failure]:
        """Return the calls that brought nothing and have not succeeded since."""
        return self._read(Failure, stage=stage, benchmark=benchmark)

    def training(self, model: str | None = None) -> list[TrainingPoint]:
        """Return the logged steps of the training runs, of one model or all."""
        return self._read(TrainingPoint, model=model)

    def coefficients(self, model: str | None = None) -> list[Coefficient]:
        """Return the coefficients that merges used, of one merged model or all."""
        return self._read(Coefficient, model=model)

    def answer_flags(self, *, benchmark: str | None = None, version: str | None = None) -> list[AnswerFlag]:
        """Return the answers that look like attacks, by detector."""
        return self._read(AnswerFlag, benchmark=benchmark, version=version)

    def audits(self, *, benchmark: str | None = None, version: str | None = None) -> list[Audit]:
        """Return how far judges can be trusted."""
        return self._read(Audit, benchmark=benchmark, version=version)

    def batches(self, *, place: str | None = None, state: str | None = None) -> list[Batch]:
        """Return the batches that were handed to endpoints."""
        return self._read(Batch, place=place, state=state)

    def rewards(self, *, scorer: str | None = None, answers: Iterable[str] | None = None) -> list[Reward]:
        """Return how good answers were found, by scorer and by the answers' keys."""
        return self._read(Reward, among={"answer": answers}, scorer=scorer)

    def studies(self, *, base: str | None = None) -> list[Study]:
        """Return the searches over merges, of one base or all."""
        return self._read(Study, base=base)

    def trials(self, study: str | None = None) -> list[Trial]:
        """Return the merges that were tried, of one study (by its id) or all."""
        return self._read(Trial, study=study)

    def outcomes(self, study: str | None = None, *, part: str | None = None) -> list[Outcome]:
        """Return what models are worth by the objective of a study, rung by rung."""
        return self._read(Outcome, study=study, part=part)

    def aggregates(self, *, benchmark: str | None = None, version: str | None = None) -> list[Aggregate]:
        """Return what tasks' own metrics found over all answers of a model."""
        return self._read(Aggregate, benchmark=benchmark, version=version)

    def imported(self, *, kind: str | None = None) -> list[Imported]:
        """Return what imported files held beyond the records made of them."""
        return self._read(Imported, kind=kind)

    def merged(self) -> set[str]:
        """Return the identities of the models whose merge coefficients are stored."""
        return {model for (model,) in self.sql("SELECT DISTINCT model FROM coefficients").fetchall()}

    def benchmarks(self) -> list[tuple[str, str]]:
        """Return (name, version) of every benchmark that has questions or scores here."""
        rows = self.sql(
            "SELECT benchmark, version FROM questions WHERE benchmark <> ? "
            "UNION SELECT benchmark, version FROM scores ORDER BY ALL",
            PROMPTS,
        ).fetchall()
        return [(benchmark, version) for benchmark, version in rows]

    def sql(self, query: str, *params: object) -> Any:
        """Run a query over everything added so far; the result has ``fetchall()``, ``df()`` and ``arrow()``."""
        return self._cursor().execute(query, list(params))

    def stream(self, table: str, *, run: str | None = None) -> Batches:
        """Return a table's rows as a pyarrow.RecordBatchReader; of one ``run``, or ("") outside all, or of all."""
        import pyarrow

        cursor, column = self._cursor(), "id" if table == "runs" else "run"
        where = "" if run is None else f"WHERE coalesce({column}, '') = ?"
        relation = cursor.sql(f"SELECT * FROM {table} {where}", params=[] if run is None else [run])
        return pyarrow.RecordBatchReader.from_stream(relation)

    def _read(
        self, type_: type[T], *, among: Mapping[str, Iterable[str] | None] | None = None, **equal: str | None
    ) -> list[T]:
        table = ITEMS if type_ is ItemScore else TABLES[type_]
        conditions = [f"{column} = ?" for column, value in equal.items() if value is not None]
        values: list[Any] = [clean(value) for value in equal.values() if value is not None]
        cursor = self._cursor()
        with cursor:
            for column, items in (among or {}).items():
                if items is not None:
                    conditions.append(f"{column} IN {AMONG}")
                    values.append(cleaned(items))
            columns = ", ".join(column.name for column in table.columns)
            where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
            query = f"SELECT {columns} FROM {table.name} {where} ORDER BY {table.order}"
            rows = cursor.execute(query, values).fetchall()
        return [table.record(type_, row) for row in rows]


def cleaned(items: Iterable[str]) -> list[str]:
    """Return texts as the ledger holds them."""
    return [clean(item) for item in items]
