"""Prices: every token that an endpoint reports is paid for once, at its own price."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evals.chat import NoReply, Reply
from evals.prices import Price, cost, token_cost

PRICE = Price(2.5, 10.0, cached_input=1.25)
REPLY = Reply("A", "stop", 1_000_000, 200_000, 1.0, "judge")


def test_input_and_output_have_their_own_prices_a_million_tokens():
    assert cost(PRICE, REPLY) == 2.5 + 2.0


def test_prompt_tokens_at_hand_cost_the_cached_price_or_the_full_one_where_there_is_none():
    reply = replace(REPLY, cached_tokens=400_000)
    assert cost(PRICE, reply) == pytest.approx(0.6 * 2.5 + 0.4 * 1.25 + 2.0)
    assert cost(replace(PRICE, cached_input=None), reply) == cost(PRICE, REPLY)


def test_more_cached_tokens_than_there_are_prompt_tokens_give_nothing_back():
    assert cost(PRICE, replace(REPLY, cached_tokens=9_000_000)) == 1.25 + 2.0


def test_replies_that_were_thrown_away_are_paid_for_whether_or_not_one_came():
    wasted = (400_000, 100_000)
    assert cost(PRICE, replace(REPLY, discarded=wasted)) == cost(PRICE, REPLY) + 2.0
    assert cost(PRICE, NoReply("bad_reply", "not JSON", 5, wasted)) == 2.0
    assert cost(PRICE, NoReply("timeout", "no reply", 5)) == 0


def test_of_a_reply_without_usage_nobody_knows_what_it_cost():
    assert cost(PRICE, replace(REPLY, prompt_tokens=0, output_tokens=0, discarded=(400_000, 0))) is None
    assert cost(PRICE, replace(REPLY, prompt_tokens=0)) == 2.0


def test_a_batch_costs_half_of_it_all_or_what_the_price_says():
    reply = replace(REPLY, discarded=(400_000, 100_000))
    assert cost(PRICE, reply, batch=True) == cost(PRICE, reply) / 2
    assert cost(replace(PRICE, batch=0.8), reply, batch=True) == pytest.approx(0.8 * cost(PRICE, reply))


def test_a_reply_costs_what_its_tokens_cost():
    assert cost(PRICE, REPLY) == token_cost(PRICE, REPLY.prompt_tokens, REPLY.output_tokens)
