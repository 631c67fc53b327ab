"""lm-eval's tasks as benchmarks: the prompts and numbers are lm-eval's own, whatever is asked and in whatever order."""

import dataclasses
import math

import pandas as pd
import pytest

from evals.answer import asks, no_price
from evals.assets import AssetError
from evals.benchmark import MEASURE_COLUMNS, Evidence, Wanted
from evals.chat import NoReply
from evals.lm_harness import load_task, stored_task
from evals.lm_samples import answers
from evals.records import LOWER_IS_BETTER, Aggregate, Answer, Failure
from evals.stats import mean_scores
from tests.evals.lm_task_files import CHOICE, CODE, COLOURS, GENERATIVE, SUMS, Says, task_file

pytestmark = pytest.mark.filterwarnings("default")  # of datasets and evaluate, when they are imported


@pytest.fixture
def sums(tmp_path):
    def load(**options):
        file = task_file(tmp_path, GENERATIVE, SUMS)
        return load_task(
            str(file), version=None, options={"data": str(file.with_suffix("")), "fewshot_split": "test"} | options
        )

    return load


@pytest.fixture
def colours(tmp_path):
    file = task_file(tmp_path, CHOICE, COLOURS)
    return load_task(str(file), version=None, options={"data": str(file.with_suffix(""))})


def ask(task, model, questions=None, identity="m"):
    wanted = list(asks(questions or task.questions(), identity=identity, sampling=task.sampling))
    return list(task.harness.answers(wanted, identity=identity, model=model, cost=no_price))


def scored(task, answers):
    done = task.harness.measure(answers)
    rows = [(m.model, m.question, m.metric, m.value, m.weight) for m in done.measures]
    frame = pd.DataFrame(rows, columns=["model", "question", "metric", "value", "weight"])
    wanted = [Wanted("m", "check", None, frozenset(q.id for q in task.questions()))]
    told = Evidence(task.questions(), wanted, pd.DataFrame(), pd.DataFrame(), measured=lambda: (frame, done.aggregates))
    found = task.score(told)
    means = mean_scores(found.items, benchmark=task.name, version=task.version)
    return {s.metric: s for s in [*means, *found.scores]}, done, told


def right(instance):
    return f" I add {instance.doc['question']} = {instance.doc['answer']}"


def test_numbers_are_lm_evals_own_by_filter_and_metric(sums):
    task = sums()
    scores, done, _ = scored(task, ask(task, Says(right)))
    assert {name: s.value for name, s in scores.items()} == {"exact_match,last": 1.0, "exact_match,first": 0.0}
    assert {a.metric: (a.value, a.n, a.is_mean) for a in done.aggregates} == {
        "exact_match,last": (1.0, 12, True),
        "exact_match,first": (0.0, 12, True),
    }


def test_numbers_are_those_that_simple_evaluate_gives_for_the_same_model(sums, tmp_path):
    from lm_eval.api.model import LM
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    class Guesses(LM):
        def generate_until(self, requests):
            return [guess(request) for request in requests]

        loglikelihood = loglikelihood_rolling = None

    def guess(instance):
        seen.append(instance.args[0])
        return f" {len(instance.args[0]) % 4 + 5}"

    seen = []
    task = sums()
    [own] = [each.task for each in list(task.harness.documents.values())[:1]]
    scores, done, _ = scored(task, ask(task, Says(guess), task.questions()[:7]))
    ours, theirs = sorted(seen), seen
    seen.clear()
    nothing = TaskManager(include_defaults=False)  # of the catalogue, whose index takes its time
    told = simple_evaluate(Guesses(), tasks=[own], limit=7, task_manager=nothing)["results"]["sums"]
    assert sorted(theirs) == sorted(seen) and len(ours) == 7
    for aggregate in done.aggregates:
        metric, _, filtered = aggregate.metric.partition(",")
        assert aggregate.value == told[aggregate.metric]
        assert aggregate.stderr == pytest.approx(told[f"{metric}_stderr,{filtered}"])
    assert scores["exact_match,last"].missing == 5


