"""What studies tried and found, as typed rows: what the ablation's report and the command line show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evals.records import Outcome, Study, Trial
    from results.store import Ledger

_COLUMNS = (
    "study, study_name, number, model, model_name, params, state, rung, amounts, lows, highs, "
    "coalesce(feasible, true), coalesce(best, false), holdout, holdout_low, holdout_high, coalesce(parts, '[]'), "
    "questions, dollars, making, answering, judging, note"
)


@dataclass(frozen=True, slots=True)
class TrialRow:
    """A merge that a study tried; ``amounts`` has one value an objective, and is empty where nothing is known yet.

    ``best`` is the study's best by its one objective, and ``holdout`` what that one is worth on the questions that the
    search did not see, with its interval. ``parts`` are the scores, penalties and constraints that the values are made
    of. Times in seconds.
    """

    study: str
    study_name: str
    number: int
    model: str
    model_name: str
    params: Mapping[str, Any]
    state: str
    rung: int
    amounts: tuple[float | None, ...]
    lows: tuple[float | None, ...]
    highs: tuple[float | None, ...]
    feasible: bool
    best: bool
    holdout: float | None
    holdout_low: float | None
    holdout_high: float | None
    parts: tuple[Mapping[str, Any], ...]
    questions: int
    dollars: float | None
    making: float
    answering: float
    judging: float
    note: str

    @property
    def value(self) -> float | None:
        """What it is worth by the first objective."""
        return self.amounts[0] if self.amounts else None

    @property
    def comparable(self) -> float | None:
        """What to hold against other trials: of one that was dropped its estimate over all questions."""
        return self._estimate if self.is_estimated else self.value

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """The 95 % interval of what is comparable; an estimate has none."""
        return (None, None) if self.is_estimated else (self.low, self.high)

    @property
    def is_estimated(self) -> bool:
        """Whether it was dropped, and is known by its estimate."""
        return self.state == "dropped" and self._estimate is not None

    @property
    def _estimate(self) -> float | None:
        return next((part["value"] for part in self.parts if part["kind"] == "estimate"), None)

    @property
    def low(self) -> float | None:
        """The lower end of the first objective's 95 % interval."""
        return self.lows[0] if self.lows else None

    @property
    def high(self) -> float | None:
        """The upper end of it."""
        return self.highs[0] if self.highs else None


def trials_wide(ledger: Ledger, *, study: str | None = None) -> list[TrialRow]:
    """Return the trials of one study (by its id) or of all, in the order in which they were proposed."""
    where, params = ("WHERE study = ?", [study]) if study else ("", [])
    query = f"SELECT {_COLUMNS} FROM trials_wide {where} ORDER BY study_name, study, number"
    rows = ledger.sql(query, *params).fetchall()
    return [TrialRow(*map(_loaded, TrialRow.__slots__, row)) for row in rows]


def _loaded(name: str, value: Any) -> Any:
    if name == "params":
        return json.loads(value)
    if name == "parts":
        return tuple(json.loads(value))
    return tuple(value or ()) if name in ("amounts", "lows", "highs") else value


def earlier_trials(ledger: Ledger, study: Study) -> list[tuple[Study, Trial, Outcome]]:
    """Return the trials of other studies of the same base and sources that had finished before this one began."""
    rows = ledger.sql(
        """SELECT t.study, t.number FROM trials t
        JOIN studies mine ON mine.id = ?
        WHERE t.study <> mine.id AND t.state = 'finished' AND t.recorded_at < mine.recorded_at
        ORDER BY t.recorded_at, t.study, t.number""",
        study.id,
    ).fetchall()
    alike = {s.id: s for s in ledger.studies(base=study.base) if s.sources == study.sources}
    trials = {(t.study, t.number): t for t in ledger.trials()}
    last = {(o.study, o.model): o for o in sorted(ledger.outcomes(part="search"), key=lambda o: o.rung)}
    keys = [(s, number) for s, number in rows if s in alike and (s, trials[s, number].model) in last]
    return [(alike[s], trials[s, number], last[s, trials[s, number].model]) for s, number in keys]
