import pytest
import yaml

from reports.claims import statement
from reports.model_card import CardError, Results, updated_card
from results.queries import DifferenceRow, LeaderboardRow

SCORE = LeaderboardRow("5f", "sce", "merge", "mt_bench", "1", "g", "gpt-4", None, "average", 8.1, 7.9, 8.3, 80, 0, ())
LOST = LeaderboardRow("5f", "sce", "merge", "mt_bench", "1", "g", "gpt-4", None, "turn_2", None, None, None, 0, 80, ())
SAID = DifferenceRow("sce", "base", "mt_bench", "1", "gpt-4", None, "average", 0.4, 0.1, 0.7, 0.004, 80, 0)
RESULTS = Results("sce", [SCORE, LOST], [statement(SAID)], "1.2.3")
CARD = """---
license: apache-2.0
model-index:
- name: sce
  results:
  - task: {type: text-generation}
    dataset: {name: GSM8K, type: gsm8k}
    metrics: [{type: accuracy, value: 70.1}]
---
# My model

My own words.

## Licence
"""


def metadata(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_a_new_card_has_metadata_that_the_hub_reads_and_a_table():
    card = updated_card("", RESULTS)
    [entry] = metadata(card)["model-index"]
    [result] = entry["results"]
    [metric] = result["metrics"]  # a missing score is no result
    assert (entry["name"], result["dataset"]["type"], metric["type"], metric["value"]) == (
        "sce", "mt_bench", "average", 8.1
    )  # fmt: skip
    assert metric["args"] == {"judge": "gpt-4", "interval_95": [7.9, 8.3], "n": 80, "missing": 0}
    assert "| sce | mt_bench 1 | gpt-4 | turn_2 | missing |" in card
    assert "- sce beats base on mt_bench average by 0.40 \\[0.10, 0.70\\] points" in card


def test_what_stands_in_a_card_stays():
    card = updated_card(CARD, RESULTS)
    assert metadata(card)["license"] == "apache-2.0"
    assert [r["dataset"]["type"] for r in metadata(card)["model-index"][0]["results"]] == ["gsm8k", "mt_bench"]
    assert card.split("---\n")[2].startswith("# My model\n\nMy own words.\n\n## Licence\n")


def test_a_second_update_replaces_the_first_and_leaves_other_benchmarks_alone():
    first = updated_card(CARD, RESULTS)
    assert updated_card(first, RESULTS) == first
    other = LeaderboardRow(
        "5f", "sce", "merge", "arena_hard", "v0.1", "g", "j", "o1", "win_rate", 40, 30, 50, 500, 0, ()
    )
    both = updated_card(first, Results("sce", [other], [], "1.2.3"))
    assert [r["dataset"]["type"] for r in metadata(both)["model-index"][0]["results"]] == [
        "gsm8k", "mt_bench", "arena_hard"
    ]  # fmt: skip
    assert (both.count("## Evaluation"), both.count("<!-- fuseval: ")) == (1, 2)
    assert "sce beats base on mt_bench" in both


def test_models_of_other_names_in_the_index_stay():
    two = CARD.replace("- name: sce", "- name: other\n  results: []\n- name: sce")
    names = [entry["name"] for entry in metadata(updated_card(two, RESULTS))["model-index"]]
    assert names == ["other", "sce"]


def test_a_card_without_metadata_gets_some():
    card = updated_card("# Only words\n", RESULTS)
    assert metadata(card)["model-index"]
    assert "# Only words" in card


@pytest.mark.parametrize("broken", ["---\na: [\n---\nx", "---\n- a\n---\nx", "---\nmodel-index: 3\n---\nx"])
def test_a_card_that_cannot_be_read_is_refused(broken):
    with pytest.raises(CardError, match="mend"):
        updated_card(broken, RESULTS)
