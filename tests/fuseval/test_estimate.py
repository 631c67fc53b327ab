"""Estimates: what a dry run says of requests, from the tokenizer and the stored replies that are at hand."""

from __future__ import annotations

import threading
import tracemalloc

import pytest

from evals.chat import ChatRequest
from evals.prices import Price
from evals.records import Message, Sampling
from fuseval.estimate import COUNTED, Tokens, Usual, described, estimate, timed, tokenizer_for, total

WORDS = Tokens(lambda text: len(text.split()), about=False)
PRICE = Price(10.0, 30.0)


def request(text="one two three", max_tokens=100):
    return ChatRequest((Message("system", "be fair"), Message("user", text)), Sampling(max_tokens=max_tokens))


def test_prompts_are_counted_with_what_a_chat_puts_around_them():
    found = estimate([request(), request("four five")], tokens=WORDS)
    assert (found.requests, found.prompt_tokens, found.about) == (2, (5 + 4) + 2 * (2 * 4 + 3), False)


def test_without_stored_replies_only_the_bound_of_the_output_is_known():
    found = estimate([request(max_tokens=100), request(max_tokens=1)], tokens=WORDS, price=PRICE)
    assert (found.output_tokens, found.most_output_tokens, found.seconds) == (None, 101, None)
    assert found.dollars == pytest.approx((32 * 10e-6, 32 * 10e-6 + 101 * 30e-6))


def test_stored_replies_tell_what_to_expect():
    found = estimate([request(), request()], tokens=WORDS, price=PRICE, usual=Usual(20, 10.0, 2.0))
    assert (found.output_tokens, found.most_output_tokens) == (20, 200)
    assert found.dollars == pytest.approx((32 * 10e-6 + 20 * 30e-6, 32 * 10e-6 + 200 * 30e-6))


def test_longer_replies_than_are_allowed_are_not_expected():
    assert estimate([request(max_tokens=100)], tokens=WORDS, usual=Usual(20, 500.0, 2.0)).output_tokens == 100


def test_another_limit_of_tokens_in_the_endpoints_fields_is_the_bound():
    fields = {"max_tokens": None, "max_completion_tokens": 4000}
    assert estimate([request()], tokens=WORDS, extra_body=fields).most_output_tokens == 4000


def test_a_batch_costs_half():
    full, half = (estimate([request()], tokens=WORDS, price=PRICE, batch=batch).dollars for batch in (False, True))
    assert half == pytest.approx([end / 2 for end in full])


def test_the_time_is_that_of_the_concurrency_or_of_the_limits_of_a_minute():
    found = estimate([request(max_tokens=10)] * 100, tokens=WORDS)
    assert timed(found, seconds=2.0, concurrency=8).seconds == 26.0
    assert timed(found, seconds=2.0, concurrency=8, requests_per_minute=60).seconds == 100.0
    assert timed(found, seconds=2.0, concurrency=8, tokens_per_minute=1300).seconds == pytest.approx(60 * 2600 / 1300)


def test_a_judge_without_a_price_costs_nobody_knows_what():
    found = estimate([request()], tokens=WORDS)
    assert found.dollars is None and described(found)["US dollars"] == "price not known"


def test_nothing_to_ask_costs_nothing():
    found = timed(estimate([], tokens=WORDS, price=PRICE), seconds=2.0, concurrency=8)
    assert (found.requests, found.prompt_tokens, found.dollars, found.seconds) == (0, 0, (0, 0), 0)


def test_many_prompts_are_read_in_part_and_come_out_near():
    read = []

    def count(text):
        read.append(len(text))
        return len(text.split())

    texts = ["word " * (1 + n % 50) for n in range(20 * COUNTED)]
    found = estimate((request(text) for text in texts), tokens=Tokens(count, about=False))
    exact = sum(2 + len(text.split()) + 11 for text in texts)
    assert found.prompt_tokens == pytest.approx(exact, rel=0.01)
    assert len(read) < 0.25 * 2 * len(texts)
    assert found.about


def test_requests_are_gone_through_without_being_kept():
    tracemalloc.start()
    estimate((request("word " * 2000) for _ in range(3000)), tokens=Tokens(len, about=True))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_several_estimates_are_one_that_knows_no_more_than_each():
    expected = estimate([request()], tokens=WORDS, price=PRICE, usual=Usual(20, 10.0, 2.0))
    known = timed(expected, seconds=1.0, concurrency=1)
    both = total([known, known])
    assert (both.requests, both.output_tokens, both.seconds) == (2, 20, 2.0)
    assert both.dollars == tuple(2 * end for end in known.dollars)
    less = total([known, estimate([request()], tokens=WORDS)])
    assert (less.output_tokens, less.dollars, less.seconds) == (None, None, None)


def test_the_figures_are_shown_with_how_sure_they_are():
    about = Tokens(lambda text: 1_000_000, about=True)
    found = timed(estimate([request(max_tokens=2000)], tokens=about, price=PRICE), seconds=7200, concurrency=4)
    assert described(found) == {
        "requests": "1",
        "prompt tokens": "about 2,000,000",
        "output tokens": "at most 2,000",
        "US dollars": "about 20.00–20.06",
        "time": "about 2.0 h",
    }


@pytest.mark.slow
def test_a_folder_of_a_tokenizer_counts_exactly(smollm2):
    tokens = tokenizer_for("smollm2", folder=smollm2)
    assert not tokens.about
    assert tokens.count("The capital of France is Paris.") == 7
    assert tokens.count("<|im_start|>") == 1 and tokens.count("") == 0


def test_openais_names_are_counted_by_their_encoding_where_it_can_be_had():
    pytest.importorskip("tiktoken", reason="needs tiktoken: pip install tiktoken")
    tokens = tokenizer_for("gpt-4o-2024-08-06", encoding=lambda name: lambda text: len(name))
    assert (tokens.count("anything"), tokens.about) == (len("o200k_base"), False)


def test_an_encoding_that_cannot_be_fetched_leaves_a_count_about():
    def offline(name):
        raise OSError("no network")

    tokens = tokenizer_for("gpt-4o", encoding=offline)
    assert tokens.about and tokens.count("x" * 40) == 10 and tokens.count("ü") == 1


def test_an_encoding_that_never_comes_is_not_waited_for():
    never = threading.Event()
    assert tokenizer_for("gpt-4o", encoding=lambda name: never.wait(), patience=0.05).about
    never.set()


@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "some-model"])
def test_names_that_nobody_knows_are_counted_about(model, tmp_path):
    assert tokenizer_for(model).about
    assert tokenizer_for(model, folder=tmp_path / "none").about
