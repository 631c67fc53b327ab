"""The endpoint client against a real local HTTP server that misbehaves on request."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import pytest

from evals.chat import ChatError, ChatRequest, NoReply, Reply
from evals.chat_json import request_body
from evals.endpoint import EndpointModel
from evals.endpoint_errors import one_line, read_status, retry_after
from evals.records import Message, Sampling
from tests import fake_replies as fake
from tests.fake_server import FakeServer, Limit

KEY = "sk-very-secret-0123456789"


def model(server: FakeServer, **changes: Any) -> EndpointModel:
    plain = {"base_url": server.base_url, "model": "fake-model", "api_key_env": None, "backoff": 0.001, "timeout": 5.0}
    return EndpointModel(**(plain | changes))


def ask(text: str = "hello", **changes: Any) -> ChatRequest:
    sampling = changes.pop("sampling", Sampling(max_tokens=64, seed=7))
    return ChatRequest(messages=(Message("user", text),), sampling=sampling, **changes)


def one(server: FakeServer, request: ChatRequest | None = None, **changes: Any) -> Reply | NoReply:
    [(index, outcome)] = model(server, **changes).chat([request or ask()])
    assert index == 0
    return outcome


def test_a_reply_carries_text_tokens_time_and_who_served_it() -> None:
    with FakeServer(script=[fake.says("four five", model="fake-model-2024", delay=0.05)]) as server:
        reply = one(server, ask("two plus two"))
    assert isinstance(reply, Reply)
    assert (reply.text, reply.finish_reason, reply.served_model) == ("four five", "stop", "fake-model-2024")
    assert (reply.prompt_tokens, reply.output_tokens, reply.top_logprobs) == (3, 2, ())
    assert reply.seconds >= 0.05


def test_text_that_no_file_can_hold_is_mended_where_it_arrives() -> None:
    with FakeServer(script=[fake.says("a\ud800b 😀")]) as server:
        reply = one(server)
    assert isinstance(reply, Reply)
    assert reply.text == "a\ufffdb 😀"


def test_a_reply_carries_its_thinking_and_what_it_cost() -> None:
    with FakeServer(script=[fake.thinks("yes", "is it so"), fake.thinks("no", "hm", field="reasoning")]) as server:
        first, second = one(server, ask("say yes or no")), one(server)
    assert isinstance(first, Reply) and isinstance(second, Reply)
    assert (first.text, first.thinking, first.output_tokens, first.thinking_tokens) == ("yes", "is it so", 4, 3)
    assert (first.cached_tokens, first.fingerprint, first.discarded) == (1, "fp_fake", (0, 0))
    assert (second.thinking, second.thinking_tokens) == ("hm", 1)


def test_a_changing_fingerprint_shows() -> None:
    with FakeServer(fingerprints=["fp_a", "fp_b"]) as server:
        replies = [reply for _, reply in model(server).chat([ask(str(i)) for i in range(4)])]
    assert sorted(r.fingerprint for r in replies if isinstance(r, Reply)) == ["fp_a", "fp_a", "fp_b", "fp_b"]


def test_replies_thrown_away_are_paid_for_and_counted() -> None:
    thrown = fake.says("half of it", finish="error")
    with FakeServer(script=[thrown, thrown, fake.says("whole"), fake.says(None, finish="length")]) as server:
        reply, failure = one(server, ask("one two")), one(server, ask("one two"))
    assert isinstance(reply, Reply) and isinstance(failure, NoReply)
    assert (reply.discarded, reply.output_tokens) == ((4, 6), 1)
    assert failure.discarded == (2, 0)


@pytest.mark.parametrize(
    "logprobs",
    [
        *(None, "none", 7, [], {}, {"content": None}, {"content": []}, {"content": {}}, {"content": [None]}),
        *({"content": [{}]}, {"content": [{"top_logprobs": None}]}, {"content": [{"top_logprobs": [None, "A", 1]}]}),
        {"content": [{"top_logprobs": [{"token": "A"}, {"logprob": -1.0}, {"token": 3, "logprob": -1.0}]}]},
        *({"content": [{"top_logprobs": [{"token": "A", "logprob": bad}]}]} for bad in ("-1.0", None, 2.5, True)),
        *({"content": [{"top_logprobs": [{"token": "A", "logprob": float(bad)}]}]} for bad in ("nan", "inf", "-inf")),
        *({"content": [{"top_logprobs": [{"token": "A", "logprob": bad}]}]} for bad in (10**400, -(10**400))),
    ],
)
def test_wrong_log_probabilities_are_none_and_the_reply_stands(logprobs: object) -> None:
    with FakeServer(script=[fake.with_logprobs(logprobs)]) as server:
        reply = one(server, ask(top_logprobs=5))
    assert isinstance(reply, Reply)
    assert (reply.text, reply.top_logprobs) == ("A", ())


@pytest.mark.parametrize("count", [10**30, 2**53, -1, True, 1.5, "7", None])
def test_a_number_of_tokens_that_is_none_is_0_and_the_reply_stands(count: object) -> None:
    usage = {"prompt_tokens": count, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": count}}
    with FakeServer(script=[fake.says("yes", usage=usage)]) as server:
        reply = one(server)
    assert isinstance(reply, Reply)
    assert (reply.text, reply.prompt_tokens, reply.output_tokens, reply.cached_tokens) == ("yes", 0, 2, 0)


def test_good_log_probabilities_survive_among_wrong_ones() -> None:
    pairs = [("B", -2.0), ("x", float("nan")), ("A", 3e-7), ("y", 1.0)]
    top = [{"token": token, "logprob": value} for token, value in pairs]
    with FakeServer(script=[fake.with_logprobs({"content": [{"top_logprobs": top}]})]) as server:
        reply = one(server, ask(top_logprobs=5))
    assert isinstance(reply, Reply)
    assert reply.top_logprobs == (("A", 0.0), ("B", -2.0))


def test_a_reply_that_trickles_in_is_whole() -> None:
    with FakeServer(script=[fake.slowly("in five pieces")]) as server:
        reply = one(server)
    assert isinstance(reply, Reply)
    assert reply.text == "in five pieces"


def test_every_index_comes_once_and_slow_requests_hold_up_nobody() -> None:
    def slow_first(body: dict[str, Any], _: int) -> fake.Behaviour:
        return fake.says(body["messages"][0]["content"], delay=0.5 if body["seed"] == 0 else 0.0)

    requests = [ask(f"q{i}", sampling=Sampling(seed=i)) for i in range(20)]
    with FakeServer(script=slow_first) as server:
        arrived = list(model(server, concurrency=4).chat(requests))
    assert arrived[-1][0] == 0
    assert {i: reply.text for i, reply in arrived if isinstance(reply, Reply)} == {i: f"q{i}" for i in range(20)}


def test_at_most_concurrency_requests_are_in_flight_over_as_many_connections() -> None:
    with FakeServer(latency=0.01) as server:
        assert len(list(model(server, concurrency=3).chat([ask(str(i)) for i in range(15)]))) == 15
    assert (server.most_in_flight, server.connections) == (3, 3)


def test_sampling_goes_out_in_openais_names_and_the_rest_only_when_set() -> None:
    sampling = Sampling(temperature=0.7, top_p=0.9, max_tokens=5, stop=("\n",), seed=3)
    with FakeServer() as server:
        one(server, ask(sampling=sampling))
        one(server, ask(sampling=Sampling(top_k=20, repetition_penalty=1.1)))
    plain, ours = server.bodies
    assert plain == {
        "model": "fake-model",
        "messages": [{"role": "user", "content": "hello"}],
        **{"temperature": 0.7, "top_p": 0.9, "max_tokens": 5, "seed": 3, "stop": ["\n"]},
    }
    assert (ours["top_k"], ours["repetition_penalty"], ours["temperature"], "stop" in ours) == (20, 1.1, 0.0, False)


def test_extra_body_wins_and_none_leaves_a_field_out() -> None:
    extra = {"max_tokens": None, "max_completion_tokens": 99, "seed": 1}
    with FakeServer() as server:
        one(server, extra_body=extra)
    [body] = server.bodies
    assert ("max_tokens" in body, body["max_completion_tokens"], body["seed"]) == (False, 99, 1)


def test_first_token_log_probabilities_come_best_first_and_choices_bound_the_reply() -> None:
    with FakeServer() as server:
        reply = one(server, ask(top_logprobs=5, choices=("A", "B")))
    [body] = server.bodies
    assert (body["logprobs"], body["top_logprobs"], body["structured_outputs"]) == (True, 5, {"choice": ["A", "B"]})
    assert isinstance(reply, Reply)
    assert dict(reply.top_logprobs) == pytest.approx(fake.choice_logprobs(body))
    assert reply.text == reply.top_logprobs[0][0]
    assert reply.top_logprobs[0][1] >= reply.top_logprobs[1][1]


def test_openai_itself_is_not_sent_vllms_field_unless_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    request = ask(top_logprobs=5, choices=("A", "B"))
    with FakeServer(fields=fake.OPENAI_FIELDS) as server:
        monkeypatch.setattr("evals.endpoint.OPENAI", server.base_url)
        assert isinstance(one(server, request, base_url=None), Reply)
        mine = {"structured_outputs": {"choice": ["yes"]}}
        assert isinstance(one(server, request, base_url=None, extra_body=mine), NoReply)
    assert ["structured_outputs" in body for body in server.bodies] == [False, True]


def test_a_schema_goes_out_as_response_format_unless_extra_body_leaves_it_out() -> None:
    schema = {"type": "object", "properties": {"rating": {"type": "integer"}}}
    with FakeServer(fields=fake.OPENAI_FIELDS) as server:
        one(server, ask(schema=json.dumps(schema)))
        one(server, ask(schema=json.dumps(schema)), extra_body={"response_format": None})
    wanted = {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema, "strict": True}}
    assert [body.get("response_format") for body in server.bodies] == [wanted, None]


def test_openai_is_sent_schemas_without_lengths_and_properties_keep_their_names() -> None:
    text = {"type": "string", "maxLength": 5, "enum": ["maxLength"]}
    schema = {"properties": {"maxLength": text, "all": {"anyOf": [{"type": "array", "items": text}]}}}
    bodies = [
        request_body(ask(schema=json.dumps(schema)), extra={}, for_openai=for_openai) for for_openai in (True, False)
    ]
    openai, other = (json.loads(json.dumps(body["response_format"]))["json_schema"]["schema"] for body in bodies)
    short = {"type": "string", "enum": ["maxLength"]}
    assert openai == {"properties": {"maxLength": short, "all": {"anyOf": [{"type": "array", "items": short}]}}}
    assert other == schema


def test_a_server_that_refuses_a_field_is_asked_without_it_where_extra_body_says_so() -> None:
    request = ask(top_logprobs=5, choices=("A", "B"))
    with FakeServer(fields=fake.OPENAI_FIELDS) as server:
        refused = one(server, request)
        assert isinstance(one(server, request, extra_body={"structured_outputs": None}), Reply)
    assert isinstance(refused, NoReply)
    assert (refused.kind, refused.attempts) == ("bad_request", 1)
    assert refused.message.endswith(": set extra_body: {structured_outputs: null} for this endpoint")


@pytest.mark.parametrize("wording", ["openai", "azure", "groq", "gemini", "anthropic", "pydantic"])
def test_the_refused_field_is_named_whatever_the_servers_words(wording: str) -> None:
    with FakeServer(script=[fake.unknown("seed", wording)]) as server:
        outcome = one(server)
    assert isinstance(outcome, NoReply)
    assert outcome.kind == "bad_request"
    assert outcome.message.endswith("set extra_body: {seed: null} for this endpoint")


def test_an_error_of_megabytes_is_searched_at_its_head_only() -> None:
    trouble = read_status(400, "unknown_" * 200_000, headers={}, sent=["seed"])  # quadratic in what is searched
    assert (trouble.kind, trouble.hint) == ("bad_request", "")
    page = "x" * 1_000_000 + "maximum context length"
    assert read_status(400, page, headers={}).kind == "bad_request"


def test_a_refused_value_brings_no_advice_to_drop_the_field() -> None:
    with FakeServer(script=[fake.error(400, "temperature must be at most 2")]) as server:
        outcome = one(server)
    assert isinstance(outcome, NoReply)
    assert "extra_body" not in outcome.message


def test_a_servers_words_cannot_move_the_terminals_cursor() -> None:
    with FakeServer(script=[fake.error(400, "no\x1b[2J\u202e way\n\ud800here")]) as server:
        outcome = one(server)
    assert isinstance(outcome, NoReply)
    assert outcome.message.isprintable()
    assert one_line("a\x1b[2J\tb\x00\u200b\n c") == "a[2J b c"


@pytest.mark.parametrize(
    "trouble",
    [
        *(fake.broken(), fake.broken(503), fake.dropped(), fake.rate_limited(after="0"), fake.malformed()),
        *(fake.malformed("[]"), fake.says("x", choices=[]), fake.says(None), fake.says("half", finish="error")),
        *(fake.cut_short(), fake.error(529, "Overloaded"), fake.rate_limited(after_ms="1")),
    ],
)
def test_a_passing_trouble_is_survived(trouble: fake.Behaviour) -> None:
    with FakeServer(script=[trouble, trouble]) as server:
        reply = one(server)
    assert isinstance(reply, Reply)
    assert server.count == 3


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        (fake.rate_limited(), "rate_limit"),
        (fake.broken(502), "server"),
        (fake.dropped(), "connection"),
        (fake.cut_short(), "connection"),
        (fake.malformed(), "bad_reply"),
        (fake.says(None), "bad_reply"),
        (fake.says("late", delay=1.0), "timeout"),
    ],
)
def test_a_lasting_trouble_is_a_typed_failure_after_the_last_attempt(trouble: fake.Behaviour, kind: str) -> None:
    with FakeServer(script=[trouble] * 3) as server:
        outcome = one(server, max_attempts=3, timeout=0.05 if kind == "timeout" else 5.0)
    assert isinstance(outcome, NoReply)
    assert (outcome.kind, outcome.attempts, server.count) == (kind, 3, 3)
    assert outcome.message


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        (fake.too_long("vllm"), "context_length"),
        (fake.too_long("vllm engine"), "context_length"),
        (fake.too_long("vllm max_tokens"), "context_length"),
        (fake.too_long("openai"), "context_length"),
        (fake.filtered(), "content_filter"),
        (fake.says("", finish="content_filter"), "content_filter"),
        (fake.error(403, "Your input was flagged by moderation"), "content_filter"),
        (fake.error(400, "temperature must be at most 2"), "bad_request"),
        (fake.error(422, "seed: not an integer"), "bad_request"),
        (fake.says(None, finish="length"), "truncated"),
        (fake.thinks("", "on and on", finish="length"), "truncated"),
        (fake.refuses(), "refusal"),
    ],
)
def test_what_would_fail_again_is_not_asked_again(trouble: fake.Behaviour, kind: str) -> None:
    with FakeServer(script=[trouble]) as server:
        outcome = one(server)
    assert isinstance(outcome, NoReply)
    assert (outcome.kind, outcome.attempts, server.count) == (kind, 1, 1)


def test_an_error_within_a_200_is_the_error_that_it_says() -> None:
    busy = fake.malformed('{"error": {"code": 429, "message": "upstream is busy"}}')
    filtered = fake.malformed('{"error": {"code": 403, "message": "Your input was flagged by moderation"}}')
    with FakeServer(script=[busy, busy, filtered]) as server:
        outcomes = [one(server, max_attempts=2), one(server)]
    assert [o.kind for o in outcomes if isinstance(o, NoReply)] == ["rate_limit", "content_filter"]


def test_with_everything_going_wrong_every_request_comes_to_exactly_one_end() -> None:
    kinds = fake.PASSING | fake.LASTING
    requests = [ask(str(i)) for i in range(300)]
    with FakeServer(script=fake.mishaps(0.3, kinds=kinds)) as server:
        arrived = list(model(server, max_attempts=9).chat(requests))
    assert sorted(index for index, _ in arrived) == list(range(300))
    failed = {outcome.kind for _, outcome in arrived if isinstance(outcome, NoReply)}
    assert failed <= {"content_filter", "refusal", "context_length", "truncated"}


def test_one_request_too_long_does_not_stop_the_others() -> None:
    with FakeServer(script=lambda body, _: fake.too_long() if body["seed"] == 2 else None) as server:
        arrived = dict(model(server).chat([ask(sampling=Sampling(seed=i)) for i in range(5)]))
    assert [i for i, outcome in arrived.items() if isinstance(outcome, NoReply)] == [2]
    assert len(arrived) == 5


@pytest.mark.parametrize("wish", [{"after": "0.2"}, {"after_ms": "200"}, {"after": "9", "after_ms": "200"}])
def test_the_servers_wish_to_wait_is_honoured(wish: dict[str, str]) -> None:
    with FakeServer(script=[fake.rate_limited(**wish)]) as server:
        began = time.monotonic()
        assert isinstance(one(server, timeout=60.0), Reply)
    assert 0.2 <= time.monotonic() - began < 5


def test_who_waits_for_another_attempt_holds_up_nobody() -> None:
    def first_is_busy(body: dict[str, Any], before: int) -> fake.Behaviour | None:
        return fake.rate_limited(after="0.3") if body["seed"] == 0 and not before else None

    requests = [ask(f"q{i}", sampling=Sampling(seed=i)) for i in range(20)]
    with FakeServer(script=first_is_busy) as server:
        arrived = [index for index, _ in model(server, concurrency=1).chat(requests)]
    assert arrived == [*range(1, 20), 0]


def test_a_quota_used_up_for_the_day_stops_everything() -> None:
    words = r"quota is used up for the next 86400 s: run again then"
    spent = [fake.rate_limited(after="86400")] * 99
    with FakeServer(script=spent) as server, pytest.raises(ChatError, match=words):
        list(model(server, concurrency=16).chat([ask(str(i)) for i in range(99)]))
    assert server.count <= 32


@pytest.mark.slow
def test_a_limited_rate_is_learned_without_a_storm() -> None:
    limit = Limit(rate=800, burst=20)
    with FakeServer(limit=limit, keep=False) as server:
        replies = [r for _, r in model(server, backoff=0.05, max_attempts=9).chat([ask(str(i)) for i in range(400)])]
    assert all(isinstance(reply, Reply) for reply in replies)
    assert limit.refused < 80


def test_what_one_call_found_out_about_pace_serves_the_next() -> None:
    limit = Limit(rate=800, burst=20)
    with FakeServer(limit=limit, keep=False) as server:
        asked = model(server, backoff=0.05, max_attempts=9)
        refused = []
        for _ in range(2):
            assert len(list(asked.chat([ask(str(i)) for i in range(150)]))) == 150
            refused.append(limit.refused)
    assert refused[1] - refused[0] < refused[0]


def test_a_rate_that_headers_tell_is_hardly_ever_refused() -> None:
    limit = Limit(rate=800, burst=200, headers=True)
    with FakeServer(limit=limit, keep=False) as server:
        replies = [r for _, r in model(server, backoff=0.05, max_attempts=9).chat([ask(str(i)) for i in range(500)])]
    assert all(isinstance(reply, Reply) for reply in replies)
    assert limit.refused < 50


def test_limits_given_by_hand_are_kept() -> None:
    began = time.monotonic()
    with FakeServer() as server:
        assert len(list(model(server, requests_per_minute=6000).chat([ask(str(i)) for i in range(101)]))) == 101
    assert time.monotonic() - began >= 0.4  # 100 a second, but for a burst of half a second's


def test_a_wish_to_wait_for_a_day_ends_the_request() -> None:
    with FakeServer(script=[fake.rate_limited(after="86400")]) as server:
        outcome = one(server)
    assert isinstance(outcome, NoReply)
    assert (outcome.kind, outcome.attempts) == ("rate_limit", 1)


def test_retry_after_may_be_a_date() -> None:
    assert retry_after({"retry-after": formatdate(time.time() + 30, usegmt=True)}) == pytest.approx(30, abs=2)
    assert retry_after({"retry-after": formatdate(time.time() - 30, usegmt=True)}) == 0
    assert retry_after({"retry-after": "soon"}) is None


def test_a_wrong_key_stops_everything_and_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_ENDPOINT_KEY", KEY)
    with FakeServer(script=[fake.wrong_key(echo=KEY)] * 99) as server, pytest.raises(ChatError) as caught:
        list(model(server, api_key_env="TEST_ENDPOINT_KEY", concurrency=16).chat([ask()] * 50))
    said = str(caught.value)
    assert "TEST_ENDPOINT_KEY" in said
    assert "fake-model" in said
    assert server.base_url in said
    assert KEY not in said
    assert caught.value.__cause__ is None
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert server.count <= 16


def until_lost(asked: EndpointModel, count: int) -> dict[int, Reply | NoReply]:
    """Return what came of so many requests before ChatError was raised."""
    arrived: dict[int, Reply | NoReply] = {}
    try:
        for index, outcome in asked.chat([ask(str(i)) for i in range(count)]):
            arrived[index] = outcome
    except ChatError:
        return arrived
    pytest.fail("all came to an end, and no ChatError was raised")


def refuse_first(trouble: fake.Behaviour) -> Callable[[dict[str, Any], int], fake.Behaviour]:
    """Return a script that refuses the request "0" at once and answers all others later."""
    return lambda body, _: trouble if body["messages"][0]["content"] == "0" else fake.says("late", delay=0.1)


@pytest.mark.parametrize("trouble", [fake.wrong_key(), fake.error(402, "no credit"), fake.no_such_model("fake-model")])
def test_what_is_in_flight_when_all_is_lost_is_paid_for_and_arrives_and_nothing_more_is_asked(
    trouble: fake.Behaviour,
) -> None:
    with FakeServer(script=refuse_first(trouble)) as server:
        arrived = until_lost(model(server, concurrency=16), 99)
    assert all(isinstance(reply, Reply) for reply in arrived.values())
    assert sorted(arrived) == list(range(1, 16))
    assert server.count == 16


def test_a_request_that_was_thrown_away_once_is_accounted_for_when_all_is_lost() -> None:
    def script(body: dict[str, Any], before: int) -> fake.Behaviour:
        if body["messages"][0]["content"] == "0":
            return lambda asked: replace(fake.wrong_key()(asked), delay=0.1)
        return fake.says("half of it", finish="error")

    with FakeServer(script=script) as server:
        arrived = until_lost(model(server, backoff=60.0), 4)
    assert all(isinstance(outcome, NoReply) and outcome.discarded == (1, 3) for outcome in arrived.values())
    assert sorted(arrived) == [1, 2, 3]


def test_the_key_shows_in_no_failure_and_no_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_ENDPOINT_KEY", KEY)
    with FakeServer(script=[fake.error(400, f"bad header: Bearer {KEY}")]) as server:
        asked = model(server, api_key_env="TEST_ENDPOINT_KEY")
        [(_, outcome)] = asked.chat([ask()])
    assert KEY not in f"{outcome!r} {asked!r} {vars(asked)}"


def test_a_key_variable_that_is_not_set_is_named_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_ENDPOINT_KEY", raising=False)
    with FakeServer() as server, pytest.raises(ChatError, match=r"TEST_ENDPOINT_KEY .* is not set"):
        list(model(server, api_key_env="TEST_ENDPOINT_KEY").chat([ask()]))
    assert server.count == 0


def test_openais_own_variables_never_reach_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)
    with FakeServer() as server:
        assert isinstance(one(server), Reply)
    assert KEY not in str(server.headers)


def test_openai_itself_is_told_the_organisation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    with FakeServer() as server:
        monkeypatch.setattr("evals.endpoint.OPENAI", server.base_url)
        one(server, base_url=None)
    assert server.headers[0]["openai-organization"] == "org-1"


def test_a_redirection_is_not_followed_with_the_key() -> None:
    moved = fake.error(308, "moved", headers={"Location": "http://elsewhere.test/{v1}"})
    words = r"sends elsewhere .*elsewhere\.test/\{v1\}.*correct base_url"
    with FakeServer(script=[moved]) as server, pytest.raises(ChatError, match=words):
        one(server)


def test_an_unknown_model_stops_everything_and_says_what_to_correct() -> None:
    with FakeServer(strict=True) as server, pytest.raises(ChatError, match=r"no model 'missing'.*correct `model`"):
        list(model(server, model="missing").chat([ask()] * 50))


def test_a_wrong_path_is_told_from_a_wrong_model() -> None:
    with FakeServer() as server, pytest.raises(ChatError, match=r"correct base_url.*/v1"):
        one(server, base_url=server.base_url + "/nowhere")


def test_an_account_without_credit_is_not_asked_again() -> None:
    broke = fake.error(429, "You exceeded your current quota", code="insufficient_quota")
    with FakeServer(script=[broke]) as server, pytest.raises(ChatError, match="no credit left"):
        one(server)
    assert server.count == 1


def test_a_server_that_is_not_there_is_an_error_of_the_model_not_of_each_request() -> None:
    with FakeServer() as server:
        gone = model(server, max_attempts=2)
    with pytest.raises(ChatError, match=r"nothing answers at http://127\.0\.0\.1.*start the server"):
        list(gone.chat([ask()] * 100))


def test_work_goes_to_all_replicas() -> None:
    with FakeServer(latency=0.01) as one, FakeServer(latency=0.01) as two:
        replies = list(model(one, replicas=[two.base_url], concurrency=4).chat([ask(str(i)) for i in range(80)]))
    assert sorted(index for index, _ in replies) == list(range(80))
    assert one.count + two.count == 80
    assert min(one.count, two.count) >= 20
    assert max(one.most_in_flight, two.most_in_flight) <= 4


def test_a_replica_that_is_not_there_costs_no_request() -> None:
    with FakeServer() as gone:
        pass
    with FakeServer() as server:
        asked = model(gone, replicas=[server.base_url], max_attempts=1)
        replies = [reply for _, reply in asked.chat([ask(str(i)) for i in range(50)])]
    assert all(isinstance(reply, Reply) for reply in replies)
    assert server.count == 50


def test_the_requests_of_a_replica_that_dies_go_to_the_others_and_it_is_asked_again_when_it_is_back() -> None:
    with FakeServer() as lives:
        dies = FakeServer(latency=0.005)
        dies.__enter__()
        asked = model(lives, replicas=[dies.base_url], concurrency=2, backoff=0.01)
        lives.latency = 0.005
        arriving = asked.chat([ask(str(i)) for i in range(400)])
        replies = [next(arriving)[1] for _ in range(50)]
        dies.__exit__()
        replies += [next(arriving)[1] for _ in range(50)]
        with FakeServer(port=dies.port, latency=0.005) as back:
            replies += [reply for _, reply in arriving]
    assert len(replies) == 400
    assert all(isinstance(reply, Reply) for reply in replies)
    assert min(dies.count, lives.count, back.count) > 0


@pytest.mark.parametrize("wrong", [{"strict": True, "models": ["another"]}, {"key": "another"}])
def test_a_replica_with_another_model_or_key_is_set_aside_and_costs_no_request(wrong: dict[str, Any]) -> None:
    with FakeServer(**wrong) as refuses, FakeServer(latency=0.01) as server:
        asked = model(refuses, replicas=[server.base_url], concurrency=4, max_attempts=1)
        replies = [reply for _, reply in asked.chat([ask(str(i)) for i in range(50)])]
    assert len(replies) == 50 and all(isinstance(reply, Reply) for reply in replies)
    assert (server.count, refuses.count <= 4) == (50, True)


def test_when_every_replica_refuses_all_is_lost_and_each_is_named() -> None:
    with FakeServer(strict=True, models=["other"]) as one, FakeServer(key="another") as two:
        words = rf"(?s)(?=.*{one.port}\S*: there is no model)(?=.*{two.port}\S*: the key is refused)"
        with pytest.raises(ChatError, match=words):
            list(model(one, replicas=[two.base_url]).chat([ask(str(i)) for i in range(50)]))


def test_a_replica_that_refuses_beside_one_that_is_not_there_leaves_none() -> None:
    with FakeServer() as gone:
        pass
    words = rf"nothing answers at \S*{gone.port}\S* .*the key is refused"
    with FakeServer(key="another") as refuses, pytest.raises(ChatError, match=words):
        list(model(gone, replicas=[refuses.base_url], max_attempts=2).chat([ask(str(i)) for i in range(50)]))


def test_only_when_no_replica_answers_all_is_lost() -> None:
    with FakeServer() as one, FakeServer() as two:
        pass
    with pytest.raises(ChatError, match=rf"nothing answers at .*{one.port}.*, .*{two.port}.*start the server"):
        list(model(one, replicas=[two.base_url], max_attempts=2).chat([ask(str(i)) for i in range(50)]))


def test_a_server_that_comes_up_late_is_waited_for() -> None:
    with FakeServer() as early:
        pass
    late = FakeServer(port=early.port)
    timer = threading.Timer(0.2, late.__enter__)
    timer.start()
    replies = list(model(late, backoff=0.05).chat([ask(str(i)) for i in range(50)]))
    timer.join()
    late.__exit__()
    assert len(replies) == late.count == 50


def test_a_base_url_without_a_host_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ChatError, match=r"'http:///v1' names no host: write http://"):
        list(EndpointModel(base_url="http:///v1", model="m", api_key_env=None).chat([ask()]))


def test_a_base_url_without_a_scheme_is_refused_at_once() -> None:
    with pytest.raises(ChatError, match=r"'localhost:8000/v1' .*http://"):
        EndpointModel(base_url="localhost:8000/v1", model="m", api_key_env=None)


def test_where_no_event_loop_can_be_made_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise OSError("too many open files")

    asked = EndpointModel(base_url="http://127.0.0.1:9/v1", model="m", api_key_env=None)
    monkeypatch.setattr("asyncio.events.new_event_loop", none)
    with pytest.raises(OSError, match="too many open files"):
        list(asked.chat([ask()]))


def test_closing_the_generator_cancels_what_is_in_flight() -> None:
    script = [fake.says("first"), *[fake.says("never", delay=30.0)] * 50]
    with FakeServer(script=script) as server:
        arriving = model(server, concurrency=4, timeout=60.0).chat([ask(str(i)) for i in range(50)])
        next(arriving)
        began = time.monotonic()
        arriving.close()
        gc.collect()  # a coroutine that was never awaited, or an unclosed session, would warn now
        assert time.monotonic() - began < 10
        while server.cut_off < 3:
            time.sleep(0.01)
    assert server.count <= 8


def test_a_caller_that_takes_nothing_stops_the_asking() -> None:
    with FakeServer() as server:
        arriving = model(server, concurrency=4).chat([ask(str(i)) for i in range(200)])
        next(arriving)
        time.sleep(0.2)
        asked = server.count
        assert len(list(arriving)) == 199
    assert asked <= 10


def test_requests_are_drawn_when_they_can_be_sent_and_no_sooner() -> None:
    drawn: list[int] = []

    def requests() -> Iterator[ChatRequest]:
        for i in range(1000):
            drawn.append(i)
            yield ask(str(i))

    with FakeServer() as server:
        arriving = model(server, concurrency=4).chat(requests())
        next(arriving)
        time.sleep(0.2)
        assert len(drawn) <= 10
        arriving.close()


def test_what_the_requests_raise_reaches_the_caller_after_what_was_in_flight() -> None:
    def requests() -> Iterator[ChatRequest]:
        yield from (ask(str(i)) for i in range(5))
        raise LookupError("the ledger is gone")

    arrived = []
    with FakeServer(latency=0.05) as server, pytest.raises(LookupError, match="ledger is gone"):
        arrived += (index for index, _ in model(server).chat(requests()))
    assert server.count == 5


def test_a_prompt_of_megabytes_goes_out_whole() -> None:
    text = "long \ud800 " * 300_000
    with FakeServer() as server:
        assert isinstance(one(server, ask(text)), Reply)
    assert server.bodies[0]["messages"][0]["content"] == text


def test_no_requests_need_no_key_and_no_server() -> None:
    assert list(EndpointModel(base_url=None, model="m", api_key_env="TEST_NO_SUCH_KEY").chat([])) == []


async def _inside_a_loop(server: FakeServer) -> list[tuple[int, Reply | NoReply]]:
    return list(model(server).chat([ask()]))


def test_it_works_inside_a_running_event_loop_as_in_a_notebook() -> None:
    import asyncio

    with FakeServer() as server:
        [(_, reply)] = asyncio.run(_inside_a_loop(server))
    assert isinstance(reply, Reply)
