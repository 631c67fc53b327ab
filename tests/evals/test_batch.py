"""The Batch API client against a real local HTTP server that misbehaves on request."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from evals.batch import BatchModel, BatchProgress
from evals.batch_rows import read_row
from evals.chat import FAILURES, ChatError, ChatRequest, NoReply, Reply
from evals.endpoint_errors import Trouble
from evals.records import Batch, Message, Sampling
from results.store import Ledger
from tests import fake_batches as fake
from tests.fake_batches import FakeBatches, Trip

KEY = "sk-very-secret-0123456789"


class Memory:
    """What a ledger does with batches."""

    def __init__(self) -> None:
        self.batches: dict[str, Batch] = {}
        self.states: list[str] = []

    def known(self) -> list[Batch]:
        return list(self.batches.values())

    def remember(self, batch: Batch) -> None:
        self.batches[batch.id] = batch
        self.states.append(batch.state)

    @property
    def state(self) -> dict[str, str]:
        return {batch.id: batch.state for batch in self.batches.values()}


def model(server: FakeBatches, memory: Memory | None = None, **changes: Any) -> BatchModel:
    memory = memory or Memory()
    plain = {"base_url": server.base_url, "model": "fake-model", "api_key_env": None, "poll": 0.002, "patience": 5.0}
    return BatchModel(**(plain | {"known": memory.known, "remember": memory.remember} | changes))


def ask(text: str = "hello", **changes: Any) -> ChatRequest:
    sampling = changes.pop("sampling", Sampling(max_tokens=64, seed=7))
    return ChatRequest(messages=(Message("user", text),), sampling=sampling, **changes)


def asks(n: int) -> list[ChatRequest]:
    return [ask(f"q{i}") for i in range(n)]


def texts(model: BatchModel, requests: list[ChatRequest]) -> dict[int, str]:
    """Each request's reply, or the kind of its failure in brackets."""
    arrived = list(model.chat(iter(requests)))
    assert len({index for index, _ in arrived}) == len(arrived)
    return {i: each.text if isinstance(each, Reply) else f"[{each.kind}]" for i, each in sorted(arrived)}


def echo(n: int) -> dict[str, fake.Behaviour]:
    return {f"q{i}": fake.says(f"a{i}") for i in range(n)}


# One batch, from end to end


def test_requests_go_up_as_rows_and_replies_come_back_to_their_indices() -> None:
    memory = Memory()
    with FakeBatches(rows=echo(3), looks=3) as server:
        arrived = dict(model(server, memory, extra_body={"user": "me"}).chat(asks(3)))
        rows = server.rows_of(server.batches[0])
    assert {i: reply.text for i, reply in arrived.items() if isinstance(reply, Reply)} == {0: "a0", 1: "a1", 2: "a2"}
    assert rows[0]["method"] == "POST" and rows[0]["url"] == "/v1/chat/completions"
    assert rows[0]["body"] == {
        **{"model": "fake-model", "messages": [{"role": "user", "content": "q0"}], "user": "me"},
        **{"temperature": 0.0, "top_p": 1.0, "max_tokens": 64, "seed": 7},
    }
    reply = arrived[1]
    assert isinstance(reply, Reply)
    assert (reply.prompt_tokens, reply.output_tokens, reply.served_model) == (1, 1, "fake-model")
    assert memory.states == ["submitted", "collected"]


def test_nothing_to_ask_needs_neither_key_nor_server() -> None:
    lonely = BatchModel(
        base_url=None, model="m", api_key_env="NO_SUCH_KEY", known=Memory().known, remember=Memory().remember
    )
    assert list(lonely.chat([])) == []
    with pytest.raises(ChatError, match=r"NO_SUCH_KEY .* is not set"):
        list(lonely.chat([ask()]))


def test_equal_requests_are_sent_once_and_other_draws_of_a_question_are_not_equal() -> None:
    again = ask("q0", sampling=Sampling(max_tokens=64, seed=8))
    with FakeBatches(rows=echo(2)) as server:
        got = texts(model(server, extra_body={"seed": None}), [ask("q0"), ask("q1"), ask("q0"), again])
    assert got == {0: "a0", 1: "a1", 2: "a0", 3: "a0"}
    assert sorted(server.paid.values()) == [1, 1, 1]


def test_a_reply_may_hold_any_character_even_ends_of_lines_that_json_lets_stand() -> None:
    text = "a\u2028b\u0085c\r\nd é 漢 😀"
    with FakeBatches(rows={"q0": fake.says(text)}) as server:
        assert texts(model(server), asks(1)) == {0: text}


