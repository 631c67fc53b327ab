"""Merges that are never written, in the real vLLM: what it says is what it says of the written checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from evals.chat import ChatError, ChatRequest, Reply
from evals.engine import EngineSettings
from evals.local import LocalModel
from evals.records import Message, Sampling
from fuseval.config import load_experiment
from fuseval.merging import streamed
from fuseval.models import Candidate, make, merge_coefficients, resolve
from fusion.ahead import Ahead, in_stretches
from tests.fusion.tiny_models import conversations, model_folder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

SETTINGS = EngineSettings(max_model_len=128, kv_cache_gib=0.05, max_num_seqs=8)
MERGES = {
    "soup": {"method": "linear"},
    "top": {"method": "sce", "params": {"select_topk": 0.3}},
    "trim": {"method": "ties", "params": {"density": {"*mlp*": 0.2, "*": 0.6}, "weights": [0.3, 0.7]}},
}
TALK = [turns[0]["content"] for turns in conversations(6, seed=3)]


def watch(*_):
    """Watch nothing."""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Candidate]:
    """A base whose embeddings are tied and in bfloat16, two relatives of it, and their merges."""
    place = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "one", "two")):
        tied_in_bfloat16(model_folder(place / name, seed=seed, hidden_size=128))
    merges = [{"name": name, "base": "base", "sources": ["one", "two"], **how} for name, how in MERGES.items()]
    given = {"models": [{"name": n, "path": n} for n in ("base", "one", "two")], "benchmarks": ["starter"]}
    given |= {"fusion": {"merges": merges}, "checkpoints": str(place / "made")}
    (place / "run.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    return resolve(load_experiment(place / "run.yaml"), beside=place, cache=place / "cache")


def tied_in_bfloat16(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(folder)


def started(candidate: Candidate) -> LocalModel:
    return LocalModel(candidate.folder, identity=candidate.id, settings=SETTINGS)


def stream(
    engine: LocalModel,
    candidate: Candidate,
    models: dict[str, Candidate],
    heard: list | None = None,
    ahead: Ahead | None = None,
) -> None:
    found = streamed(candidate, models, hear=(heard if heard is not None else []).extend).stream
    tensors = (ahead or Ahead()).take(candidate.id, found.tensors)
    engine.stream(in_stretches(tensors), like=found.like, identity=candidate.id)


def said(engine: LocalModel) -> list[tuple[str, tuple[tuple[str, float], ...]]]:
    """Return what the engine answers at temperature 0, with the log-probabilities of each first token."""
    ask = [ChatRequest((Message("user", text),), Sampling(max_tokens=12), top_logprobs=8) for text in TALK]
    found = dict(engine.chat(ask))
    assert all(isinstance(reply, Reply) for reply in found.values())
    return [(found[i].text, found[i].top_logprobs) for i in range(len(ask))]


@pytest.fixture(scope="module")
def streamed_and_fresh(models):
    """What one engine says of each merge as it is streamed in, after others; and new engines of the checkpoints.

    The second time each was merged in the background while the one before it answered.
    """
    engine, in_memory, heard, ahead = started(models["base"]), {}, {}, Ahead()
    for name in MERGES:
        stream(engine, models[name], models, heard.setdefault(name, []))
        in_memory.setdefault(name, []).append(said(engine))
    for name in reversed(MERGES):
        again = streamed(models[name], models, hear=heard[name].extend).stream
        ahead.begin(models[name].id, again.tensors)
        said(engine)
        stream(engine, models[name], models, ahead=ahead)
        in_memory[name].append(said(engine))
    engine.close()
    fresh = {}
    for name in MERGES:
        make(models[name], models, watch=watch)
        fresh[name] = started(models[name])
        fresh[name], engine = said(fresh[name]), fresh[name]
        engine.close()
    return in_memory, fresh, heard


@pytest.mark.parametrize("name", MERGES)
def test_a_streamed_merge_answers_token_for_token_as_a_new_engine_of_its_checkpoint(streamed_and_fresh, name):
    in_memory, fresh, _ = streamed_and_fresh
    for found in in_memory[name]:
        assert found == fresh[name]


def test_merges_differ_from_one_another_so_that_equal_answers_say_something(streamed_and_fresh):
    _, fresh, _ = streamed_and_fresh
    assert len({repr(found) for found in fresh.values()}) == len(MERGES)


def test_the_coefficients_that_a_stream_used_are_those_of_the_checkpoint(streamed_and_fresh, models):
    _, _, heard = streamed_and_fresh
    for name in MERGES:
        half = heard[name][: len(heard[name]) // 2]  # it was streamed twice
        assert set(half) == set(merge_coefficients(models[name]))


def test_a_stream_that_breaks_off_leaves_no_usable_model_and_the_next_one_mends_it(models, streamed_and_fresh):
    _, fresh, _ = streamed_and_fresh
    engine = started(models["base"])
    good = streamed(models["soup"], models, hear=lambda _: None).stream

    def broken():
        yield from list(good.tensors())[:7]
        raise ValueError("NaN in a tensor")

    with pytest.raises(ChatError, match="NaN in a tensor"):
        engine.stream(broken(), like=good.like, identity="broken")
    with pytest.raises(ChatError, match="load others"):
        said(engine)
    stream(engine, models["soup"], models)
    assert said(engine) == fresh["soup"]
    engine.load(models["top"].folder, identity=models["top"].id)
    assert said(engine) == fresh["top"]
    engine.close()


def test_a_merge_that_is_only_streamed_is_not_written_and_its_inputs_are_not_needed_twice(models, tmp_path):
    unwritten = replace(streamed(models["soup"], models, hear=lambda _: None), folder=tmp_path / "soup")
    make(unwritten, models, watch=watch)
    assert not unwritten.folder.exists()
