"""What implicit fusion asks: every response and reward is stored, and nothing is asked or computed twice."""

import json
import os
from dataclasses import replace

import pytest

from evals.engine import EngineSettings
from evals.records import PROMPTS, Model, Reward
from fuseval.config import ConfigError
from fuseval.engines import Engines
from fuseval.experiment import Experiment
from fuseval.models import Candidate, resolve
from fuseval.rewarding import Sampled, scored
from fuseval.sampling import Asker, draws, own_draw, sample, unasked
from fuseval.target import RewardSpec, Target
from fusion.prompts import read_tasks
from results.store import Ledger
from tests.fake_replies import says
from tests.fake_server import FakeServer


@pytest.fixture
def asker(tmp_path):
    with Ledger.open(tmp_path / "ledger.duckdb") as ledger:
        engines = Engines(EngineSettings(), lambda *_: None, os.environ, ledger)
        yield Asker(ledger, engines, lambda *_: None)


def models(folder, base_url, *names):
    given = [{"name": name, "endpoint": {"model": f"fake-{name}", "base_url": base_url}} for name in names]
    experiment = Experiment.model_validate({"models": given, "benchmarks": ["starter"]})
    return resolve(experiment, beside=folder, cache=folder / "cache")


def tasks(folder, *items):
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    return read_tasks(file)


def target(**given):
    return Target.model_validate({"name": "t", "kind": "implicit", "base": "base", "data": "prompts.jsonl", **given})


SUMS = [{"prompt": f"What is {n} + 1?", "answer": n + 1} for n in range(3)]


def test_every_sample_has_its_own_seed_and_is_asked_once(tmp_path, asker):
    with FakeServer() as server:
        known = models(tmp_path, server.base_url, "gemma", "qwen2.5-7b")
        of, other = draws(target(sources=["gemma", "qwen2.5-7b"]), known, seed=7)
        asked = [task.prompt for task in tasks(tmp_path, *SUMS)]
        found = sample(of, asked, asker)
        assert [len(answers) for answers in found.values()] == [5, 5, 5]
        assert len({body["seed"] for body in server.bodies}) == 15 == len(server.bodies)
        assert {(body["temperature"], body["top_p"]) for body in server.bodies} == {(0.8, 0.95)}
        assert [answer.sampling.seed for answer in found[asked[0].id]] == [7, 8, 9, 10, 11]
        assert sample(of, asked, asker) == found and len(server.bodies) == 15
        more = Asker(asker.ledger, asker.engines, asker.watch)
        assert len(sample(of, [*asked, *(task.prompt for task in tasks(tmp_path, {"prompt": "Hi"}))], more)) == 4
        assert len(server.bodies) == 20
    assert (other.sampling.temperature, other.sampling.top_p, other.sampling.repetition_penalty) == (0.7, 0.8, 1.05)
    assert asker.ledger.benchmarks() == []  # nobody scores them
    assert {answer.benchmark for answer in asker.ledger.answers()} == {PROMPTS}


def test_what_a_draw_says_holds_over_what_was_published(tmp_path):
    known = models(tmp_path, "http://127.0.0.1:9", "gemma", "base")
    spec = [
        {"source": "gemma", "name": "cold", "temperature": 0.2, "samples": 2},
        {"source": "gemma", "name": "hot", "temperature": 1.2},
        {"source": "self", "samples": 3, "max_tokens": 64},
    ]
    drawn = draws(target(sources=["gemma"], draws=spec), known, seed=0)
    assert [(d.title, d.samples, d.sampling.temperature) for d in drawn] == [("cold", 2, 0.2), ("hot", 5, 1.2)]
    own = own_draw(target(sources=["gemma"], draws=spec), known["base"], seed=0)
    assert (own.title, own.samples, own.sampling.max_tokens) == ("self", 3, 64)