def test_requests_may_hold_lone_surrogates() -> None:
    with FakeBatches() as server:
        assert texts(model(server), [ask("a\ud800b")])[0].startswith("reply")


def test_batches_are_cut_by_number_and_by_bytes() -> None:
    with FakeBatches() as server:
        assert len(texts(model(server, max_requests=2), asks(5))) == 5
        assert [len(server.rows_of(batch)) for batch in server.batches] == [2, 2, 1]
    with FakeBatches() as server:
        assert len(texts(model(server, max_bytes=600), asks(5))) == 5
        sizes = [len(server.files[batch["input_file_id"]]) for batch in server.batches]
    assert len(sizes) == 3 and max(sizes) <= 600


def test_requests_are_taken_one_at_a_time_and_a_full_batch_is_under_way_before_the_next_is_taken() -> None:
    memory, seen = Memory(), []

    def lazily() -> Any:
        for i in range(6):
            seen.append(len(memory.batches))
            yield ask(f"q{i}")

    with FakeBatches() as server:
        assert len(list(model(server, memory, max_requests=2).chat(lazily()))) == 6
    assert seen == [0, 0, 0, 1, 1, 2]


def test_watching_tells_how_a_batch_stands() -> None:
    seen: list[BatchProgress] = []
    with FakeBatches(looks=3, rows={"q1": fake.error(500, "oh")}) as server:
        texts(model(server, watch=seen.append), asks(3))
    assert [each.state for each in seen] == ["in_progress", "in_progress", "completed"]
    assert (seen[-1].completed, seen[-1].failed, seen[-1].total) == (2, 1, 3)


# Across processes


def test_what_stands_in_an_open_batch_is_collected_by_the_next_process_and_not_paid_again() -> None:
    memory = Memory()
    with FakeBatches(looks=5, rows=echo(4)) as server:
        first = model(server, memory, watch=interrupt(after=2))
        with pytest.raises(KeyboardInterrupt):
            list(first.chat(asks(3)))
        assert memory.state == {"batch_0": "submitted"}
        assert texts(model(server, memory), asks(4)) == {0: "a0", 1: "a1", 2: "a2", 3: "a3"}
        assert [len(server.rows_of(batch)) for batch in server.batches] == [3, 1]
    assert memory.state == {"batch_0": "collected", "batch_1": "collected"}
    assert set(server.paid.values()) == {1}


def test_closing_early_leaves_the_batch_open() -> None:
    memory = Memory()
    with FakeBatches() as server:
        replies = model(server, memory).chat(asks(3))
        next(replies)
        replies.close()
        assert memory.state == {"batch_0": "submitted"}
        assert len(texts(model(server, memory), asks(3))) == 3
    assert memory.state == {"batch_0": "collected"}
    assert server.calls["create"] == 1


def test_results_that_nobody_waits_for_now_stay_until_they_are_asked_for() -> None:
    memory = Memory()
    with FakeBatches(rows=echo(3)) as server:
        model(server, memory).chat(asks(3)).close()  # not begun: nothing is sent
        assert server.calls["create"] == 0
        with pytest.raises(KeyboardInterrupt):
            list(model(server, memory, watch=interrupt(after=0)).chat(asks(3)))
        assert texts(model(server, memory), [ask("q1")]) == {0: "a1"}
        assert memory.state == {"batch_0": "submitted"} and len(memory.batches["batch_0"].requests) == 2
        assert texts(model(server, memory), [ask("other"), ask("q2"), ask("q0")])[1] == "a2"
        assert [len(server.rows_of(batch)) for batch in server.batches] == [3, 1]
    assert memory.state == {"batch_0": "collected", "batch_1": "collected"}


def test_a_batch_that_was_made_but_not_remembered_is_found_at_the_endpoint() -> None:
    forgetful, memory = Memory(), Memory()

    def killed(_: Batch) -> None:
        raise KeyboardInterrupt

    with FakeBatches(rows=echo(3)) as server:
        with pytest.raises(KeyboardInterrupt):
            list(model(server, forgetful, remember=killed).chat(asks(3)))
        assert texts(model(server, memory), asks(3)) == {0: "a0", 1: "a1", 2: "a2"}
        assert memory.state == {"batch_0": "collected"}
        assert texts(model(server, memory), asks(3))[0] == "a0"  # asked for anew, as after a collected batch
    assert [server.calls["create"], *server.paid.values()] == [2, 2, 2, 2]