def test_a_questions_prompt_does_not_depend_on_which_others_are_asked(sums):
    task, every, one = sums(), Says(right), Says(right)
    ask(task, every)
    ask(task, one, [task.questions()[9]])
    [alone] = one.asked
    assert alone.args[0] in {asked.args[0] for asked in every.asked}
    assert alone.args[0].count("Question:") == 3  # two examples, and never the question itself among them
    assert alone.args[0].count(SUMS[9]["question"]) == 1


def test_choices_are_stored_as_their_log_likelihoods_and_measured_from_there(colours):
    answers = ask(colours, Says(lambda i: (-1.0 if i.args[1].strip() == "red" else -2.0, False)))
    assert answers[0].text == "[[-1.0, false], [-2.0, false], [-2.0, false]]"
    scores, *_ = scored(colours, answers)
    assert scores["acc"].value == pytest.approx(2 / 6)
    assert scores["acc_norm"].value == pytest.approx(2 / 6)


def test_an_answer_whose_one_request_fails_is_a_failure_and_a_missing_question(colours):
    def reply(instance):
        if instance.doc["text"] == "A sea is" and "blue" in instance.args[1]:
            return NoReply("server", "busy", 1)
        return -1.0, True

    found = ask(colours, Says(reply))
    assert [type(each) for each in found].count(Failure) == 1
    scores, *_ = scored(colours, [each for each in found if isinstance(each, Answer)])
    assert (scores["acc"].n, scores["acc"].missing) == (5, 1)


def test_what_replies_cost_whose_tokens_nobody_counted_is_not_known(colours):
    wanted = list(asks(colours.questions(), identity="m", sampling=colours.sampling))
    model = Says(lambda _: (-1.0, False))
    found = colours.harness.answers(wanted, identity="m", model=model, cost=lambda reply: reply.prompt_tokens * 0.1)
    assert {each.cost for each in found} == {None}


def test_a_chat_template_and_system_instruction_stand_around_the_prompt(sums):
    model = Says(right)
    ask(sums(apply_chat_template=True, system_instruction="Add."), model)
    assert model.asked[0].args[0].startswith("<system>Add.<user>Question:")
    assert model.asked[0].args[0].count("<user>") == 3


def test_what_changes_a_score_changes_the_version_and_the_place_of_data_does_not(sums, tmp_path):
    versions = [
        sums(**changed).version
        for changed in ({}, {"num_fewshot": 1}, {"apply_chat_template": True}, {"gen_kwargs": {"max_gen_toks": 4}})
    ]
    assert len(set(versions)) == 4
    assert versions[0].startswith("1.0-2shot-") and versions[2].startswith("1.0-2shot-chat-")
    assert sums(data=str(tmp_path / "elsewhere")).version == sums(batch_size=4).version == versions[0]


def test_answers_by_another_backend_are_never_taken_for_the_engines(sums):
    engine, transformers = sums(), sums(backend="hf")
    keys = [next(asks(t.questions(), identity="m", sampling=t.sampling)).key for t in (engine, transformers)]
    assert keys[0] != keys[1]
    assert transformers.version.startswith("1.0-2shot-hf-")


def test_other_data_of_the_same_task_are_other_questions(tmp_path):
    file = task_file(tmp_path, GENERATIVE, SUMS, num_fewshot=0)
    options = {"data": str(tmp_path / "sums")}
    before = load_task(str(file), version=None, options=options).questions()[0]
    task_file(tmp_path, GENERATIVE, [{**SUMS[0], "level": 1}, *SUMS[1:]], num_fewshot=0)
    after = load_task(str(file), version=None, options=options).questions()[0]
    assert before != after and dataclasses.replace(after, check=before.check) == before


@pytest.mark.slow
def test_a_metric_that_is_no_mean_has_lm_evals_figure_and_no_items_and_a_brier_score_has_both(tmp_path):
    docs = [{**d, "options": ["red", "green"], "right": n % 2} for n, d in enumerate(COLOURS)]
    metrics = [{"metric": "f1", "aggregation": "f1", "higher_is_better": True},
               {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False}]  # fmt: skip
    file = task_file(tmp_path, CHOICE, docs,
                     metric_list=metrics)  # fmt: skip
    task = load_task(str(file), version=None, options={"data": str(tmp_path / "colours")})
    scores, done, told = scored(task, ask(task, Says(lambda i: (-float(len(i.args[1])), False))))
    assert {a.metric: a.is_mean for a in done.aggregates} == {"f1": False, "brier_score": True}
    assert {m.metric for m in done.measures} == {"brier_score"} and len(done.measures) == len(docs)
    assert scores["brier_score"].value == pytest.approx(told.aggregates[1].value)
    assert told.aggregates[1].higher_is_better is False
    assert {s.metric for s in task.like_published(told)} == {"f1:lm_eval", "brier_score:lm_eval"}


