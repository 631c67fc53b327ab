"""Budgets: whatever a model does, spending stays within the limit, and every reply paid for is yielded."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest

from evals.budget import Budget, BudgetReached, Metered, most_output, usd
from evals.chat import ChatError, ChatRequest, NoReply, Reply
from evals.prices import Price, cost
from evals.records import Message, Sampling

DOLLAR_A_TOKEN = Price(0.0, 1e6)  # of output; input is free


def request(max_tokens=1, text="Which is better?", **fields):
    return ChatRequest((Message("user", text),), Sampling(max_tokens=max_tokens), **fields)


def reply(output=1, prompt=10, **fields):
    return Reply("A", "stop", prompt, output, 0.1, "judge", **fields)


class Engine:
    """Takes all requests at once, as vLLM in process does; answers the last one first."""

    def __init__(self, say=lambda request: reply()):
        self.say, self.rounds = say, []

    def chat(self, requests: Iterable[ChatRequest]) -> Iterator[tuple[int, Reply | NoReply]]:
        asked = list(requests)
        self.rounds.append(len(asked))
        for index in reversed(range(len(asked))):
            yield index, self.say(asked[index])


class Endpoint:
    """Threads that each take a request when they are free, as an endpoint does; replies come in any order."""

    def __init__(self, say, concurrency=8, taken=None):
        self.say, self.concurrency, self.taken = say, concurrency, [] if taken is None else taken

    def chat(self, requests: Iterable[ChatRequest]) -> Iterator[tuple[int, Reply | NoReply]]:
        pending, lock, arrivals = enumerate(requests), threading.Lock(), queue.Queue()

        def work():
            while True:
                with lock:
                    found = next(pending, None)
                if found is None:
                    return arrivals.put(None)
                self.taken.append(found[1])
                arrivals.put((found[0], self.say(found[1])))

        threads = [threading.Thread(target=work) for _ in range(self.concurrency)]
        for thread in threads:
            thread.start()
        running = len(threads)
        while running:
            arrived = arrivals.get()
            if arrived is None:
                running -= 1
            else:
                yield arrived
        for thread in threads:
            thread.join()


def metered(model, limit=None, price=DOLLAR_A_TOKEN, spent=0.0, **fields):
    return Metered(model, price=price, budget=Budget(limit, spent=spent), **fields)


def holds_back(budget):
    """Whether anything is set aside still: then all that was not spent cannot be had."""
    return not budget.reserve(max(0.0, budget.limit - budget.spent - 1e-9))


def ask(model, requests):
    """Return what came, by index, and the BudgetReached that ended it (or None)."""
    found = {}
    try:
        for index, said in model.chat(requests):
            assert index not in found
            found[index] = said
    except BudgetReached as reached:
        return found, reached
    return found, None


def test_without_a_limit_everything_is_asked_at_once_and_only_counted():
    model = Engine()
    counted = metered(model)
    found, reached = ask(counted, [request() for _ in range(5)])
    assert (len(found), reached, model.rounds, counted.budget.spent) == (5, None, [5], 5.0)


def test_what_fits_exactly_is_asked():
    ten_cents = replace(DOLLAR_A_TOKEN, output=1e5)
    found, reached = ask(metered(Engine(), 1.0, price=ten_cents), [request() for _ in range(10)])
    assert (len(found), reached) == (10, None)


def test_the_first_request_that_does_not_fit_ends_it_and_the_message_says_what_to_do():
    found, reached = ask(metered(Engine(), 3.5), [request() for _ in range(5)])
    assert sorted(found) == [0, 1, 2]
    assert (reached.spent, reached.limit, reached.left) == (3.0, 3.5, 2)
    assert str(reached).startswith("the budget is reached: 3.00 USD of 3.50 USD are spent")
    assert "2 requests were not asked" in str(reached) and "raise the budget and run again" in str(reached)


def test_how_many_were_not_asked_is_not_counted_where_requests_are_made_as_they_are_taken():
    made = []

    def requests():
        for n in range(1000):
            made.append(n)
            yield request()

    found, reached = ask(metered(Engine(), 3.5), requests())
    assert (len(found), reached.left, len(made)) == (3, None, 4)
    assert "further requests were not asked" in str(reached)


def test_what_replies_leave_over_of_their_worst_case_lets_more_be_asked_with_the_right_indices():
    model = Engine(lambda asked: reply(output=int(asked.messages[0].content) % 3))
    requests = [request(max_tokens=4, text=str(n)) for n in range(30)]
    found, reached = ask(metered(model, 20.0), requests)
    assert model.rounds[0] == 5 and len(model.rounds) > 1
    assert {index: said.output_tokens for index, said in found.items()} == {n: n % 3 for n in range(len(found))}
    assert sum(said.output_tokens for said in found.values()) == reached.spent
    assert 16 < reached.spent <= 20


def test_a_budget_that_is_spent_asks_nothing_and_does_not_even_start_the_model():
    model = Engine()
    found, reached = ask(metered(model, 5.0, spent=5.0), [request(), request()])
    assert (found, reached.left, model.rounds) == ({}, 2, [])
    assert ask(metered(model, 5.0, spent=5.0), []) == ({}, None)


def test_one_request_that_costs_too_much_stops_those_after_it_too():
    found, reached = ask(metered(Engine(), 10.0), [request(), request(max_tokens=50), request()])
    assert (list(found), reached.left) == ([0], 2)


def test_models_share_a_budget():
    budget = Budget(5.0)
    first, second = (Metered(Engine(), price=DOLLAR_A_TOKEN, budget=budget) for _ in range(2))
    assert len(ask(first, [request()] * 3)[0]) == 3
    found, reached = ask(second, [request()] * 3)
    assert (len(found), reached.left, budget.spent) == (2, 1, 5.0)
    assert not holds_back(budget)


@pytest.mark.parametrize("seed", range(12))
def test_the_limit_holds_whatever_replies_cost_and_however_many_are_in_flight(seed):
    rng = random.Random(seed)
    price = Price(rng.uniform(1, 30), rng.uniform(1, 60), cached_input=0.5)
    attempts = rng.choice((1, 3))
    density = rng.uniform(0.1, 0.95)  # tokens a byte

    def say(asked):
        most, size = asked.sampling.max_tokens, len(asked.messages[0].content.encode())
        prompt = rng.randint(1, 20) + int(size * density * rng.uniform(0.95, 1.05))
        wasted = rng.randint(0, attempts - 1)
        discarded = wasted * prompt, wasted * rng.randint(0, most)
        if rng.random() < 0.1:
            return NoReply("server", "broke", attempts, discarded)
        return reply(rng.randint(1, most), prompt, cached_tokens=prompt // 2, discarded=discarded)

    requests = [request(rng.randint(1, 2000), "héllo " * rng.randint(1, 2000)) for _ in range(300)]
    model = Endpoint(say, concurrency=rng.choice((1, 4, 16)))
    counted = metered(model, 1.0, price=price, attempts=attempts)
    found, reached = ask(counted, requests)
    assert sum(cost(price, said) for said in found.values()) == pytest.approx(counted.budget.spent)
    assert counted.budget.spent <= 1.0
    assert sorted(found) == list(range(len(found)))
    assert len(model.taken) == len(found)
    assert reached.left == len(requests) - len(found) > 0
    assert counted.budget.spent + counted.worst_case(requests[len(found)]) > 1.0
    assert not holds_back(counted.budget)


def test_prompts_of_a_token_a_byte_stay_within_the_limit_before_anything_was_learnt():
    prompts = [request(text="x" * 2000) for _ in range(40)]
    model = Engine(lambda asked: reply(prompt=2000 + 30))
    found, reached = ask(metered(model, 10.0, price=Price(1e3, 0.0)), prompts)
    assert 0 < len(found) < 5 and reached.spent <= 10.0


def test_once_a_long_prompt_has_told_its_tokens_no_more_is_set_aside_than_that_and_a_margin():
    english = request(text="word " * 800)
    counted = metered(Engine(lambda _: reply(prompt=1000)), 100.0, price=Price(1e3, 0.0))
    before = counted.worst_case(english)
    ask(counted, [english])
    assert before > 4.0 and 1.0 < counted.worst_case(english) < 1.4
    counted.charge(english, reply(prompt=2000))
    assert counted.worst_case(english) >= 1.25 * 2.0


def test_a_short_prompt_teaches_nothing_of_long_ones():
    counted = metered(Engine(lambda _: reply(prompt=12)), 100.0, price=Price(1e3, 0.0))
    before = counted.worst_case(request())
    ask(counted, [request()])
    assert counted.worst_case(request()) == before


def test_what_is_free_is_asked_whatever_was_spent():
    found, reached = ask(metered(Engine(), 1.0, price=Price(0.0, 0.0), spent=7.0), [request()] * 3)
    assert (len(found), reached) == (3, None)


def test_prompts_of_more_tokens_a_byte_than_thought_are_learnt_from():
    counted = metered(Engine(lambda _: reply(prompt=1000)), 10.0, price=Price(1e3, 0.0))
    before = counted.worst_case(request())
    ask(counted, [request()])
    assert counted.worst_case(request()) >= cost(counted.price, reply(prompt=1000)) > before


def test_an_endpoint_that_writes_more_than_it_was_allowed_is_learnt_from():
    counted = metered(Engine(lambda _: reply(output=30)), 100.0)
    ask(counted, [request(max_tokens=10)])
    assert counted.worst_case(request(max_tokens=10)) == 30.0


def test_a_reply_without_usage_is_counted_as_the_worst_case():
    counted = metered(Engine(lambda _: reply(output=0, prompt=0)), 10.0)
    found, reached = ask(counted, [request(max_tokens=4)] * 5)
    assert (len(found), reached.spent) == (2, 8.0)


@pytest.mark.parametrize(
    ("extra", "most"),
    [
        ({}, 100),
        ({"max_tokens": 30}, 30),
        ({"max_tokens": None, "max_completion_tokens": 400}, 400),
        ({"max_completion_tokens": 400}, 400),
        ({"n": 3}, 300),
        ({"max_tokens": None}, None),
    ],
)
def test_the_worst_case_minds_what_the_endpoint_adds_to_requests(extra, most):
    assert most_output(extra, max_tokens=100) == most
    if most:
        assert metered(Engine(), extra_body=extra).worst_case(request(100)) == most


def test_a_budget_is_refused_where_replies_have_no_limit_and_the_message_says_what_to_add():
    with pytest.raises(ValueError, match="add max_completion_tokens to extra_body"):
        metered(Engine(), 10.0, extra_body={"max_tokens": None})
    metered(Engine(), None, extra_body={"max_tokens": None})


@pytest.mark.parametrize("limit", [-1.0, float("nan")])
def test_a_limit_that_is_no_sum_is_refused(limit):
    with pytest.raises(ValueError, match="give a number from 0 on"):
        Budget(limit)


def test_a_model_that_is_lost_gives_back_what_was_reserved_and_keeps_what_was_spent():
    def say(asked):
        if asked.messages[0].content == "break":
            raise ChatError("the engine is gone")
        return reply()

    counted = metered(Engine(say), 100.0)
    with pytest.raises(ChatError, match="engine is gone"):
        ask(counted, [request(), request(text="break"), request()])
    assert counted.budget.spent == 1.0
    assert not holds_back(counted.budget)


def test_a_caller_that_stops_closes_the_model_and_gives_back_what_was_reserved():
    closed = []

    class Closing(Engine):
        def chat(self, requests):
            try:
                yield from super().chat(requests)
            finally:
                closed.append(True)

    counted = metered(Closing(), 100.0)
    replies = counted.chat([request()] * 5)
    next(replies)
    assert not counted.budget.reserve(95.5)  # four of a dollar each are in flight
    replies.close()
    assert (closed, counted.budget.spent) == ([True], 1.0)
    assert not holds_back(counted.budget)


def test_an_error_of_whoever_makes_the_requests_reaches_the_caller():
    def requests():
        yield request()
        raise RuntimeError("no more answers")

    with pytest.raises(RuntimeError, match="no more answers"):
        ask(metered(Engine(), 100.0), requests())


def test_a_batch_reserves_and_spends_at_the_price_of_a_batch():
    counted = metered(Engine(), 2.0, batch=True)
    found, reached = ask(counted, [request()] * 5)
    assert (len(found), reached.spent) == (4, 2.0)


def test_small_sums_are_shown_with_the_digits_that_matter():
    assert [usd(amount) for amount in (0, 12.345, 0.1, 0.00042)] == ["0.00 USD", "12.35 USD", "0.10 USD", "0.00042 USD"]