def test_batches_of_others_are_left_alone() -> None:
    with FakeBatches(rows=echo(2)) as server:
        for changes in ({"owner": "theirs"}, {"owner": "ours", "model": "another"}):
            with pytest.raises(KeyboardInterrupt):
                list(model(server, watch=interrupt(after=0), **changes).chat(asks(2)))
        server.batches.append(server.batches[0] | {"id": "batch_x", "metadata": None, "input_file_id": "gone"})
        memory = Memory()
        assert len(texts(model(server, memory, owner="ours"), asks(2))) == 2
        assert list(memory.batches) == ["batch_3"]


def test_all_pages_of_the_endpoints_list_are_searched() -> None:
    with FakeBatches(rows=echo(1)) as server:
        with pytest.raises(KeyboardInterrupt):
            list(model(server, watch=interrupt(after=0)).chat(asks(1)))
        server.batches += [server.batches[0] | {"id": f"batch_{n}", "metadata": {}} for n in range(1, 250)]
        memory = Memory()
        assert texts(model(server, memory), asks(1)) == {0: "a0"}
    assert (list(memory.batches), server.calls["list"], server.calls["create"]) == (["batch_0"], 4, 1)


@pytest.mark.slow
def test_killed_and_resumed_nothing_is_paid_twice(tmp_path: pathlib.Path) -> None:
    port, log, ledger = tmp_path / "port", tmp_path / "log", tmp_path / "ledger.duckdb"
    command = [sys.executable, fake.__file__, "--port-file", str(port), "--looks", "40", "--log", str(log)]
    server = subprocess.Popen(command)
    try:
        wait_for(port.exists)
        run = [sys.executable, __file__, f"http://127.0.0.1:{port.read_text()}/v1", str(ledger)]
        env = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
        client = subprocess.Popen(run, env=env)
        wait_for(lambda: ledger.with_suffix(".sent").exists() or client.poll() is not None)
        os.kill(client.pid, signal.SIGKILL)
        client.wait()
        assert not log.exists()
        done = subprocess.run(run, env=env, capture_output=True, text=True, check=True)
    finally:
        server.terminate()
        server.wait()
    assert done.stdout.split() == ["20", "replies", "collected"]
    rows = [json.loads(line)["custom_id"] for line in log.read_text().splitlines()]
    assert len(rows) == len(set(rows)) == 20


# Rows that fail


def test_rows_of_an_expired_batch_that_had_no_turn_are_expired_and_the_rest_is_there() -> None:
    memory = Memory()
    rows = {"q1": fake.undone(), "q2": fake.undone("batch_cancelled"), "q3": fake.vanishes()}
    with FakeBatches(ends="expired", rows=echo(1) | rows) as server:
        assert texts(model(server, memory), asks(4)) == {0: "a0", 1: "[expired]", 2: "[expired]", 3: "[expired]"}
        assert memory.state == {"batch_0": "collected"}
        server.ends = "completed"
        server.rows = echo(4)
        assert texts(model(server, memory), asks(4)[1:]) == {0: "a1", 1: "a2", 2: "a3"}
    assert FAILURES["expired"]


def test_a_batch_that_brought_nothing_says_how_it_ended() -> None:
    memory = Memory()
    with FakeBatches(ends="cancelled", rows={"q0": fake.vanishes()}) as server:
        assert texts(model(server, memory), asks(1)) == {0: "[expired]"}
    assert memory.state == {"batch_0": "cancelled"}


def test_failures_of_rows_are_typed_as_an_endpoints_are() -> None:
    rows = {
        "context_length": fake.error(400, "maximum context length is 8192 tokens", code="context_length_exceeded"),
        "content_filter": fake.error(400, "filtered", code="content_filter"),
        "rate_limit": fake.error(429, "Rate limit reached"),
        "server": fake.error(500, "internal error"),
        "bad_request": fake.error(400, "temperature is 3"),
        "bad_reply": fake.vanishes(),
        "bad_reply too": fake.malformed(),
        "server too": fake.undone("oops"),
        "truncated": fake.says(None, finish="length"),
    }
    with FakeBatches(rows=echo(1) | rows) as server:
        got = dict(model(server).chat([ask("q0"), *map(ask, rows)]))
    kinds = [each.kind for _, each in sorted(got.items()) if isinstance(each, NoReply)]
    assert kinds == [kind.removesuffix(" too") for kind in rows]
    cut = got[len(rows)]
    assert isinstance(cut, NoReply)
    assert (cut.attempts, cut.discarded) == (1, (1, 0))  # paid for all the same


def test_a_failed_row_names_the_field_to_leave_out() -> None:
    with FakeBatches(rows={"q0": fake.error(400, "Unknown parameter: 'seed'.")}) as server:
        [(_, outcome)] = model(server).chat(asks(1))
    assert isinstance(outcome, NoReply)
    assert "{seed: null}" in outcome.message


