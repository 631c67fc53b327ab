"""The ``engine:`` block: what each kind takes, and models that servers hold which run already."""

import os

import pytest
import yaml
from pydantic import ValidationError

from evals.chat import ChatRequest
from evals.engine import EngineSettings
from evals.ray_replicas import Spread
from evals.records import Message, Sampling
from fuseval.config import ConfigError, load_experiment
from fuseval.engine_spec import Engine
from fuseval.engines import Engines, missing_engines
from fuseval.implicit import _fine_tuned
from fuseval.models import resolve
from results.store import Ledger
from tests.fake_server import FakeServer
from tests.fusion.tiny_models import model_folder

SERVED = {"kind": "endpoints", "urls": ["http://a/v1", "http://b/v1"]}


@pytest.fixture
def models(tmp_path):
    for name in ("base", "tuned"):
        model_folder(tmp_path / name, seed=len(name))

    def read(engine, *, of_tuned=None, **more):
        tuned = {"name": "tuned", "path": "tuned"} | ({"engine": of_tuned} if of_tuned else {})
        given = {"models": [{"name": "base", "path": "base"}, tuned], "benchmarks": ["starter"], "engine": engine}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(given | more))
        experiment = load_experiment(tmp_path / "run.yaml")
        return experiment, resolve(experiment, beside=tmp_path, cache=tmp_path / "cache")

    return read


def test_engines_over_ray_are_so_many_alike():
    engine = Engine(kind="ray", replicas=8, tensor_parallel=2, address="10.0.0.1:6379")
    assert engine.spread() == Spread(8, "10.0.0.1:6379")
    assert engine.settings() == EngineSettings(tensor_parallel=2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"replicas": 2}, "replicas can be said of kind ray only, and this engine is local"),
        ({"kind": "ray", "urls": ["http://a/v1"]}, "urls can be said of kind endpoints only"),
        ({"kind": "endpoints"}, "needs urls"),
        ({"kind": "endpoints", "urls": ["a"]}, "must begin with http"),
        ({**SERVED, "api_key_env": "sk-123"}, "NAME of an environment variable"),
        ({"kind": "slurm"}, "'local', 'ray' or 'endpoints'"),
    ],
)
def test_what_an_engine_does_not_take_is_refused(given, said):
    with pytest.raises(ValidationError, match=said):
        Engine(**given)


def test_a_model_keeps_its_identity_wherever_it_is_asked(models):
    here, served = (models(engine)[1] for engine in ({}, SERVED))
    assert {name: c.id for name, c in here.items()} == {name: c.id for name, c in served.items()}
    assert served["tuned"].endpoint.replicas == ["http://b/v1"]
    assert served["tuned"].folder.exists()


def test_one_model_may_be_served_and_the_others_not(models):
    _, found = models({}, of_tuned={**SERVED, "model": "org/tuned"})
    assert (found["base"].endpoint, found["tuned"].endpoint.model) == (None, "org/tuned")


def test_a_model_may_have_an_engine_of_its_own(models):
    _, found = models({"kind": "ray", "replicas": 4}, of_tuned={"kind": "ray", "tensor_parallel": 8})
    assert (found["base"].engine, found["tuned"].engine.settings().tensor_parallel) == (None, 8)


def test_a_run_joins_one_cluster(models):
    with pytest.raises(ConfigError, match="one Ray cluster, and its engines name auto and local"):
        models({"kind": "ray"}, of_tuned={"kind": "ray", "address": "local"})


def test_what_is_made_here_is_on_no_server(models):
    merge = {"name": "soup", "method": "linear", "base": "base", "sources": ["tuned"]}
    with pytest.raises(ConfigError, match="no server holds soup"):
        models(SERVED, fusion={"merges": [merge]})
    _, found = models({}, of_tuned=SERVED, fusion={"merges": [merge]})  # which a served one may go into
    assert found["soup"].endpoint is None


def test_a_chat_template_that_no_server_would_use_is_refused(models, tmp_path):
    (tmp_path / "chat.jinja").write_text("{{ messages[0].content }}")
    given = [{"name": "base", "path": "base", "chat_template": "chat.jinja"}]
    with pytest.raises(ConfigError, match=r"servers of the experiment's engine.*models\[0\].chat_template"):
        models(SERVED, models=given)
    _, found = models(SERVED, models=[{**given[0], "engine": {"kind": "local"}}])
    assert found["base"].endpoint is None and found["base"].template is not None


def test_what_was_fine_tuned_from_a_served_model_is_not_asked_of_its_servers(models, tmp_path):
    _, found = models({}, of_tuned=SERVED)
    made = _fine_tuned(found["base"], found["tuned"], tmp_path / "base", cache=tmp_path / "cache")
    assert made.endpoint is None and made.folder == tmp_path / "base"


def test_servers_are_told_all_of_the_sampling_for_they_would_fill_it_in(models, tmp_path):
    request = ChatRequest((Message("user", "hello"),), Sampling(temperature=0.5, max_tokens=8))
    with FakeServer() as one, FakeServer() as two, Ledger.open(tmp_path / "ledger.duckdb") as ledger:
        _, found = models({"kind": "endpoints", "urls": [one.base_url, two.base_url], "model": "fake"})
        engines = Engines(EngineSettings(), lambda *_: None, os.environ, ledger)
        replies = dict(engines.chat_model(found["base"]).chat([request] * 40))
        assert len(replies) == 40
        assert one.bodies
        assert two.bodies
        assert all((body["top_k"], body["repetition_penalty"]) == (-1, 1.0) for body in (*one.bodies, *two.bodies))
        assert engines.cost_of(found["base"])(replies[0]) == 0.0


def test_engines_of_a_kind_that_is_not_installed_are_said_before_anything_starts(models):
    experiment, found = models({"kind": "ray"}, of_tuned=SERVED)
    [said] = missing_engines(found.values(), experiment.engine, find=lambda name: None)
    assert said.startswith("Ray is not installed")
