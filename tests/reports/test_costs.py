"""Costs are summed up, and a price that nobody knows is never shown as nothing."""

from __future__ import annotations

import pytest

from reports.costs import cost_groups, cost_parts, cost_total, money
from results.audit_queries import CostRow


def cost(dollars, *, asked="gpt", kind="endpoint", stage="judge", benchmark="arena", model="sce", unpriced=0):
    return CostRow(asked, asked, kind, stage, benchmark, model, model, 10, 1, 12, 900, 90, 9, dollars, unpriced)


def test_the_total_is_said_by_stage():
    rows = [cost(1.5), cost(2.25, model="base"), cost(0.25, stage="answer")]
    assert cost_total(rows) == "It cost $4.00 (answers $0.25, judgments $3.75)."


def test_what_has_no_price_is_named():
    assert cost_total([cost(1.0), cost(None, asked="mine", unpriced=10)]) == (
        "It cost $1.00 (judgments $1.00), and 10 requests to mine whose price is not known."
    )
    assert cost_total([cost(None, unpriced=10)]) == "What it cost is not known: there is no price for gpt."


def test_models_on_this_machine_cost_nothing_and_are_not_unknown():
    rows = [cost(None, kind="merge", unpriced=10)]
    assert cost_total(rows) == ""
    assert [group.dollars for group in cost_groups(rows)] == ["runs here"]


def test_groups_are_by_who_was_asked_and_the_dearest_is_first():
    rows = [cost(1.0), cost(2.0, model="base"), cost(9.0, benchmark="mt"), cost(None, asked="mine", unpriced=3)]
    groups = [(g.asked, g.benchmark, g.requests, g.failures, g.replies, g.dollars) for g in cost_groups(rows)]
    assert groups == [
        ("gpt", "mt", 10, 1, 12, "$9.00"),
        ("gpt", "arena", 20, 2, 24, "$3.00"),
        ("mine", "arena", 10, 1, 12, "price not known"),
    ]
    assert [(p.model, p.prompt_tokens, p.output_tokens, p.thinking_tokens) for p in cost_parts(rows)][:2] == [
        ("sce", 900, 90, 9), ("base", 900, 90, 9)
    ]  # fmt: skip


def test_a_part_without_a_price_is_told_beside_the_rest():
    [group] = cost_groups([cost(1.0, unpriced=4)])
    assert group.dollars == "$1.00 and 4 of unknown price"


@pytest.mark.parametrize(
    ("dollars", "text"),
    [
        (0.0, "$0.00"),
        (1234.5, "$1,234.50"),
        (0.5, "$0.50"),
        (0.0123, "$0.012"),
        (0.000034, "$0.000034"),
        (1e-9, "under $0.000001"),
        (None, "price not known"),
    ],
)
def test_small_sums_keep_two_digits(dollars, text):
    assert money(dollars) == text