def test_failed_rows_are_asked_again_even_when_their_batch_was_left_open() -> None:
    memory = Memory()
    with FakeBatches(rows=echo(3) | {"q1": fake.undone()}) as server:
        with pytest.raises(KeyboardInterrupt):
            list(model(server, memory, max_requests=2, watch=interrupt(after=1)).chat(asks(3)))
        assert [memory.state["batch_0"], len(memory.batches["batch_0"].requests)] == ["submitted", 1]
        server.rows = echo(3)
        assert texts(model(server, memory), asks(3)) == {0: "a0", 1: "a1", 2: "a2"}
    assert set(server.paid.values()) == {1}


def test_rows_that_no_request_can_survive_end_it_after_what_else_came() -> None:
    memory, came = Memory(), []
    rows = echo(2) | {"q1": fake.error(404, "The model `fake-model` does not exist.", code="model_not_found")}
    with FakeBatches(rows=rows) as server:
        with pytest.raises(ChatError, match="no model 'fake-model'"):
            came += model(server, memory).chat(asks(2))
        replies = model(server, memory)
        server.rows = echo(2)
        assert texts(replies, asks(2)) == {0: "a0", 1: "a1"}
    assert memory.state == {"batch_0": "collected", "batch_1": "collected"}


def test_output_that_the_endpoint_threw_away_is_asked_for_again_another_time() -> None:
    memory = Memory()
    with FakeBatches() as server:
        with pytest.raises(KeyboardInterrupt):
            list(model(server, memory, watch=interrupt(after=0)).chat(asks(1)))
        del server.files[server.batches[0]["output_file_id"]]
        assert texts(model(server, memory), asks(1)) == {0: "[bad_reply]"}
        assert texts(model(server, memory), asks(1))[0].startswith("reply")


@pytest.mark.parametrize("line", [b"", b"[]", b"null", b"{}", b"\xff\xfe", b'{"custom_id": '])
def test_a_line_that_is_no_row_is_nobodys(line: bytes) -> None:
    assert read_row(line) is None


@pytest.mark.parametrize(
    "rest",
    [{}, {"response": 7}, {"response": {"status_code": "x"}}, {"response": {"status_code": 200}}, {"error": "x"}],
)
def test_a_row_of_a_strange_form_is_a_failure(rest: dict[str, Any]) -> None:
    found = read_row(json.dumps({"custom_id": "a"} | rest).encode())
    assert found is not None and found[0] == "a" and isinstance(found[1], Trouble)


# Batches that fail


def test_a_refused_batch_ends_it_with_the_endpoints_words() -> None:
    memory = Memory()
    said = [{"code": "invalid_json_line", "message": "This line is not a request.", "line": 2, "param": None}]
    with FakeBatches(refuse=lambda n, _: said if n == 1 else []) as server:
        with pytest.raises(ChatError, match=r"refused batch batch_1 of 1 requests.*not a request\. \(line 2\)"):
            list(model(server, memory, max_requests=2).chat(asks(3)))
        assert memory.state == {"batch_0": "collected", "batch_1": "failed"}
        assert len(texts(model(server, memory), asks(3)[2:])) == 1


def test_batches_that_find_the_queue_full_wait_for_the_others() -> None:
    memory = Memory()
    with FakeBatches(room=3, rows=echo(8), looks=2) as server:
        assert texts(model(server, memory, max_requests=3), asks(8)) == {i: f"a{i}" for i in range(8)}
    assert set(server.paid.values()) == {1}
    assert set(memory.states) == {"submitted", "failed", "collected"}


def test_a_batch_that_is_larger_than_the_queue_is_halved() -> None:
    with FakeBatches(room=3, rows=echo(10), looks=2) as server:
        assert texts(model(server), asks(10)) == {i: f"a{i}" for i in range(10)}
    assert set(server.paid.values()) == {1}


def test_a_queue_without_room_for_one_request_is_an_error() -> None:
    with FakeBatches(room=0) as server, pytest.raises(ChatError, match="Enqueued token limit"):
        list(model(server).chat(asks(3)))


def test_a_batch_of_another_key_is_not_paid_again_without_being_told() -> None:
    memory = Memory()
    with FakeBatches() as server:
        with pytest.raises(KeyboardInterrupt):
            list(model(server, memory, watch=interrupt(after=0)).chat(asks(1)))
        server.batches.clear()
        with pytest.raises(ChatError, match=r"batch_0 of 1 requests .* 'lost'"):
            list(model(server, memory).chat(asks(1)))


# The network and the endpoint


