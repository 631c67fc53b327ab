"""How alpaca_eval's judges are read: each parser by hand, and a published file's preferences from its replies."""

import json
import math
import os
import pathlib

import pytest

from evals.alpaca_annotators import annotator, usable
from evals.assets import find
from evals.benchmark import judge_request, published_answer
from evals.records import Judgment, Question, Sampling
from judges.annotators import annotator_format, by_logprob, by_ranking, by_regex, by_two_scores
from judges.replies import REPLIES, reply_format, verdict

NOT_READ = pathlib.Path("no-such-cache")
WEIGHTED = "weighted_alpaca_eval_gpt4_turbo"
M = {"numerator_token": "m", "denominator_tokens": ["m", "M"]}


def judgment(text="", *logprobs):
    return Judgment("key", "j", text, "stop", logprobs, 1, 1, 0.1, "j")


def asset(name):
    if "FUSEVAL_ASSETS" not in os.environ:
        pytest.skip("set FUSEVAL_ASSETS to a folder with the assets under their names (`fuseval assets` lists them)")
    return find(name, cache=NOT_READ, mirror=pathlib.Path(os.environ["FUSEVAL_ASSETS"]))


def test_a_preference_is_the_share_of_the_numerator():
    read = by_logprob({**M, "is_binarize": False})
    said = [("M", math.log(0.6)), ("m", math.log(0.2)), ("The", math.log(0.2))]
    assert read(judgment("M", *said)) == pytest.approx(0.25)
    assert (read(judgment("M", ("M", -0.1))), read(judgment("m", ("m", -9999.0)))) == (0.0, 1.0)


def test_tokens_count_as_they_are_and_with_none_of_them_there_is_no_verdict():
    read = by_logprob({**M, "is_binarize": False})
    assert read(judgment(" m", (" m", -0.1), ("The", -3.0))) is None
    assert [read(judgment(text)) for text in ("m", "M", "", "Model m")] == [1.0, 0.0, None, None]


def test_a_binary_preference_goes_to_the_likelier_token():
    read = by_logprob(M)
    assert read(judgment("M", ("M", -0.2), ("m", -0.1))) == 1.0
    assert read(judgment("M", ("M", -0.1), ("m", -0.1))) == 0.0  # alpaca_eval: only what is above all others


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Output (a)", 1.0),
        ("x\nOutput (b) it is", 0.0),
        ("Output (a)\nOutput (b)", None),
        ("neither", None),
        ("", None),
    ],
)
def test_one_match_of_the_patterns_is_a_verdict(text, value):
    patterns = {1: r"(?:^|\n) ?Output \(a\)", 2: r"(?:^|\n) ?Output \(b\)"}
    assert by_regex({"outputs_to_match": patterns})(judgment(text)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]", 1.0),
        ("[{'model': 'model_2', 'rank': 1}, {'model': 'model_1', 'rank': 2}]", 0.0),
        *[("[{'model': 'model_1', 'rank': 3}]", None), ("[{'model': 'model_2', 'rank': 1}]", None)],
        *[("[{'model': '\\d', 'rank': 1}]", None), ("model_1 is best", None), ("7", None), ("", None)],
    ],
)
def test_a_ranking_is_read_as_a_python_list(text, value):
    assert by_ranking({})(judgment(text)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("8 7\nsince", 1.0), ("7,8", 0.0), ("7 7", 0.5), ("7", None), ("7 of 8", None), ("nan 7", None)],
)
def test_two_scores_are_compared(text, value):
    assert by_two_scores({})(judgment(text)) == value


def test_every_usable_annotator_has_a_format():
    for name in usable():
        form = annotator_format(f"alpaca_eval:{name}")
        assert (form.top_logprobs == 5) == (annotator(name).parser == "logprob_parser")
    assert annotator_format(WEIGHTED).choices == ("m", "M")
    assert annotator_format("chatgpt").choices == ()


def test_the_format_is_found_by_its_name_and_another_name_is_an_error():
    assert reply_format("alpaca_eval:chatgpt") is annotator_format("alpaca_eval:chatgpt")
    with pytest.raises(ValueError, match=r"no annotator 'chatgbt'.*Did you mean 'chatgpt'"):
        annotator_format("alpaca_eval:chatgbt")


@pytest.mark.parametrize(
    ("stored", "value"),
    [*[("1.4586309383", 1.4586309383 - 1), ("1.0000098183", 1.0000098183 - 1)], ("2", 1.0), ("1", 0.0), ("0", 0.5)],
)
def test_a_published_preference_becomes_what_it_is_above_one(stored, value):
    question = Question("alpaca_eval", "2.0", "0", "own", ("Say.",))
    shown = [published_answer(question, model=name, turn=1, text=name) for name in ("model", "baseline")]
    request = judge_request(
        question,
        judge="j",
        answers=shown,
        order="baseline_first",  # output_1 is the baseline's, output_2 the model's
        messages=(),
        sampling=Sampling(),
        reply="preference",
    )
    assert verdict(request, judgment(stored)).value == value


@pytest.mark.parametrize("read", [annotator_format(WEIGHTED).read, REPLIES["m_or_M"].read], ids=["annotator", "m_or_M"])
def test_stored_replies_give_the_stored_preferences(read):
    rows = json.loads(asset("published/alpaca_eval/gemma-2b-it/annotations.json").read_bytes())
    by = annotator(WEIGHTED)
    for row in rows:
        [first] = row["raw_completion"]["logprobs"]["content"]
        first_preferred = read(judgment(first["token"], *((t["token"], t["logprob"]) for t in first["top_logprobs"])))
        # alpaca_eval: 2 is its output_2, the model, which is shown second unless the seeded coin switched the two
        model_preferred = first_preferred if by.shows_model_first(row["instruction"]) else 1 - first_preferred
        assert model_preferred == pytest.approx(row["preference"] - 1, abs=5e-11)
    assert len(rows) == 805
