"""The endpoint client against a real local HTTP server that misbehaves on request."""

from __future__ import annotations

import gc
import time
from email.utils import formatdate
from typing import Any

import pytest

from evals.chat import ChatError, ChatRequest, NoReply, Reply
from evals.endpoint import EndpointModel
from evals.endpoint_errors import one_line, retry_after
from evals.records import Message, Sampling
from tests import fake_server as fake
from tests.fake_server import FakeServer

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
        (fake.says(None, finish="length"), "bad_reply"),
    ],
)
def test_what_would_fail_again_is_not_asked_again(trouble: fake.Behaviour, kind: str) -> None:
    with FakeServer(script=[trouble]) as server:
        outcome = one(server)
    assert isinstance(outcome, NoReply)
    assert (outcome.kind, outcome.attempts, server.count) == (kind, 1, 1)


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
        list(model(server, api_key_env="TEST_ENDPOINT_KEY").chat([ask()] * 50))
    said = str(caught.value)
    assert "TEST_ENDPOINT_KEY" in said
    assert "fake-model" in said
    assert server.base_url in said
    assert KEY not in said
    assert caught.value.__cause__ is None
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert server.count <= 16


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


def test_a_base_url_without_a_scheme_is_refused_at_once() -> None:
    with pytest.raises(ChatError, match=r"'localhost:8000/v1' .*http://"):
        EndpointModel(base_url="localhost:8000/v1", model="m", api_key_env=None)


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


def test_no_requests_need_no_key_and_no_server() -> None:
    assert list(EndpointModel(base_url=None, model="m", api_key_env="TEST_NO_SUCH_KEY").chat([])) == []


async def _inside_a_loop(server: FakeServer) -> list[tuple[int, Reply | NoReply]]:
    return list(model(server).chat([ask()]))


def test_it_works_inside_a_running_event_loop_as_in_a_notebook() -> None:
    import asyncio

    with FakeServer() as server:
        [(_, reply)] = asyncio.run(_inside_a_loop(server))
    assert isinstance(reply, Reply)
