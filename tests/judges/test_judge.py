import math
from dataclasses import replace

import pytest

from evals.benchmark import judge_request
from evals.chat import NoReply, Reply
from evals.records import Answer, Failure, Judgment, Message, Question, Sampling
from judges.judge import judge, unjudged
from judges.replies import REPLIES, a_or_b, verdict


def answer(model, text):
    return Answer(f"{model}-key", model, "b", "1", "q", 1, text, "stop", 1, 1, 0.0, 0, Sampling())


def request(order="model_first", text="which?", model="m"):
    return judge_request(
        Question("b", "1", "q", "c", ("ask",)),
        judge="j",
        answers=(answer(model, "x"), answer("base", "y")),
        order=order,
        messages=(Message("user", text),),
        sampling=Sampling(),
        reply="a_or_b",
    )


def judgment(text="A", logprobs=()):
    return Judgment("key", "j", text, "stop", tuple(logprobs), 1, 1, 0.1, "j")


class Scripted:
    def __init__(self, *replies):
        self.replies, self.asked = replies, 0

    def chat(self, requests):
        self.asked += len(requests)
        yield from enumerate(self.replies)


def test_a_preference_is_the_share_of_a_in_the_first_token():
    found = a_or_b(judgment(logprobs=[("A", math.log(0.6)), ("B", math.log(0.2)), ("The", math.log(0.2))]))
    assert found == pytest.approx(0.75)


def test_a_token_with_a_space_before_the_letter_counts_for_the_letter():
    assert a_or_b(judgment(logprobs=[(" A", math.log(0.3)), ("A", math.log(0.3)), ("B", math.log(0.6))])) == (
        pytest.approx(0.5)
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("A", 1.0), (" B.", 0.0), ("A)\n", 1.0), ("Answer A", None), ("", None), ("Both", None)],
        *[("A comparison shows", None), ("A B", None), ("B, since", None), ("A.B", None), ("a", None)],
    ],
)
def test_without_log_probabilities_the_letter_must_be_the_whole_reply(text, value):
    assert a_or_b(judgment(text)) == value


def test_log_probabilities_without_either_letter_hold_no_verdict():
    assert a_or_b(judgment("A", [("The", -0.1)])) is None


def test_the_two_orders_read_the_same_reply_as_opposite_preferences():
    said = judgment(logprobs=[("A", math.log(0.9)), ("B", math.log(0.1))])
    first, second = verdict(request("model_first"), said), verdict(request("baseline_first"), said)
    assert first.value == pytest.approx(0.9)
    assert second.value == pytest.approx(0.1)


def test_an_unreadable_reply_is_a_verdict_without_a_value():
    assert verdict(request("baseline_first"), judgment("neither")).value is None


def test_equal_requests_are_asked_once_and_stored_ones_not_at_all():
    same, also, other = request(model="m1"), request(model="m2"), request(text="and this?")
    assert same.key != also.key
    assert same.judgment == also.judgment
    assert unjudged([same, also, other], stored=lambda _: set()) == [same, other]
    assert unjudged([same, also, other], stored=lambda _: {same.judgment}) == [other]


def test_a_reply_becomes_a_judgment_and_no_reply_a_failure():
    asked = [request(), request(text="and this?")]
    by = Scripted(Reply("A", "stop", 7, 1, 0.2, "gpt", (("A", -0.1),)), NoReply("rate_limit", "slow down", 5))
    found = list(judge(asked, by=by))
    assert found[0] == Judgment(asked[0].judgment, "j", "A", "stop", (("A", -0.1),), 7, 1, 0.2, "gpt")
    assert found[1] == Failure(asked[1].judgment, "judge", "j", "b", "q", "rate_limit", "slow down", 5)


class Talkative:
    """Says the next text of each conversation that it is asked about; ``heard`` are the conversations, call by call."""

    def __init__(self, *conversations):
        self.conversations, self.heard = conversations, []

    def chat(self, requests):
        self.heard.append([tuple((m.role, m.content) for m in r.messages) for r in requests])
        for index, asked in enumerate(requests):
            number = int(asked.messages[0].content)
            text = self.conversations[number][len(asked.messages) // 2]
            said = Reply(text, "stop", 10, 2, 0.5, "gpt") if text is not None else NoReply("timeout", "late", 3)
            yield index, said


def five_verdicts(number):
    return replace(request(text=str(number)), reply="five_verdicts", judgment=f"{number:08x}")


def test_a_reply_without_a_label_is_asked_once_to_go_on_in_the_same_conversation():
    by = Talkative(["Well,", "so [[A>B]]"], ["[[B>A]]"], ["Well,", "still no label"])
    found = list(judge([five_verdicts(n) for n in range(3)], by=by))
    assert [j.text for j in found] == ["[[B>A]]", "Well,\nso [[A>B]]", "Well,\nstill no label"]
    assert [verdict(five_verdicts(0), j).value for j in found] == [0.25, 0.75, None]
    go_on = (("assistant", "Well,"), ("user", REPLIES["five_verdicts"].again))
    assert by.heard[1] == [(("user", "0"), *go_on), (("user", "2"), *go_on)]
    assert [(j.prompt_tokens, j.output_tokens, j.seconds) for j in found] == [(10, 2, 0.5), (20, 4, 1.0), (20, 4, 1.0)]


@pytest.mark.parametrize("text", ["[[A>B]] or [[B>A]]", "[[A]]"])
def test_labels_that_differ_or_are_unknown_are_not_asked_about_again(text):
    by = Talkative([text, "never heard"])
    assert [j.text for j in judge([five_verdicts(0)], by=by)] == [text]
    assert len(by.heard) == 1


def test_what_is_held_back_holds_up_nothing_else():
    arriving = judge([five_verdicts(0), five_verdicts(1)], by=Talkative(["Well,", "[[A=B]]"], ["[[A=B]]"]))
    assert next(arriving).key == five_verdicts(1).judgment


def test_where_going_on_fails_the_first_reply_is_the_judgment():
    [found] = judge([five_verdicts(0)], by=Talkative(["Well,", None]))
    assert (found.text, found.output_tokens, verdict(five_verdicts(0), found).value) == ("Well,", 2, None)


def test_a_first_call_that_fails_is_a_failure_and_not_asked_to_go_on():
    by = Talkative([None])
    assert [type(record) for record in judge([five_verdicts(0)], by=by)] == [Failure]
    assert len(by.heard) == 1
