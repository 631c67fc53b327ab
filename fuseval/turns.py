"""Whose turn it is among a study's trials, and who is out of the race: decided by the trials so far alone.

Where points are known ahead (a grid, random ones, a list) all trials begin before any goes on, and the rung is decided
when each has done it: then everyone is held against the best of all. Elsewhere a point rests on how those before it
ended, and there is one trial at a time, held against the best that has ended. Either way a decision made again, after
a kill in the midst of it, is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from evals.composite import Part, worth
from evals.racing import Standing, race
from evals.records import Outcome, Trial
from evals.resampling import ROUNDS

RUNNING, FINISHED, DROPPED, FAILED = "running", "finished", "dropped", "failed"


def turn(
    trials: Callable[[], Sequence[Trial]],
    *,
    begin: Callable[[], Trial | None],
    decide: Callable[[Sequence[Trial]], Sequence[Trial]],
) -> Trial | None:
    """Return the trial that is asked its next rung; None where nothing is left to do.

    ``begin`` returns a new trial, None while there is none to begin. ``decide`` gets the running trials when all have
    done the same rung, stores which are out of the race, and returns the others.
    """
    while True:
        waiting = sorted((t for t in trials() if t.state == RUNNING), key=lambda t: (t.rung, t.number))
        if waiting and waiting[0].rung == 0:
            return waiting[0]
        if (fresh := begin()) is not None:
            return fresh
        if not waiting:
            return None
        if waiting[0].rung < waiting[-1].rung:
            return waiting[0]
        if left := decide(waiting):
            return left[0]


def following(trials: Sequence[Trial], now: Trial, *, begin: Callable[[], Trial | None]) -> Trial | None:
    """Return the trial whose turn comes after this one's whatever it brings; None where that depends on it."""
    others = [t for t in trials if t.state == RUNNING and t.number != now.number]
    waiting = min(others, key=lambda t: (t.rung, t.number), default=None)
    if waiting is not None and waiting.rung == 0:
        return waiting
    if (fresh := begin()) is not None:
        return fresh
    return waiting if waiting is not None and waiting.rung <= now.rung else None


def leader(trials: Sequence[Trial], outcomes: Mapping[str, Outcome]) -> Trial | None:
    """Return the best, by the first objective, of those asked most that keep every constraint."""
    valued = [
        (trial.rung, value, -trial.number, trial)
        for trial in trials
        if (found := outcomes.get(trial.model)) and found.feasible and (value := found.amounts[0]) is not None
    ]
    return max(valued, key=lambda each: each[:3])[3] if valued else None


def standings(
    trials: Sequence[Trial],
    parts: Sequence[Part],
    *,
    best: Trial,
    references: Collection[str] = (),
    looks: int = 1,
    level: float,
    rounds: int = ROUNDS,
) -> dict[str, Standing]:
    """Return, by model, how trials stand beside the best of them; ``references`` are models asked all questions."""
    models = list(dict.fromkeys([best.model, *(trial.model for trial in trials)]))
    total = max(worth(parts, model, rounds=1).n for model in (*references, *models))
    found = race(parts, models, leader=best.model, total=total, looks=looks, level=level, rounds=rounds)
    return {each.candidate: each for each in found}
