import math
from dataclasses import replace

import pytest

from evals.benchmark import judge_request
from evals.chat import ChatError, NoReply, Reply
from evals.endpoint import EndpointModel
from evals.records import Answer, Failure, Judgment, Message, Question, Sampling
from judges.judge import judge
from judges.replies import REPLIES, a_or_b, reply_format, verdict
from judges.structured import structured
from tests.fake_server import FakeServer


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
        self.replies, self.asked = replies, []

    def chat(self, requests):
        self.asked += list(requests)
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


def test_a_reply_becomes_a_judgment_and_no_reply_a_failure():
    asked = [request(), request(text="and this?")]
    by = Scripted(Reply("A", "stop", 7, 1, 0.2, "gpt", (("A", -0.1),)), NoReply("rate_limit", "slow down", 5))
    found = list(judge(asked, by=by))
    assert found[0] == Judgment(asked[0].judgment, "j", "A", "stop", (("A", -0.1),), 7, 1, 0.2, "gpt")
    assert found[1] == Failure(asked[1].judgment, "judge", "j", "b", "q", "rate_limit", "slow down", 5)


class Talkative:
    """An engine that says the next text of each conversation; ``heard`` are the conversations, call by call."""

    def __init__(self, *conversations):
        self.conversations, self.heard = conversations, []

    def chat(self, requests):
        taken = list(requests)
        self.heard.append([tuple((m.role, m.content) for m in r.messages) for r in taken])
        for index, asked in enumerate(taken):
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


class Replies:
    """An endpoint with room for ``room`` requests: says the next of a request's texts, by its first message.

    None is no reply, an exception is raised. ``asked`` are the requests in their order.
    """

    def __init__(self, room=1, **texts):
        self.room, self.texts, self.asked, self.most = room, {k: iter(v) for k, v in texts.items()}, [], 0

    def chat(self, requests):
        waiting, flying = iter(enumerate(requests)), []
        while True:
            while len(flying) < self.room and (taken := next(waiting, None)):
                flying.append(taken)
                self.asked.append(taken[1])
            if not flying:
                return
            self.most = max(self.most, len(flying))
            index, request = flying.pop(0)
            said = next(self.texts[request.messages[0].content])
            if isinstance(said, Exception):
                raise said
            yield index, NoReply("timeout", "late", 3) if said is None else Reply(said, "stop", 10, 2, 0.5, "gpt")

    def heard(self, text):
        return [request for request in self.asked if request.messages[0].content == text]


def pair(text):
    made = replace(request(text=text), reply="pair")
    return replace(made, judgment=f"{text}-{made.judgment}"[:8].encode().hex()[:8])


def texts(records):
    return {record.key: getattr(record, "text", None) for record in records}


def test_an_unreadable_reply_is_asked_for_again_with_another_seed_until_one_is_readable():
    by = Replies(x=["I like both", "hm", "[[B]]", "never heard"])
    [found] = judge([pair("x")], by=by, attempts=5)
    assert (found.text, found.asked, verdict(pair("x"), found).value) == ("[[B]]", 3, 0.0)
    assert (found.prompt_tokens, found.output_tokens, found.seconds) == (30, 6, 1.5)
    assert len({r.sampling.seed for r in by.asked}) == 3
    assert len({r.messages for r in by.asked}) == 1


def test_after_the_last_attempt_the_reply_is_stored_as_it_is():
    [found] = judge([pair("x")], by=Replies(x=["one", "two", "[[A]]"]), attempts=2)
    assert (found.text, found.asked, verdict(pair("x"), found).value) == ("two", 2, None)


def test_one_attempt_is_the_default():
    by = Replies(x=["one", "[[A]]"])
    assert [(j.text, j.asked) for j in judge([pair("x")], by=by)] == [("one", 1)]


def test_a_judge_must_be_asked_at_least_once():
    with pytest.raises(ValueError, match="attempts is 0"):
        next(judge([], by=Replies(), attempts=0))


def test_attempts_have_the_same_seeds_in_every_run():
    first, second = Replies(x=["one", "[[A]]"]), Replies(x=["one", "[[A]]"])
    for by in (first, second):
        list(judge([pair("x")], by=by, attempts=2))
    assert first.asked == second.asked


def test_an_attempt_that_brings_nothing_is_used_up_and_the_reply_before_it_kept():
    [found] = judge([pair("x")], by=Replies(x=["one", None, "[[A]]"]), attempts=3)
    assert (found.text, found.asked) == ("[[A]]", 2)
    [found] = judge([pair("x")], by=Replies(x=["one", None]), attempts=2)
    assert (found.text, found.asked) == ("one", 1)


def test_going_on_is_part_of_a_try_and_another_try_begins_anew():
    by = Replies(x=["Well,", "so?", "Well then,", "[[A>B]]"])
    [found] = judge([replace(pair("x"), reply="five_verdicts")], by=by, attempts=2)
    assert (found.text, found.asked, found.output_tokens) == ("Well then,\n[[A>B]]", 4, 8)
    assert [len(r.messages) for r in by.asked] == [1, 3, 1, 3]
    assert by.asked[3].messages[1].content == "Well then,"


