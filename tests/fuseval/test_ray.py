"""Engines over a local Ray cluster of two processes, each with the real vLLM: they say what one engine says."""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec

import pytest
import yaml

from evals.chat import ChatRequest, Reply
from evals.engine import EngineSettings
from evals.local import LocalModel
from evals.ray_replicas import Spread
from evals.records import Message, Sampling
from evals.replicas import Replicas
from fuseval.config import load_experiment
from fuseval.engines import Engines
from fuseval.merging import streamed
from fuseval.models import Candidate, resolve
from results.store import Ledger
from tests.fusion.tiny_models import conversations, model_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(not find_spec("ray"), reason="needs Ray: pip install --no-deps -r requirements/ray.txt"),
]

SETTINGS = EngineSettings(max_model_len=128, kv_cache_gib=0.05, max_num_seqs=4)
GREEDY = Sampling(temperature=0.0, max_tokens=12)
TALK = [turns[0]["content"] for turns in conversations(24, seed=3)]


def asked(*, sampling: Sampling = GREEDY) -> list[ChatRequest]:
    return [ChatRequest((Message("user", text),), sampling, top_logprobs=3) for text in TALK]


def said(model, requests) -> dict[int, tuple]:
    """Return the texts by number, with the most likely first tokens and their rounded log-probabilities."""
    found = list(model.chat(requests))
    assert len(found) == len(dict(found)) == len(requests)
    assert all(isinstance(reply, Reply) for _, reply in found)
    return {n: (r.text, [(token, round(p, 3)) for token, p in r.top_logprobs]) for n, r in found}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Candidate]:
    place = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "one", "two")):
        model_folder(place / name, seed=seed, hidden_size=128)
    merge = {"name": "soup", "base": "base", "sources": ["one", "two"], "method": "linear"}
    given = {"models": [{"name": n, "path": n} for n in ("base", "one", "two")], "benchmarks": ["starter"]}
    given |= {"fusion": {"merges": [merge]}, "checkpoints": str(place / "made")}
    (place / "run.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    return resolve(load_experiment(place / "run.yaml"), beside=place, cache=place / "cache")


@pytest.fixture(scope="module")
def one(models):
    model = LocalModel(models["base"].folder, identity=models["base"].id, settings=SETTINGS)
    yield model
    model.close()


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    with Ledger.open(tmp_path_factory.mktemp("ledger") / "ledger.duckdb") as ledger:
        found = Engines(SETTINGS, lambda *_: None, os.environ, ledger, spread=Spread(replicas=2, address="local"))
        yield found
        found.close()


@pytest.fixture(scope="module")
def two(engines, models) -> Replicas:
    model = engines.local(models["base"])
    while len(model.processes) < 2:
        said(model, asked()[:1])
    return model


def test_two_replicas_say_what_one_engine_says(one, two):
    assert said(two, asked()) == said(one, asked())


def test_replies_that_are_drawn_depend_on_their_seeds_alone(one, two):
    drawn = Sampling(temperature=1.0, max_tokens=12, seed=7)
    assert said(two, asked(sampling=drawn)) == said(one, asked(sampling=drawn))


def test_other_weights_from_disk_are_in_every_replica(one, two, engines, models):
    other = models["one"]
    one.load(other.folder, identity=other.id)
    assert engines.chat_model(other) is two
    assert said(two, asked()) == said(one, asked())


def test_a_merge_that_is_never_written_is_in_every_replica(one, two, engines, models):
    soup = streamed(models["soup"], models, hear=lambda _: None)
    one.stream(soup.stream.tensors(), like=soup.stream.like, identity=soup.id)
    assert said(engines.chat_model(soup), asked()) == said(one, asked())
    assert not soup.folder.exists()


def test_scored_prompts_are_what_one_engine_scores(one, two):
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, prompt_logprobs=1, max_tokens=1, detokenize=False)
    prompts = [(list(range(10, 20 + n)), params) for n in range(9)]

    def scored(model) -> dict[int, list[float]]:
        return {
            n: [round(max(found.values(), key=lambda e: e.logprob).logprob, 3) for found in output.prompt_logprobs[1:]]
            for n, output in model.complete(prompts)
        }

    assert scored(two) == scored(one)
    assert two.context == one.context


def test_a_replica_killed_in_the_midst_is_replaced_and_the_result_is_the_same(one, two, engines, models):
    engines.chat_model(models["base"])
    one.load(models["base"].folder, identity=models["base"].id)
    victim, found = two.processes[0], {}
    for number, reply in two.chat(asked()):
        assert number not in found
        found[number] = reply.text
        if len(found) == 2:
            os.kill(victim, signal.SIGKILL)
    assert found == {n: text for n, (text, _) in said(one, asked()).items()}
    while len(two.processes) < 2:
        said(two, asked()[:1])
    assert victim not in two.processes
