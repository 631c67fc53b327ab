"""A tiny real model in the real vLLM engine and in transformers: the same numbers as lm-eval's own backends."""

import pytest

from evals.chat import ChatError, NoReply
from evals.lm_harness import load_task
from evals.lm_options import ENGINE_DRAWS, LENGTHS
from tests.evals.lm_task_files import CHOICE, COLOURS, GENERATIVE, SUMS, task_file
from tests.fusion.tiny_models import model_folder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("tiny"), hidden_size=64, heads=2)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("other"), seed=1, hidden_size=64, heads=2)


@pytest.fixture(scope="module")
def engine(folder):
    from evals.engine import EngineSettings
    from evals.local import LocalModel

    model = LocalModel(folder, identity="tiny", settings=EngineSettings(max_model_len=256, kv_cache_gib=0.05))
    yield model
    model.close()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Return lm-eval's own tasks: one that generates, one of choices, one of whole texts."""
    place = tmp_path_factory.mktemp("tasks")
    rolling = {**GENERATIVE, "task": "texts", "output_type": "loglikelihood_rolling", "doc_to_text": "",
               "num_fewshot": 0,
               "doc_to_target": "{{question * 40}}", "training_split": None, "fewshot_split": None, "filter_list": None,
               "metric_list": [{"metric": "byte_perplexity", "aggregation": "weighted_perplexity",
                                "higher_is_better": False}]}  # fmt: skip
    del rolling["generation_kwargs"]
    found = {}
    for definition, docs in ((GENERATIVE, SUMS), (CHOICE, COLOURS), (rolling, SUMS[:2])):
        file = task_file(place, definition, docs)
        options = {"data": str(file.with_suffix("")), "fewshot_split": "test"}
        found.update(load_task(str(file), version=None, options=options).harness.tasks)
    return found


def by_lm_eval(model, tasks, **how):
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    nothing = TaskManager(include_defaults=False)  # of the catalogue, whose index takes its time
    return simple_evaluate(model, tasks=list(tasks.values()), bootstrap_iters=0, task_manager=nothing, **how)


def responses(told):
    """Return every response of every document, by task."""
    return {task: [s["resps"] for s in samples] for task, samples in told["samples"].items()}


def flat(nested):
    return [x for each in nested for x in flat(each)] if isinstance(nested, list | tuple) else [nested]


def whole(value):
    """Return a text without the first bytes of a character at its end, which vLLM does not write and others do."""
    return value.rstrip("\ufffd") if isinstance(value, str) else value


def test_the_engine_gives_what_lm_evals_transformers_backend_gives_after_a_swap_too(engine, folder, other, tasks):
    from lm_eval.models.huggingface import HFLM

    from evals.lm_model import EngineLM

    for weights, name in ((folder, "tiny"), (other, "other")):
        engine.load(weights, identity=name)
        ours = by_lm_eval(EngineLM(engine), tasks)
        theirs = by_lm_eval(HFLM(str(weights), device="cpu", dtype="float32", max_length=256), tasks)
        for task, found in responses(theirs).items():
            for one, other_one in zip(map(whole, flat(responses(ours)[task])), map(whole, flat(found)), strict=True):
                assert one == (other_one if isinstance(one, str | bool) else pytest.approx(other_one, abs=5e-3))


def test_our_transformers_responder_gives_exactly_what_lm_evals_backend_gives(folder, tasks):
    from lm_eval.models.huggingface import HFLM

    from evals.lm_model import TransformersLM, Wish

    model, ours = HFLM(str(folder), device="cpu", dtype="float32"), TransformersLM(folder)
    for task in tasks.values():
        by_lm_eval(model, {task.config.task: task})
        instances = task.instances
        found = dict(ours.respond([Wish(instance, 0) for instance in instances]))
        for number, instance in enumerate(instances):
            assert found[number].value == instance.resps[0]


def test_a_shared_context_is_computed_once_and_scored_as_transformers_score_it(engine, folder):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from evals.lm_model import EngineLM, scored_params

    context = " ".join(["the cat sat on a mat and so it was that"] * 8)
    ends = [" the cat", " a mat", " the cat sat", " the cat"]  # one twice, and one that begins as another
    asked = [Instance("loglikelihood", {}, (context, end), n, ("t", n, 1)) for n, end in enumerate(ends)]
    engine.load(folder, identity="tiny")
    lm = EngineLM(engine)
    length = len(lm.tok_encode(context))
    assert 128 < length < 240
    ours = lm.loglikelihood(asked)
    again = lm.loglikelihood(asked)  # all of which the engine has at hand now
    theirs = HFLM(str(folder), device="cpu", dtype="float32", max_length=256).loglikelihood(asked)
    for one, two, other in zip(ours, again, theirs, strict=True):
        assert one == (pytest.approx(other[0], abs=5e-3), other[1])
        assert two == (pytest.approx(one[0], abs=1e-4), one[1])
    [(_, output)] = engine.complete([([*lm.tok_encode(context), 5, 6], scored_params(reuse=True))])
    assert output.num_cached_tokens >= 128


def test_a_reply_that_the_engine_cannot_hold_is_said_and_not_shortened(engine):
    from lm_eval.api.instance import Instance

    from evals.lm_model import EngineLM, Wish

    asked = Instance("generate_until", {}, ("the cat", {"until": [], "max_gen_toks": 300}), 0, ("t", 0, 1))
    [(_, said)] = EngineLM(engine).respond([Wish(asked, 0)])
    assert isinstance(said, NoReply) and said.kind == "context_length" and "max_gen_toks" in said.message


def test_an_empty_text_has_lm_evals_own_log_likelihood(engine, folder):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from evals.lm_model import EngineLM, Wish

    asked = Instance("loglikelihood_rolling", {}, ("",), 0, ("t", 0, 1))
    [(_, said)] = EngineLM(engine).respond([Wish(asked, 0)])
    beside = Instance("loglikelihood_rolling", {}, ("the cat",), 0, ("t", 1, 1))
    theirs = HFLM(str(folder), device="cpu", dtype="float32").loglikelihood_rolling([asked, beside])
    assert said.value == theirs[0] == 0.0


def test_the_engine_can_be_told_all_that_a_plan_allows_and_says_what_it_refuses(engine):
    from lm_eval.api.instance import Instance
    from vllm import SamplingParams

    from evals.lm_model import EngineLM, Wish

    ours = {"until", "do_sample", *LENGTHS}
    SamplingParams(**{name: getattr(SamplingParams(), name) for name in ENGINE_DRAWS - ours})
    asked = Instance(
        "generate_until", {}, ("the cat", {"until": [], "max_gen_toks": 3, "num_beams": 1}), 0, ("t", 0, 1)
    )
    [(_, said)] = EngineLM(engine).respond([Wish(asked, 0)])
    assert said.output_tokens == 3
    asked.arguments[1]["num_beams"] = 4
    with pytest.raises(ChatError, match=r"cannot draw replies by .*num_beams.*backend: hf"):
        list(EngineLM(engine).respond([Wish(asked, 0)]))


def test_drawn_replies_differ_by_seed_and_return_with_it(engine):
    from lm_eval.api.instance import Instance

    from evals.lm_model import EngineLM, Wish

    how = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}
    asked = Instance("generate_until", {}, ("the cat", how), 0, ("t", 0, 1))
    found = dict(EngineLM(engine).respond([Wish(asked, seed) for seed in (1, 2, 1)]))
    assert found[0].value == found[2].value != found[1].value
