import math
from importlib.util import find_spec

import pytest

from evals.benchmark import judge_request, published_answer
from evals.records import Judgment, Message, Question, Sampling
from judges.replies import REPLIES, reply_format, span, verdict


def judgment(text="", logprobs=()):
    return Judgment("key", "j", text, "stop", tuple(logprobs), 1, 1, 0.1, "j")


def read(name, text="", logprobs=()):
    return reply_format(name).read(judgment(text, logprobs))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("Rating: [[7]]", 7), ("[[8.5]]", 8.5), ("[[9.]]", 9), ("[[1]]", 1), ("[[10]]", 10)],
        ("First [[3]], no, [[4]]", 3),  # the first counts
        ("By [2] of the list: [[9]]", 9),  # double brackets before single ones, wherever they stand
        *[("Rating: [6]", 6), ("[1] and [2]", 1)],
        ("[[07]]", 7),  # no Python literal, but a rating
        *[("[[0]]", None), ("[[11]]", None), ("[[0.5]]", None), ("[[100]] or [5]", None), ("[[10.01]]", None)],
        *[("", None), ("7", None), ("[[seven]]", None), ("[[7/10]]", None), ("[[-3]]", None), ("$ERROR$", None)],
        *[(f"[[{'9' * 400}]]", None), ("[[8.333333333333334]]", 8.333333333333334), ("[[8.3.3]] [4.]", 4)],
        ("[[" + "1" * 200_000, None),  # quadratic, were there two ways to match a run of digits
    ],
)
def test_a_rating_is_the_first_in_brackets_from_one_to_ten(text, value):
    assert read("rating", text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("So: [[A]]", 1.0), ("So: [[B]]", 0.0), ("So: [[C]]", 0.5)],
        *[("[[B]] or [[A]]", 1.0), ("[[C]], rather [[B]]", 0.0)],  # A before B before C, wherever they stand
        *[("", None), ("[A]", None), ("[[a]]", None), ("[[D]]", None), ("A", None), ("$ERROR$", None)],
    ],
)
def test_a_winner_is_looked_for_as_a_then_b_then_c(text, value):
    assert read("pair", text) == value


FIVE = [("A>>B", 1.0), ("A>B", 0.75), ("A=B", 0.5), ("B>A", 0.25), ("B>>A", 0.0)]


@pytest.mark.parametrize(("label", "value"), FIVE)
@pytest.mark.parametrize("name", ["five_verdicts", "five_verdicts_last"])
def test_five_labels_have_five_values(name, label, value):
    assert read(name, f"My final verdict is: [[{label}]].") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[[A>B]] … [[A>B]]", 0.75),  # one label, twice
        ("[[A>B]], or [[A>>B]]", None),  # several
        *[("[[A]]", None), ("[[A>=B]]", None), ("[[A<B]]", None), ("[[A]] [[A>B]]", None)],  # unknown, and beside known
        *[("[A>B]", None), ("[[a>b]]", None), ("[[ A>B ]]", None), ("", None)],
    ],
)
def test_arena_v01_reads_one_label_over_the_whole_text(text, value):
    assert read("five_verdicts", text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("[[A>B]], or [[A>>B]]", 1.0), ("[[a>b]]", 0.75)],  # the last one; lower case is read
        *[("[A>B]", 0.75), ("[[B>A]] then [A>>B]", 0.25)],  # single brackets only where there are no double ones
        *[("[[A<<B]]", 0.0), ("[[A<B]]", 0.25), ("[[B=A]]", 0.5), ("[[B<A]]", 0.75), ("[[B<<A]]", 1.0)],
        *[("[[A]]", None), ("[[A>B]] [[A>=B]]", None), ("A>B", None), ("", None)],
    ],
)
def test_arena_v2_reads_the_last_label(text, value):
    assert read("five_verdicts_last", text) == value


def test_only_arena_v01_asks_again():
    assert [name for name, form in REPLIES.items() if form.again] == ["five_verdicts"]


