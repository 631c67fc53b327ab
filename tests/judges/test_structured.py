import json

import pytest

from evals.benchmark import judge_request, published_answer
from evals.records import Judgment, Message, Question, Sampling
from judges.replies import REPLIES, reply_format, span, verdict
from judges.structured import ENOUGH, EXPLANATION, FORMS, structured, structured_names

SHOWN = (Message("system", "Judge."), Message("user", "Which?"))


def request(reply, *, messages=SHOWN, order="model_first"):
    question = Question("b", "1", "q", "c", ("ask",))
    return judge_request(
        question,
        judge="j",
        answers=[published_answer(question, model=model, turn=1, text="x") for model in ("m", "base")],
        order=order,
        messages=messages,
        sampling=Sampling(max_tokens=ENOUGH),
        reply=reply,
    )


def judgment(text):
    return Judgment("key", "j", text, "stop", (), 1, 1, 0.1, "j")


def said(**verdict_):
    return json.dumps({"explanation": "since", **verdict_})


@pytest.mark.parametrize("name", FORMS)
def test_a_structured_request_has_the_keys_of_what_it_asks(name):
    made = structured(request(name))
    assert made == request(f"json:{name}", messages=made.messages)
    assert made.judgment != request(name).judgment
    assert made.key != request(name).key


@pytest.mark.parametrize("name", FORMS)
def test_the_judge_is_told_of_the_form_at_the_end_of_the_last_message(name):
    system, user = structured(request(name)).messages
    assert system.content == "Judge."
    assert user.content.startswith("Which?\n\n")
    *_, key = json.loads(reply_format(f"json:{name}").schema)["properties"]
    assert f'"{key}"' in user.content
    assert str(EXPLANATION) in user.content


@pytest.mark.parametrize("name", ["a_or_b", "m_or_M", "preference", "alpaca_eval:chatgpt"])
def test_formats_without_a_json_form_are_left_as_they_are(name):
    assert structured(request(name)) == request(name)


@pytest.mark.parametrize("name", FORMS)
def test_structuring_twice_is_structuring_once(name):
    assert structured(structured(request(name))) == structured(request(name))


@pytest.mark.parametrize("name", FORMS)
def test_the_schema_has_the_explanation_first_and_is_strict(name):
    schema = json.loads(reply_format(f"json:{name}").schema)
    assert next(iter(schema["properties"])) == "explanation"
    assert schema["properties"]["explanation"]["maxLength"] == EXPLANATION
    assert schema["required"] == list(schema["properties"])
    assert schema["additionalProperties"] is False


def test_the_longest_reply_that_the_schema_allows_fits_into_enough_tokens():
    longest = json.dumps({"explanation": "😀" * EXPLANATION, "verdict": "A>>B"}, ensure_ascii=False, indent=2)
    assert len(longest.encode()) < ENOUGH  # a byte-level token is one byte at least


@pytest.mark.parametrize(
    ("name", "key", "words"),
    [
        ("pair", "verdict", {"A": 1.0, "B": 0.0, "C": 0.5}),
        ("five_verdicts", "verdict", {"A>>B": 1.0, "A>B": 0.75, "A=B": 0.5, "B>A": 0.25, "B>>A": 0.0}),
        ("five_verdicts_last", "verdict", {"A>>B": 1.0, "A>B": 0.75, "A=B": 0.5, "B>A": 0.25, "B>>A": 0.0}),
        ("rating", "rating", {n: float(n) for n in range(1, 11)}),
    ],
)
def test_every_verdict_that_the_schema_allows_is_read_as_the_benchmarks_own(name, key, words):
    schema = json.loads(reply_format(f"json:{name}").schema)
    assert schema["properties"][key]["enum"] == list(words)
    for word, value in words.items():
        assert reply_format(f"json:{name}").read(judgment(said(**{key: word}))) == value
        assert REPLIES[name].read(judgment(f"[[{word}]]")) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"explanation": "[[A]] {\\"verdict\\": \\"A\\"}", "verdict": "B"}', 0.0),  # the text quoted is no verdict
        ('{"verdict": "A"}', 1.0),
        (' {"explanation": "x",\n "verdict": "C"}\n', 0.5),
        ('```json\n{"explanation": "x", "verdict": "A"}\n```', 1.0),
        ('\n ```\n{"verdict": "B"}```\n', 0.0),
        *[("``````", None), ("`````", None), ("```json```", None), ('```{"verdict": "A"}', None)],
        ('{"explanation": "x", "verdict": "[[A]]"}', 1.0),
        *[
            ('{"verdict": "a"}', None),
            ('{"verdict": 1}', None),
            ('{"verdict": ["A"]}', None),
            ('{"verdict": {}}', None),
        ],
        *[('{"explanation": "x', None), ('{"explanation": "x"}', None), ("A", None), ("", None), ('["A"]', None)],
        *[("[[A]]", None), ('{"verdict": "A"} {"verdict": "B"}', None), ("[" * 100_000, None), ("null", None)],
    ],
)
def test_a_winner_in_json_is_the_verdict_of_the_one_object(text, value):
    assert reply_format("json:pair").read(judgment(text)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[('{"rating": 7}', 7.0), ('{"rating": 7.5}', 7.5), ('{"rating": 10}', 10.0), ('{"rating": 1}', 1.0)],
        *[('{"rating": 0}', None), ('{"rating": 11}', None), ('{"rating": "7"}', None), ('{"rating": true}', None)],
        *[('{"rating": NaN}', None), ('{"rating": Infinity}', None), (f'{{"rating": {"9" * 5000}}}', None)],
        *[('{"rating": null}', None), ("[[7]]", None), ("7", None)],
    ],
)
def test_a_rating_in_json_is_a_number_from_one_to_ten(text, value):
    assert reply_format("json:rating").read(judgment(text)) == value


def test_a_reply_of_blanks_in_a_fence_takes_no_longer_than_another():
    blanks = "```" + " " * 100_000 + "x"  # with a regular expression of three runs of blanks: for days
    assert reply_format("json:pair").read(judgment(blanks)) is None
    assert reply_format("json:pair").read(judgment(blanks + "```")) is None


def test_a_verdict_is_the_models_whichever_answer_was_first():
    first, second = (structured(request("pair", order=order)) for order in ("model_first", "baseline_first"))
    assert verdict(first, judgment(said(verdict="A"))).value == 1.0
    assert verdict(second, judgment(said(verdict="A"))).value == 0.0


def test_the_span_is_the_verdict_and_not_one_that_the_explanation_quotes():
    quoting = '{"explanation": "x", "verdict": "B"}'
    assert span("json:pair", judgment(quoting)) == '"verdict": "B"'
    assert span("json:rating", judgment('{"explanation": "x", "rating":7}')) == '"rating":7'
    assert span("json:rating", judgment('{"explanation": "x", "rating": ')) is None


def test_an_unknown_json_format_gets_the_nearest_one():
    assert structured_names() == ("json:rating", "json:pair", "json:five_verdicts", "json:five_verdicts_last")
    with pytest.raises(ValueError, match=r"no reply format 'json:ratings'.*Did you mean 'json:rating'"):
        reply_format("json:ratings")