def test_a_score_of_which_less_is_better_says_so_question_by_question_too(colours):
    aggregate = Aggregate("m", colours.name, colours.version, "loss", 0.5, None, 2, True, False)
    frame = pd.DataFrame([("m", "0", "loss", 0.2, 1.0), ("m", "1", "loss", 0.8, 1.0)], columns=MEASURE_COLUMNS)
    wanted = [Wanted("m", judge, None, frozenset("01")) for judge in ("check", "of other benchmarks")]
    none = pd.DataFrame()
    told = Evidence(colours.questions(), wanted, none, none, measured=lambda: (frame, [aggregate]))
    found = colours.score(told)
    assert found.flags == {("m", "check", None, "loss"): (LOWER_IS_BETTER,)}
    assert list(found.items["value"]) == [0.2, 0.8]  # a judge has no part in it


def test_bits_per_byte_are_a_mean_that_bytes_weigh_and_perplexities_are_lm_evals_own(tmp_path):
    docs = [{"text": "ab"}, {"text": "abcdef"}]
    names = ("bits_per_byte", "byte_perplexity")
    metrics = [{"metric": name, "aggregation": name, "higher_is_better": False} for name in names]
    metrics[1]["aggregation"] = "weighted_perplexity"
    file = task_file(tmp_path, CHOICE, docs, output_type="loglikelihood_rolling", doc_to_text="", doc_to_choice=None,
                     doc_to_target="{{text}}", metric_list=metrics)  # fmt: skip
    task = load_task(str(file), version=None, options={"data": str(tmp_path / "colours")})
    scores, done, _ = scored(task, ask(task, Says(lambda i: -8.0 if i.doc["text"] == "ab" else -4.0)))
    assert scores["bits_per_byte"].value == pytest.approx(12 / 8 / math.log(2))
    assert scores["byte_perplexity"].value == pytest.approx(math.exp(12 / 8))
    assert {m.metric for m in done.measures} == {"bits_per_byte"}


def test_a_document_that_nothing_can_be_asked_of_is_a_failure_that_says_why(sums):
    task = sums()
    wanted = list(asks(task.questions()[:1], identity="m", sampling=task.sampling))
    [failure] = answers(wanted, {"0": []}, identity="m", model=Says(right), cost=no_price)
    assert isinstance(failure, Failure) and "makes no request of this document" in failure.message


def test_a_stored_task_is_scored_without_its_data_and_says_so_when_asked():
    task = stored_task("lm_eval:gone", "1.0-0shot-abc")
    with pytest.raises(AssetError, match="only scored from the ledger"):
        task.questions()


def test_code_is_refused_without_a_sandbox_and_where_it_would_run_outside_of_it(tmp_path):
    docs = [{"prompt": "def f():\n", "test": "assert f() == 1"}]
    contained = task_file(
        tmp_path,
        CODE,
        docs,
        metric_list=[{"metric": "code_eval", "hf_evaluate": True, "aggregation": "mean", "higher_is_better": True}],
    )
    options = {"data": str(tmp_path / "code")}
    with pytest.raises(AssetError, match="no sandbox"):
        load_task(str(contained), version=None, options=options).questions()
    ran = []
    load_task(str(contained), version=None, options=options, run_tests=lambda p: ran.extend(p) or [True]).questions()
    assert ran == [("pass", "pass")]  # to see that there is a sandbox
    outside = task_file(
        tmp_path, CODE, docs, metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    )
    with pytest.raises(AssetError, match="outside the sandbox, and is refused"):
        load_task(str(outside), version=None, options=options, run_tests=lambda p: [True]).questions()
