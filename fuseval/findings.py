"""What a study found: its trials as rows of a table, its winner in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from evals.composite import Gap
from evals.winner import Gain
from fuseval.ablate import winner_gain
from fuseval.study import count
from fuseval.trials import HOLDOUT, Ablation
from results.study_queries import TrialRow, trials_wide


def rows(ablation: Ablation) -> list[dict[str, Any]]:
    """Return the study's trials, a row each, with a column a parameter, the best first."""
    found = trials_wide(ablation.run.ledger, study=ablation.plan.record.id)
    names = list(dict.fromkeys(name for row in found for name in row.params))
    best = {row.number for row in found if row.best}
    order = sorted(found, key=lambda r: (r.number not in best, r.comparable is None, -(r.comparable or 0.0), r.number))
    return [_row(row, names) for row in order]


def table(ablation: Ablation) -> list[dict[str, str]]:
    """Return the same rows as people read them, with a few columns."""
    found = trials_wide(ablation.run.ledger, study=ablation.plan.record.id)
    params = {row.number: row.params for row in found}
    return [
        {
            "trial": f"{row['number']}{' (best)' if row['best'] else ''}",
            "recipe": ", ".join(f"{name.removeprefix('params.')}={v}" for name, v in params[row["number"]].items()),
            "state": str(row["state"]),
            "value": _worth(row),
            "asked": str(row["questions"]),
            "seconds": f"{row['making'] + row['answering'] + row['judging']:.0f}",
            "dollars": "" if not row["dollars"] else f"{row['dollars']:.2f}",
        }
        for row in rows(ablation)
    ]


def sentences(ablation: Ablation) -> Iterator[str]:
    """Yield what can be said of the winner, by questions that chose it and by others."""
    plan, best = ablation.plan, ablation.best
    states = [trial.state for trial in ablation.trials]
    yield f"{len(states)} trials: " + ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    if len(plan.file.ablation.objective) > 1:
        front = ", ".join(str(trial.number) for trial in ablation.front)
        yield f"Several objectives have no single winner. Trials that no other beats: {front or 'none'}"
        return
    if best is None:
        yield "No trial was finished that keeps every constraint, so there is no winner."
        return
    found = winner_gain(ablation)
    assert found is not None
    name = ablation.candidate(best).name
    yield f"Trial {best.number} ({name}) is worth most: {best.params}"
    yield f"On the {count(plan.search)} questions that chose it: {_gap(found.seen)} beside {plan.base.name}"
    if not count(plan.holdout):
        yield "That is the search's luck too. Set holdout, and the winner is scored on questions that it did not see."
        return
    if best.model not in ablation.outcomes(HOLDOUT):
        yield "The winner has not been asked the held-out questions yet, so no gain is claimed."
        return
    yield f"On {count(plan.holdout)} questions that the search did not see: {_gap(found.unseen)}. {_verdict(found)}"


def _row(row: TrialRow, names: list[str]) -> dict[str, Any]:
    told: dict[str, Any] = {"study": row.study_name, "number": row.number, "model": row.model_name}
    told |= {name: row.params.get(name) for name in names}
    low, high = row.interval
    told |= {"state": row.state, "best": row.best, "value": row.comparable, "low": low, "high": high}
    told |= {"estimated": row.is_estimated, "feasible": row.feasible, "questions": row.questions}
    if len(row.amounts) > 1:
        told["values"] = list(row.amounts)
    told |= {"holdout": row.holdout, "holdout_low": row.holdout_low, "holdout_high": row.holdout_high}
    told |= {"making": round(row.making, 2), "answering": round(row.answering, 2), "judging": round(row.judging, 2)}
    return told | {"dollars": row.dollars, "note": row.note}


def _worth(row: dict[str, Any]) -> str:
    if "values" in row:
        return ", ".join("?" if value is None else f"{value:.2f}" for value in row["values"])
    if row["value"] is None:
        return ""
    interval = "" if row["low"] is None else f" [{row['low']:.1f}, {row['high']:.1f}]"
    broken = "" if row["feasible"] else ", breaks a constraint"
    about = "about " if row["estimated"] else ""
    return f"{about}{row['value']:.2f}{interval}{broken}"


def _gap(found: Gap) -> str:
    if found.value is None:
        return "no value"
    interval = "" if found.low is None or found.high is None else f" [{found.low:+.2f}, {found.high:+.2f}]"
    counted = f" (n = {found.n}, {found.missing} missing)" if found.missing else ""
    return f"{found.value:+.2f}{interval}{counted}"


def _verdict(found: Gain) -> str:
    return {
        "gain": "A gain.",
        "loss": "A loss: what the search saw was its luck.",
        "none": "No gain is shown.",
        "missing": "Nothing can be said: scores are missing.",
    }[found.verdict]