def test_a_draw_may_sample_some_kinds_of_prompts_more_often_and_others_never(tmp_path, asker):
    with FakeServer() as server:
        known = models(tmp_path, server.base_url, "gemma")
        spec = [{"source": "gemma", "samples": {"code": 8, "language": 0}, "stop": ["\n"]}]
        [of] = draws(target(sources=["gemma"], draws=spec), known, seed=0)
        code, chat, language = (
            task.prompt
            for task in tasks(
                tmp_path,
                {"prompt": "Sort.", "tests": "sort()"},
                {"prompt": "Hi"},
                {"prompt": "Ni hao", "kind": "language"},
            )
        )
        found = sample(of, [code, chat, language], asker)
        assert [len(found[prompt.id]) for prompt in (code, chat, language)] == [8, 5, 0]
        assert len(server.bodies) == 13 and {tuple(body["stop"]) for body in server.bodies} == {("\n",)}
        assert not list(unasked(of, [code, chat, language], asker.ledger))
        assert sum(1 for _ in unasked(of, [code, chat, replace(chat, id="again", kind="code")], asker.ledger)) == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sources": []}, "name at least one in sources"),
        ({"kind": "sft", "reward": {"judge": "j"}}, "draws and reward are for kind: implicit"),
        ({"sources": ["a"], "draws": [{"source": "b"}]}, "draws from 'b', which is not among its sources"),
        ({"sources": ["a", "b"], "draws": [{"source": "a"}]}, "draws nothing from its source 'b'"),
        ({"sources": ["a"], "draws": [{"source": "a"}, {"source": "a"}]}, "two draws .* called 'a'"),
        ({"sources": ["a"], "draws": [{"source": "self", "name": "me"}]}, "needs no name"),
        (
            {"sources": ["a"], "draws": [{"source": "a", "samples": {"poems": 3}}]},
            "'chat', 'math', 'code' or 'language'",
        ),
        ({"sources": ["a"], "reward": {"model": "m", "judge": "j"}}, "give the weights of both"),
        ({"sources": ["a"], "reward": {"judge": "j", "weights": {"judge": 1}}}, "are for a model and a judge together"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        target(**given)


def sampled(found, known):
    return [Sampled(task, "gemma", n, answer) for task in known for n, answer in enumerate(found[task.prompt.id])]


def test_without_a_reward_model_the_reward_is_whether_the_answer_is_right(tmp_path, asker):
    known = tasks(tmp_path, *SUMS)
    with FakeServer(script=lambda body, _: says(f"The answer is {body['seed'] % 3 + 1}.")) as server:
        spec = target(sources=["gemma"], draws=[{"source": "gemma", "samples": 3}])
        [of] = draws(spec, models(tmp_path, server.base_url, "gemma"), seed=0)
        found = sample(of, [task.prompt for task in known], asker)
    responses = scored(sampled(found, known), RewardSpec(), {}, asker)
    assert len(responses) == 9 and {response.reward for response in responses} == {0.0, 1.0}
    for number, response in enumerate(responses):
        assert response.correct == (f"is {SUMS[number // 3]['answer']}." in response.text)
    rows = asker.ledger.sql("SELECT scorer_name, value FROM rewards_wide WHERE value IS NOT NULL").fetchall()
    assert len(rows) == 9 and all(name.startswith("answer ") for name, _ in rows)
    chat = Sampled(tasks(tmp_path, {"prompt": "Hi"})[0], "gemma", 0, found[known[0].prompt.id][0])
    with pytest.raises(ConfigError, match="has no answer and no tests"):
        scored([chat], RewardSpec(), {}, asker)


def test_a_judge_rates_each_response_once_and_unreadable_ratings_are_left_out(tmp_path, asker):
    brief = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Ho"}]
    known = tasks(tmp_path, {"prompt": "Hi"}, {"messages": brief})

    def reply(body, number):
        shown = body["messages"][-1]["content"]
        if "double brackets" not in shown:
            return says(f"Answer {body['seed']}")
        assert "Answer" in shown and ("Be brief." in shown) == ("\nHo\n" in shown)
        return says("I cannot say." if "\nHi\n" in shown else "Good. [[10]]")

    with FakeServer(script=reply) as server:
        found_models = models(tmp_path, server.base_url, "gemma", "judge")
        [of] = draws(target(sources=["gemma"]), found_models, seed=0)
        found = sample(of, [task.prompt for task in known], asker)
        spec = RewardSpec(judge="judge")
        responses = scored(sampled(found, known), spec, found_models, asker)
        asked = len(server.bodies)
        assert asked == 20
        assert scored(sampled(found, known), spec, found_models, asker) == responses and len(server.bodies) == asked
    assert {(response.prompt, response.reward) for response in responses} == {(known[1].prompt.id, 1.0)}
    assert len(responses) == 5


def test_the_reward_of_a_model_and_a_judge_is_their_weighted_sum(tmp_path, asker):
    known, said = tasks(tmp_path, {"prompt": "Hi"}), iter(["Answer 0", "Answer 1", "Answer 2"])

    def reply(body, _):
        shown = body["messages"][-1]["content"]
        if "double brackets" not in shown:
            return says(next(said))
        return says("[[10]]" if "Answer 0" in shown else "None." if "Answer 1" in shown else "[[1]]")

    with FakeServer(script=reply) as server:
        by = models(tmp_path, server.base_url, "gemma", "judge")
        by["rm"] = Candidate(Model("rm", "rm", "checkpoint", "here"), False, tmp_path)
        [of] = draws(target(sources=["gemma"], draws=[{"source": "gemma", "samples": 3}]), by, seed=0)
        found = sampled(sample(of, [task.prompt for task in known], asker), known)
        asker.ledger.add(*(Reward(s.answer.key, "rm", float(s.number)) for s in found))  # it has read them before
        spec = RewardSpec(model="rm", judge="judge", weights={"model": 0.5, "judge": 2.0})
        responses = scored(found, spec, by, asker)
    assert {response.sample: response.reward for response in responses} == {0: 2.0, 2: 1.0}
