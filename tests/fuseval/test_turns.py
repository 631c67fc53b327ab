"""Rungs are raced together where points are known ahead: half of the judge calls, and as good a winner in the end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evals.composite import Part
from evals.racing import rungs
from evals.records import Outcome, Trial
from fuseval.turns import DROPPED, FINISHED, RUNNING, following, leader, standings, turn

QUESTIONS = 200


def trial(number: int, *, rung: int = 0, state: str = RUNNING) -> Trial:
    return Trial("study", number, f"m{number}", "{}", state, rung, 0, 0.0, 0.0, 0.0, 0.0)


def outcome(model: str, value: float | None, *, feasible: bool = True) -> Outcome:
    return Outcome("study", model, "search", 1, 1, (value,), (None,), (None,), feasible, "[]")


class Race:
    """A study whose answers are drawn beforehand; everything that is decided is decided as in a real one."""

    def __init__(self, scores: np.ndarray, *, ahead: bool = True) -> None:
        self.scores, self.ahead, self.sizes = scores, ahead, rungs(20, scores.shape[1])
        self.trials: dict[int, Trial] = {}
        self.asked = 0

    def begin(self) -> Trial | None:
        running = any(t.state == RUNNING for t in self.trials.values())
        return None if len(self.trials) == len(self.scores) or (running and not self.ahead) else trial(len(self.trials))

    def seen(self, one: Trial) -> dict[str, float]:
        return {f"q{i}": float(v) for i, v in enumerate(self.scores[one.number, : self.sizes[one.rung - 1]])}

    def decide(self, waiting) -> list[Trial]:
        among = [t for t in self.trials.values() if t.rung >= waiting[0].rung]
        best = leader(among, {t.model: outcome(t.model, float(np.mean(list(self.seen(t).values())))) for t in among})
        every = {"base": {f"q{i}": 0.0 for i in range(self.scores.shape[1])}}
        parts = [Part("arena", 1.0, every | {t.model: self.seen(t) for t in among})]
        stand = standings(
            among, parts, best=best, references=["base"], looks=len(self.sizes) - 1, level=0.05, rounds=500
        )
        lost = [t for t in waiting if stand[t.model].dropped]
        self.trials |= {t.number: replace(t, state=DROPPED) for t in lost}
        return [t for t in waiting if t not in lost]

    def run(self) -> int:
        """Race to the end, and return the number of the winner."""
        while (one := turn(lambda: list(self.trials.values()), begin=self.begin, decide=self.decide)) is not None:
            before = self.sizes[one.rung - 1] if one.rung else 0
            self.asked += self.sizes[one.rung] - before
            state = FINISHED if one.rung + 1 == len(self.sizes) else RUNNING
            self.trials[one.number] = replace(one, rung=one.rung + 1, state=state)
        ended = [t.number for t in self.trials.values() if t.state == FINISHED]
        return max(ended, key=lambda number: float(self.scores[number].mean()))


def answered(seed: int, *, candidates: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Judge merges along a coefficient in both orders, some questions hard for all (Rasch 1960); also true values."""
    rng = np.random.default_rng(seed)
    truths = np.clip(0.6 - 2.0 * (np.linspace(0, 1, candidates) - rng.uniform(0.2, 0.8)) ** 2, 0.03, 0.97)
    ability = np.log(truths / (1 - truths)) * 1.33  # so that the mean over questions is the truth
    chance = 1 / (1 + np.exp(rng.normal(0, 1.5, QUESTIONS) - ability[:, None]))
    return 100 * (rng.random((2, *chance.shape)) < chance).mean(axis=0), 100 * chance.mean(axis=1)


@pytest.mark.slow
def test_racing_saves_half_of_the_judge_calls_at_equal_final_quality():
    spent, gaps = [], []
    for seed in range(20):
        scores, true = answered(seed)
        race = Race(scores)
        gaps.append(true[race.run()] - true[scores.mean(axis=1).argmax()])
        spent.append(race.asked / scores.size)
    assert np.mean(spent) <= 0.5
    assert abs(np.mean(gaps)) <= max(0.5, 2 * np.std(gaps) / 20**0.5)  # points; the standard error of a score is 3


def test_all_trials_begin_before_any_goes_on_where_points_are_known_ahead():
    waiting = [trial(0, rung=1), trial(1, rung=0)]
    assert turn(lambda: waiting, begin=lambda: None, decide=list) == waiting[1]
    assert turn(lambda: waiting[:1], begin=lambda: trial(1), decide=list) == trial(1)


def test_a_rung_is_decided_when_every_trial_has_done_it_and_not_before():
    decided = []
    uneven = [trial(0, rung=2), trial(1, rung=1)]
    for waiting in (uneven, [trial(0, rung=2), trial(1, rung=2)]):
        turn(lambda w=waiting: w, begin=lambda: None, decide=lambda w: decided.append([t.rung for t in w]) or w)
    assert decided == [[2, 2]]


def test_whoever_is_dropped_makes_room_for_the_next_where_one_is_asked_at_a_time():
    race = Race(np.array([[100.0] * 40, [0.0] * 40, [100.0] * 40]), ahead=False)
    race.run()
    assert [t.state for t in race.trials.values()] == [FINISHED, DROPPED, FINISHED]


def test_what_comes_next_is_known_only_where_it_does_not_depend_on_the_trial_that_is_asked():
    mates = [trial(0, rung=1), trial(1, rung=1), trial(2, rung=2)]
    assert following(mates, mates[0], begin=lambda: None) == mates[1]
    assert following([mates[1], mates[2]], mates[1], begin=lambda: None) is None  # then the rung is decided
    assert following(mates[:1], mates[0], begin=lambda: trial(1)) == trial(1)


def test_who_breaks_a_constraint_leads_no_race():
    two = [trial(0, rung=1), trial(1, rung=1)]
    found = {"m0": outcome("m0", 90.0, feasible=False), "m1": outcome("m1", 50.0)}
    assert leader(two, found) == two[1]
    assert leader(two[:1], found) is None


@pytest.mark.parametrize("ahead", [True, False])
def test_a_race_that_is_stopped_at_any_time_ends_as_one_that_was_not(ahead):
    scores, _ = answered(3, candidates=8)
    whole, stopped = Race(scores, ahead=ahead), Race(scores, ahead=ahead)
    whole.run()
    decide, stopped.decide = stopped.decide, lambda waiting: _killed(stopped, decide, waiting)
    stopped.run()
    assert stopped.trials == whole.trials


def _killed(race: Race, decide, waiting) -> list[Trial]:
    """Decide, forget half of it as a kill would, and decide again."""
    before = dict(race.trials)
    decide(waiting)
    race.trials = {n: before[n] if n % 2 and n in before else t for n, t in race.trials.items()}
    left = [t for t in race.trials.values() if t.state == RUNNING]
    return decide(left) if left else []
