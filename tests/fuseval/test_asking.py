"""Which questions an experiment asks, and whose answers its judges see beside whose."""

from dataclasses import replace
from pathlib import Path

import pytest

from evals import starter
from evals.benchmark import Benchmark, judge_request, published_model
from evals.records import Model, Sampling
from fuseval.asking import Asked, Judge, asked, published, requests, spread
from fuseval.config import ConfigError
from fuseval.experiment import Experiment, JudgeSpec
from fuseval.models import Candidate
from results.store import Ledger

QUESTIONS = tuple(q for q in starter.questions() if q.check is None)[:3]
JUDGE = JudgeSpec(model="judge")


def nowhere(name: str) -> Path:
    raise AssertionError(name)


def shows(question, answers, beside, judge):
    """Ask about the first answers, whoever is beside them."""
    shown = (answers[0], *beside[:1])
    return [
        judge_request(
            question, judge=judge, answers=shown, order="single", messages=(), sampling=Sampling(), reply="rating"
        )
    ]


def benchmark(against: str) -> Benchmark:
    def answers(_name):
        return {q.id: ("published text",) * len(q.turns) for q in QUESTIONS}

    brought = {"baseline": lambda _: "champion", "baseline_answers": answers} if against == "published" else {}
    return replace(starter.load(nowhere), requests=shows, against=against, **brought)


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(tmp_path / "ledger.duckdb") as opened:
        yield opened


def pairs(ledger, against, **options):
    """Return (model, baseline) of the requests about three models, none of which has answered yet."""
    models = [Candidate(Model(name, name, "endpoint", ""), True, None) for name in ("base", "one", "two")]
    one = Asked(benchmark(against), QUESTIONS, starter.sampling)
    asked_by = Judge.of(options.pop("judge", JUDGE), Candidate(Model("j", "judge", "endpoint", ""), False, None))
    found = list(requests(one, asked_by, candidates=models, ledger=ledger, unanswered=True))
    return found, [(r.model, r.baseline) for r in found if r.question == QUESTIONS[0].id]


def test_answers_that_are_judged_alone_are_so_for_every_model_the_base_too(ledger):
    assert pairs(ledger, "nothing")[1] == [("base", None), ("one", None), ("two", None)]


def test_every_model_is_judged_beside_the_base_and_the_base_beside_none(ledger):
    assert pairs(ledger, "base")[1] == [("one", "base"), ("two", "base")]


def test_of_all_pairs_each_is_judged_once(ledger):
    assert pairs(ledger, "each")[1] == [("one", "base"), ("two", "base"), ("two", "one")]


def test_beside_published_answers_every_model_is_judged(ledger):
    champion = published_model("champion").id
    assert pairs(ledger, "published")[1] == [(name, champion) for name in ("base", "one", "two")]


def test_the_published_answers_to_the_chosen_questions_come_with_their_model():
    models, answers = published(Asked(benchmark("published"), QUESTIONS[:1], starter.sampling))
    assert [m.name for m in models] == ["champion"]
    assert {(a.question, a.text) for a in answers} == {(QUESTIONS[0].id, "published text")}


def test_a_judges_own_bound_on_its_replies_makes_other_requests(ledger):
    longer, _ = pairs(ledger, "base")
    shorter, _ = pairs(ledger, "base", judge=JudgeSpec(model="judge", max_tokens=7))
    assert {r.sampling.max_tokens for r in shorter} == {7}
    assert not {r.judgment for r in longer} & {r.judgment for r in shorter}
    assert not {r.key for r in longer} & {r.key for r in shorter}


@pytest.mark.parametrize("seed", [None, 0, 7])
def test_a_smaller_limits_questions_are_among_a_larger_ones_and_spread_over_the_categories(seed):
    every = starter.questions()
    few, more = spread(every, 6, seed=seed), spread(every, 20, seed=seed)
    assert set(few) <= set(more)
    assert len({q.category for q in few}) == len({q.category for q in every})
    assert [q for q in every if q in more] == more  # in the benchmark's order


def test_with_a_seed_other_questions_are_taken_and_the_same_each_time():
    every = starter.questions()
    assert spread(every, 9, seed=1) == spread(every, 9, seed=1)
    assert len({tuple(q.id for q in spread(every, 9, seed=seed)) for seed in (None, 0, 1, 2)}) == 4


def experiment(**changes) -> Experiment:
    given = {"models": [{"name": "m", "path": "m"}], "benchmarks": ["starter"]}
    return Experiment.model_validate(given | changes)


def test_questions_are_chosen_by_id_and_an_unknown_id_is_an_error():
    first = starter.questions()[0].id
    [one] = asked(experiment(), asset=nowhere, only=[first])
    assert [q.id for q in one.questions] == [first]
    with pytest.raises(ConfigError, match="no benchmark of the experiment has a question 'nope'"):
        asked(experiment(), asset=nowhere, only=[first, "nope"])


def test_an_id_of_several_benchmarks_must_say_whose_and_the_others_are_left_alone(monkeypatch):
    other = replace(starter.load(nowhere), name="other")
    known = {"starter": starter.load(nowhere), "other": other}
    monkeypatch.setattr("fuseval.asking.find_benchmark", lambda name, **_: known[name])
    first = starter.questions()[0].id
    with pytest.raises(ConfigError, match=f"say starter:{first} or other:{first}"):
        asked(experiment(benchmarks=["starter", "other"]), asset=nowhere, only=[first])
    [one] = asked(experiment(benchmarks=["starter", "other"]), asset=nowhere, only=[f"other:{first}"])
    assert (one.benchmark.name, [q.id for q in one.questions]) == ("other", [first])
