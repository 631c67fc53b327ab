"""Prices: which of the endpoint's own, the user's and the table's holds, and for whom none is known."""

from __future__ import annotations

import datetime
import re

import pytest

from evals.prices import Price
from fuseval.config import ConfigError, read_mapping
from fuseval.prices import OPENAI, TABLE, find_price, unpriced

ANTHROPIC = "https://api.anthropic.com/v1/"
MINE = """
mine:
  hosts: [judge.example.org]
  models:
    gpt-4o: {input: 1, output: 2, as_of: 2026-11-01, source: the contract}
anywhere:
  models:
    my-judge: {input: 0, output: 0.5}
"""


@pytest.fixture
def mine(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(MINE)
    return file


@pytest.mark.parametrize(
    "judge",
    ["gpt-4-1106-preview", "gpt-4-0125-preview", "gpt-4", "gpt-4-turbo", "gpt-4o", "gpt-4o-mini", "gpt-4.1",
     "gpt-4.1-mini", "gpt-4.1-nano", "gpt-3.5-turbo", "o3-mini", "o4-mini", "gpt-5-mini"],
)  # fmt: skip
def test_the_judges_of_the_field_have_prices_at_openai(judge):
    found = find_price(judge, base_url=None)
    assert found is not None and found == find_price(judge, base_url=OPENAI)
    assert found.source == "OpenAI's price list"


def test_every_price_of_the_table_is_dated_and_plausible():
    found = 0
    for section in read_mapping(TABLE, "file of prices").values():
        for model, given in section["models"].items():
            price = find_price(model, base_url=f"https://{section['hosts'][0]}/v1")
            assert isinstance(given["as_of"], datetime.date) and price.as_of == given["as_of"].isoformat(), model
            assert 0.01 <= price.input < price.output <= 150, model
            assert price.cached_input is None or price.cached_input < price.input, model
            found += 1
    assert found > 50


def test_a_dated_name_has_the_price_of_the_name_before_its_date_unless_it_has_its_own():
    assert find_price("gpt-4o-2024-08-06", base_url=None) == find_price("gpt-4o", base_url=None)
    assert find_price("gpt-4o-2024-05-13", base_url=None).input == 5
    assert find_price("gpt-4-0613", base_url=None) == find_price("gpt-4", base_url=None)
    assert find_price("claude-sonnet-4-5-20250929", base_url=ANTHROPIC).output == 15
    assert find_price("claude-3-5-haiku-latest", base_url=ANTHROPIC).output == 4


@pytest.mark.parametrize("model", ["gpt-4o-audio-preview", "o3-pro", "gpt-5.4-pro", "gpt-4o-mini-search", "ft:gpt-4o"])
def test_a_longer_name_that_is_no_date_is_another_model(model):
    assert find_price(model, base_url=None) is None


@pytest.mark.parametrize("base_url", ["http://localhost:8000/v1", "https://openrouter.example/api/v1", ANTHROPIC])
def test_a_vendors_price_holds_at_its_own_base_url_alone(base_url):
    assert find_price("gpt-4o", base_url=base_url) is None


def test_the_endpoints_own_price_goes_before_the_users_file_and_that_before_the_table(mine):
    place = {"base_url": "https://judge.example.org/v1", "file": mine}
    assert find_price("gpt-4o", **place) == Price(1.0, 2.0, as_of="2026-11-01", source="the contract")
    own = {"input": 7, "output": 9.5, "cached_input": None}
    assert find_price("gpt-4o", **place, own=own) == Price(7.0, 9.5, source="the experiment")
    assert find_price("gpt-4o", base_url=None, file=mine) == find_price("gpt-4o", base_url=None)


def test_a_section_without_hosts_holds_everywhere(mine):
    for base_url in (None, "http://localhost:8000/v1"):
        assert find_price("my-judge", base_url=base_url, file=mine) == Price(0.0, 0.5, source="mine.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {models: {m: {input: 1}}}", "'output' is missing: a price needs input and output (a.models.m in mine."),
        ("a: {models: {m: {input: -1, output: 1}}}", "input is a number from 0 on, in US dollars per million tokens, "),
        ("a: {models: {m: {input: $1, output: 1}}}", "not '$1' (a.models.m in mine.yaml)"),
        ("a: {models: {m: {input: .nan, output: 1}}}", "not nan"),
        ("a: {models: {m: {input: 1, outptu: 1}}}", "there is no 'outptu' here"),
        ("a: {models: {m: {input: 1, outptu: 1}}}", "Did you mean 'output'? (a.models.m in mine.yaml)"),
        ("a: {models: {m: 3}}", "a price is a mapping like {input: 2.5, output: 10}, not 3"),
        ("a: {host: [x], models: {}}", "Did you mean 'hosts'? (a in mine.yaml)"),
        ("a: {hosts: x, models: {}}", "hosts is a list of host names, like [api.example.com], not 'x' (a in mine"),
        ("gpt-4o: {input: 1, output: 2}", "a section of prices is a mapping with models"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_of_prices_names_the_value_the_place_and_what_is_right(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        find_price("m", base_url=None, file=file)


def test_a_file_of_prices_that_is_not_there_is_a_mistake(tmp_path):
    with pytest.raises(ConfigError, match="there is no file of prices"):
        find_price("gpt-4o", base_url=None, file=tmp_path / "none.yaml")


def test_a_mistake_in_an_endpoints_own_price_says_so():
    with pytest.raises(ConfigError, match=r"'input' is missing.*\(price of the endpoint\)"):
        find_price("gpt-4o", base_url=None, own={"output": 1})


def test_what_a_budget_needs_of_an_unknown_model_is_said_with_what_to_write():
    said = unpriced("judge", model="llama", base_url="http://localhost:8000/v1")
    assert said.startswith("model 'judge' needs a price for the budget: none is known of 'llama' at http://localhost")
    assert "price: {input: ..., output: ...}" in said