@pytest.mark.parametrize("status", [None, 429, 503])
@pytest.mark.parametrize("done", [False, True])
def test_every_call_is_made_again_and_no_batch_twice(status: int | None, done: bool) -> None:
    calls = ("upload", "create", "retrieve", "content", "list")
    trips = [Trip(operation, status=status, done=done, times=2) for operation in calls]
    with FakeBatches(rows=echo(2), trips=trips) as server:
        assert texts(model(server), asks(2)) == {0: "a0", 1: "a1"}
    assert (len(server.batches), set(server.paid.values())) == (1, {1})
    assert not any(trip.times for trip in trips if trip.operation != "create" or not done)


def test_a_download_that_breaks_off_is_begun_again() -> None:
    with FakeBatches(rows=echo(50), trips=[Trip("content", cut=True, times=2)]) as server:
        assert len(texts(model(server), asks(50))) == 50


def test_an_endpoint_that_lists_no_batches_is_no_obstacle() -> None:
    with FakeBatches(trips=[Trip("list", status=404, times=9), Trip("create")]) as server:
        assert len(texts(model(server), asks(2))) == 2


def test_an_endpoint_without_a_batch_api_says_so() -> None:
    trips = [Trip("list", status=404), Trip("upload", status=404)]
    with FakeBatches(trips=trips) as server, pytest.raises(ChatError, match="no Batch API at http://127"):
        list(model(server).chat(asks(1)))


def test_nobody_listening_is_an_error_soon() -> None:
    with FakeBatches() as server:
        base_url = server.base_url
    with pytest.raises(ChatError, match=r"attempt 5.*run again"):
        list(model(server, base_url=base_url, patience=1e6).chat(asks(1)))


def test_an_endpoint_that_stays_away_ends_it_and_the_batch_goes_on() -> None:
    memory = Memory()
    with FakeBatches(looks=3, rows=echo(1), trips=[Trip("retrieve", times=1000)]) as server:
        with pytest.raises(ChatError, match="goes on at the endpoint"):
            list(model(server, memory, patience=0.01).chat(asks(1)))
        server.trips.clear()
        assert memory.state == {"batch_0": "submitted"}
        assert texts(model(server, memory), asks(1)) == {0: "a0"}


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with FakeBatches(key=KEY) as server:
        assert len(texts(model(server, api_key_env="JUDGE_KEY"), asks(1))) == 1
        monkeypatch.setenv("JUDGE_KEY", f"{KEY}-wrong")
        with pytest.raises(ChatError, match="JUDGE_KEY") as caught:
            list(model(server, api_key_env="JUDGE_KEY").chat(asks(1)))
        assert KEY not in str(caught.value) and caught.value.__cause__ is None
    with FakeBatches(trips=[Trip("upload", status=500, times=1000)]) as server:
        with pytest.raises(ChatError) as caught:
            list(model(server, api_key_env="JUDGE_KEY", patience=0.01).chat(asks(1)))
        assert KEY not in str(caught.value)


def test_a_place_holds_no_password() -> None:
    at = BatchModel(
        base_url="http://me:pass@host/v1/?key=secret", model="m", api_key_env=None, known=list, remember=lambda _: None
    )
    assert at.place == "http://host/v1"
    with pytest.raises(ChatError, match="no URL"):
        BatchModel(base_url="host/v1", model="m", api_key_env=None, known=list, remember=lambda _: None)


def test_a_page_that_is_not_json_is_no_batch_api() -> None:
    with FakeBatches() as server:
        server.server.RequestHandlerClass.send = lambda self, status, body: html(self)  # type: ignore[attr-defined]
        with pytest.raises(ChatError, match="attempt 5"):
            list(model(server, patience=1e6).chat(asks(1)))


def html(handler: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.send_header("Content-Length", "6")
    handler.end_headers()
    handler.wfile.write(b"<html>")


def interrupt(*, after: int) -> Callable[[BatchProgress], None]:
    """Ctrl-C at a look at a batch."""
    looks = 0

    def watch(_: BatchProgress) -> None:
        nonlocal looks
        looks += 1
        if looks > after:
            raise KeyboardInterrupt

    return watch


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def main(base_url: str, path: pathlib.Path) -> None:
    """Ask 20 requests with a ledger's batches, in a process that may be killed."""
    with Ledger.open(path) as ledger:

        def remember(batch: Batch) -> None:
            ledger.add(batch)
            ledger.flush()
            path.with_suffix(".sent").touch()

        asked = BatchModel(
            base_url=base_url, model="fake-model", api_key_env=None, known=ledger.batches, remember=remember, poll=0.05
        )
        count = sum(isinstance(reply, Reply) for _, reply in asked.chat(asks(20)))
        [batch] = ledger.batches()
        print(count, "replies", batch.state)


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
