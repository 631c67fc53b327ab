from __future__ import annotations

import json
import re

from hypothesis import given, settings

from fusion import preference_records as data
from fusion.preference_pairs import build
from fusion.preference_report import as_markdown, report
from tests.fusion.reward_tables import ALL_SFT, built, inputs, mixed


def test_the_report_counts_by_set_source_and_reason():
    told = report(mixed())
    assert (told["prompts"], told["responses"], told["sft"], told["pairs"]) == (5, 20, 2, 2)
    assert told["sets"]["x"] == {
        "prompts": 4,
        "sft_prompts": 2,
        "sft": 2,
        "preference_prompts": 2,
        "preference_kept": 2,
        "preference": 2,
    }
    assert told["sets"]["y|\n# y"]["preference_kept"] == 0
    assert told["sources"]["b|<b>"] | {"mean_reward": 0} == {
        "responses": 12,
        "mean_reward": 0,
        "sft": 2,
        "sft_share": 1.0,
        "chosen": 2,
        "rejected": 2,
        "source_chosen": 0,
    }
    assert told["set_sources"] == {"x": {"b|<b>": {"sft": 2, "chosen": 2, "rejected": 2, "source_chosen": 0}}}
    assert told["dropped"] == {
        "prompt": {data.NO_RESPONSE: 1},
        "pair": {data.NOT_CHOSEN: 2},
        "response": {data.REPEATED: 4},
    }
    assert sum(told["rewards"]["counts"]["all"]) == 20
    assert (told["rewards"]["edges"][0], told["rewards"]["edges"][-1]) == (0.1, 0.52)
    assert [sum(found) for found in told["gaps"]["counts"].values()] == [2, 2]
    assert told["lengths"]["chosen"] == {"number": 2, "mean": 7.0, "median": 7.0}
    assert told["chosen_longer"] == 0


def test_the_report_of_nothing_and_of_one_reward_can_be_told():
    assert "0 prompts with 0 responses" in as_markdown(report(build([], [])))
    told = report(built({"a": [0.5]}, **ALL_SFT))
    assert told["rewards"]["edges"] == [0.5, 0.5] and told["rewards"]["counts"]["sft"] == [1]


def test_a_histogram_takes_the_largest_numbers():
    told = report(built({"a": [8e306, -8e306]}, **ALL_SFT))
    assert sum(told["rewards"]["counts"]["all"]) == 2
    json.dumps(told, allow_nan=False)


def test_no_name_can_act_as_markdown():
    text = as_markdown(report(mixed()), of="x`\n# y")
    assert len(re.findall(r"^# ", text, re.M)) == 1
    assert r"`y\|\n# y`" in text and r"`b\|<b>`" in text
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.M)
    assert len(blocks) == 7
    for block in blocks:  # a name that ended a cell would make a row longer than its head
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


@given(inputs())
@settings(max_examples=25, deadline=None)
def test_the_counts_of_any_report_add_up(given_):
    made = build(*given_)
    told = report(made)
    json.dumps(told, allow_nan=False)
    as_markdown(told)
    assert sum(row["prompts"] for row in told["sets"].values()) == told["prompts"]
    kept = sum(row["sft"] + row["preference_kept"] for row in told["sets"].values())
    assert kept + sum(told["dropped"]["prompt"].values()) == told["prompts"]
    assert sum(row["responses"] for row in told["sources"].values()) == told["responses"]
    for part, total in (("sft", told["sft"]), ("chosen", told["pairs"] + told["quadruples"])):
        assert sum(row[part] for row in told["sources"].values()) == total
        assert sum(row[part] for found in told["set_sources"].values() for row in found.values()) == total
        assert sum(told["rewards"]["counts"][part]) == total