def test_equal_judgments_are_asked_once_in_a_run():
    same, also = request(model="m1"), request(model="m2")
    assert same.key != also.key
    [found] = judge([same, also], by=Replies(**{"which?": ["A", "B"]}))
    assert found.key == same.judgment == also.judgment


def test_what_is_asked_again_is_asked_as_soon_as_there_is_room():
    by = Replies(x=["one", "[[A]]"], y=["[[A]]"], z=["[[A]]"])
    found = list(judge([pair("x"), pair("y"), pair("z")], by=by, attempts=2))
    assert [r.messages[0].content for r in by.asked] == ["x", "x", "y", "z"]
    assert [j.text for j in found] == ["[[A]]"] * 3


def test_an_engine_that_takes_all_at_once_is_asked_again_when_all_others_are_there():
    by = Talkative(["both", "never"], ["[[A]]"])
    found = list(judge([replace(five_verdicts(n), reply="pair") for n in (0, 1)], by=by, attempts=2))
    assert [len(call) for call in by.heard] == [2, 1]
    assert [j.text for j in found] == ["[[A]]", "both"]


def test_requests_are_taken_only_when_there_is_room():
    taken = []

    def many():
        for number in range(1000):
            taken.append(number)
            yield replace(pair("x"), judgment=f"{number:08x}")

    by = Replies(room=8, x=["[[A]]"] * 1000)
    records = judge(many(), by=by)
    next(records)
    assert len(taken) <= 9
    assert len(list(records)) == 999


def test_an_error_gives_up_what_is_held_back_before_it_is_raised():
    by = Replies(room=2, x=["one", ChatError("no credit left")], y=["[[A]]"], z=["two", "[[A]]"])
    found = []
    with pytest.raises(ChatError, match="no credit left"):
        found.extend(judge([pair("x"), pair("y"), pair("z")], by=by, attempts=3))  # extend keeps what came before
    assert sorted(record.text for record in found) == ["[[A]]", "one"]
    assert len({record.key for record in found}) == 2


def test_after_an_error_what_was_to_go_on_is_judged_afresh():
    by = Replies(x=["Well,", ChatError("no credit left")])
    found = []
    with pytest.raises(ChatError):
        found.extend(judge([replace(pair("x"), reply="five_verdicts")], by=by))
    assert found == []


def test_an_error_of_the_requests_themselves_is_raised():
    def broken():
        yield pair("x")
        raise ValueError("no such template")

    with pytest.raises(ValueError, match="no such template"):
        list(judge(broken(), by=Replies(x=["[[A]]"])))


def test_cost_adds_up_over_attempts_and_is_unknown_without_a_price():
    def price(reply):
        return 0.5 if isinstance(reply, NoReply) else reply.output_tokens / 2

    [found] = judge([pair("x")], by=Replies(x=["one", None, "[[A]]"]), attempts=3, cost=price)
    assert found.cost == 2.5
    [failed] = judge([pair("x")], by=Replies(x=[None]), cost=price)
    assert (failed.cost, failed.attempts) == (0.5, 3)
    [free] = judge([pair("x")], by=Replies(x=["one", "[[A]]"]), attempts=2)
    assert free.cost is None


def test_fingerprint_and_thinking_are_kept_and_thinking_is_counted_over_attempts():
    first = Reply("hm", "stop", 1, 9, 0.1, "gpt", fingerprint="fp_1", thinking="first", thinking_tokens=7)
    second = replace(first, text="[[A]]", fingerprint="fp_2", thinking="second", thinking_tokens=5)

    class Thinker:
        replies = iter([first, second])

        def chat(self, requests):
            for index, _ in enumerate(requests):
                yield index, next(self.replies)

    [found] = judge([pair("x")], by=Thinker(), attempts=2)
    assert (found.fingerprint, found.thinking, found.thinking_tokens) == ("fp_2", "second", 12)


def test_a_structured_request_brings_its_schema_to_the_model():
    by = Replies(**{structured(pair("x")).messages[0].content: ['{"explanation": "", "verdict": "B"}']})
    [found] = judge([structured(pair("x"))], by=by)
    assert by.asked[0].schema == reply_format("json:pair").schema
    assert verdict(structured(pair("x")), found).value == 0.0


def test_over_http_every_request_has_one_judgment_and_unreadable_replies_are_asked_for_as_often_as_allowed():
    def reply(body):
        number, seed = int(body["messages"][0]["content"]), body["seed"]
        return "[[A]]" if number % 3 == 0 or (number % 3 == 1 and seed != number) else "no label"

    asked = [replace(pair(str(n)), judgment=f"{n:08x}") for n in range(300)]
    with FakeServer(reply=reply) as server:
        by = EndpointModel(base_url=server.base_url, model="fake-model", api_key_env=None, concurrency=32)
        found = {record.key: record for record in judge(iter(asked), by=by, attempts=3)}
    assert {int(key, 16): record.asked for key, record in found.items()} == {n: (1, 2, 3)[n % 3] for n in range(300)}
    assert [int(key, 16) for key, record in found.items() if record.text == "no label"] != []
    assert len(server.bodies) == 600
    assert len({(body["messages"][0]["content"], body["seed"]) for body in server.bodies}) == 600