def test_m_is_the_share_of_m_in_the_first_token():
    logprobs = [("m", math.log(0.6)), ("M", math.log(0.2)), (" m", math.log(0.1)), ("The", math.log(0.1))]
    assert read("m_or_M", "m", logprobs) == pytest.approx(0.75)
    assert (REPLIES["m_or_M"].choices, REPLIES["m_or_M"].top_logprobs) == (("m", "M"), 5)


@pytest.mark.parametrize(
    ("logprobs", "value"),
    [
        *[([("m", -3.0), ("x", -0.1)], 1.0), ([("M", -3.0)], 0.0), ([("m", -9999.0), ("M", -9999.0)], 0.5)],
        *[([("M", 0.0), ("m", -9999.0)], 0.0), ([("The", -0.1)], None), ([("m", -math.inf)], None)],
    ],
)
def test_a_token_that_is_not_there_has_no_probability_and_two_such_no_verdict(logprobs, value):
    assert read("m_or_M", "m", logprobs) == value


@pytest.mark.parametrize("text", ["m", "M", "m.", ""])
def test_where_an_endpoint_gives_no_log_probabilities_there_is_no_verdict(text):
    assert read("m_or_M", text) is None


@pytest.mark.parametrize("small", [-0.0175, -4.05, -12.5])
def test_m_is_read_as_alpaca_eval_reads_it(small):
    pytest.importorskip("scipy", reason="pip install scipy")
    from scipy.special import logsumexp

    big = math.log1p(-math.exp(small))
    published = 2 - math.exp(small - logsumexp([small, big]))
    assert read("m_or_M", "m", [("m", small), ("M", big)]) == pytest.approx(2 - published, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1", 1.0), ("2", 0.0), ("1.25", 0.75), ("1.5", 0.5), ("0", 0.5), ("0.0", 0.5)],
        *[("-1", None), ("nan", None), ("None", None), ("", None), ("2.1", None), ("inf", None)],
    ],
)
def test_a_published_preference_is_turned_towards_the_first_answer(text, value):
    assert read("preference", text) == value


def request(reply, order):
    question = Question("b", "1", "q", "c", ("ask",))
    return judge_request(
        question,
        judge="j",
        answers=[published_answer(question, model=model, turn=1, text="x") for model in ("m", "base")],
        order=order,
        messages=(Message("user", "which?"),),
        sampling=Sampling(),
        reply=reply,
    )


@pytest.mark.parametrize(
    ("reply", "text", "value"),
    [("pair", "[[A]]", 1.0), ("five_verdicts", "[[A>B]]", 0.75), ("preference", "1.2", 0.8)],
)
def test_a_verdict_is_the_models_whichever_answer_was_first(reply, text, value):
    said = judgment(text)
    assert verdict(request(reply, "model_first"), said).value == pytest.approx(value)
    assert verdict(request(reply, "baseline_first"), said).value == pytest.approx(1 - value)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        *[("rating", "See [1]: [[9]]", "[[9]]"), ("rating", "See [1]", "[1]"), ("rating", "9", None)],
        *[("pair", "[[C]] [[B]]", "[[B]]"), ("five_verdicts", "[[A>B]] [[B>A]] [[A>B]]", "[[A>B]] [[B>A]]")],
        *[("five_verdicts_last", "[[a>b]] [[b>a]]", "[[B>A]]"), ("m_or_M", "M", "M"), ("a_or_b", "", None)],
    ],
)
def test_the_span_is_what_was_read(name, text, found):
    assert span(name, judgment(text)) == found


def test_an_annotator_of_alpaca_eval_is_a_format_too():
    if find_spec("alpaca_eval") is None:
        pytest.skip("needs the annotators' configurations: pip install 'fuseval[bench]'")
    form = reply_format("alpaca_eval:weighted_alpaca_eval_gpt4_turbo")
    said = judgment("m", [("m", -0.5), ("M", -1.5), ("The", -3.0)])
    assert form.top_logprobs == 5
    assert form.read(said) == pytest.approx(REPLIES["m_or_M"].read(said), abs=1e-12)


def test_an_unknown_format_gets_the_nearest_one():
    with pytest.raises(ValueError, match=r"no reply format 'ratings'.*alpaca_eval:ANNOTATOR\. Did you mean 'rating'\?"):
        reply_format("ratings")
