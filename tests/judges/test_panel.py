"""Panels: their verdicts by hand, their quorum, and their way into the ledger and back."""

import numpy as np
import pandas as pd
import pytest

from evals.benchmark import VERDICT_COLUMNS
from evals.records import Model, Question
from judges.panel import PanelError, make_panel, panel_model, panel_of, panel_verdicts
from judges.trust import audit

ASKED = [Question("b", "1", "q0", "math", ("one",)), Question("b", "1", "q1", "writing", ("two",))]


def said(*rows):
    """Verdicts of rows (judge, question, order, value, baseline)."""
    full = [("m", judge, baseline, q, 1, order, value, True) for judge, q, order, value, baseline in rows]
    return pd.DataFrame(full, columns=list(VERDICT_COLUMNS))


def pair(*values, question="q0", order="model_first"):
    return [(judge, question, order, value, "base") for judge, value in zip("jkl", values, strict=False)]


def value(panel, *rows):
    [found] = panel_verdicts(said(*rows), panel, ASKED)["value"]
    return found


def test_the_mean_is_the_mean():
    assert value(make_panel("p", "jkl"), *pair(1.0, 0.5, 0.3)) == pytest.approx(0.6)


@pytest.mark.parametrize(("values", "expected"), [((0.9, 0.6, 0.0), 1), ((0.1, 0.5, 0.9), 0.5), ((0.4, 0.4, 1), 0)])
def test_the_majority_counts_who_prefers_which(values, expected):
    assert value(make_panel("p", "jkl", how="majority"), *pair(*values)) == expected


def test_the_majority_of_ratings_is_their_median():
    rows = [(judge, "q0", "single", r, None) for judge, r in zip("jkl", (3.0, 9.0, 8.0), strict=True)]
    assert value(make_panel("p", "jkl", how="majority"), *rows) == 8.0


def test_weights_weigh_and_the_rest_carries_on_where_one_is_missing():
    panel = make_panel("p", "jk", how="weighted", weights={"j": 3, "k": 1}, quorum=1)
    assert value(panel, *pair(1.0, 0.0)) == 0.75
    assert value(panel, *pair(None, 0.25)) == 0.25


def test_a_category_is_judged_by_whom_the_panel_names_for_it_and_others_by_all():
    panel = make_panel("p", "jkl", how="by_category", categories={"math": ["k"]})
    assert value(panel, *pair(1.0, 0.25, 1.0)) == 0.25
    assert value(panel, *pair(1.0, 0.25, 1.0, question="q1")) == 0.75
    assert value(panel, *pair(None, 0.25, None)) == 0.25  # nobody else was asked for
    assert np.isnan(value(panel, *pair(1.0, None, 1.0)))


@pytest.mark.parametrize(("quorum", "expected"), [(None, None), (3, None), (2, 0.5), (1, 0.5)])
def test_with_fewer_verdicts_than_the_quorum_there_is_none(quorum, expected):
    found = value(make_panel("p", "jkl", quorum=quorum), *pair(1.0, 0.0, None))
    assert np.isnan(found) if expected is None else found == expected


def test_a_member_that_was_not_asked_is_missing_like_one_that_said_nothing():
    assert np.isnan(value(make_panel("p", "jkl"), *pair(1.0, 0.0)))


def test_orders_questions_and_kinds_are_slots_of_their_own_in_the_order_they_came():
    rows = [*pair(1.0, 0.0, order="baseline_first"), *pair(1.0, 1.0), *pair(0.0, 0.5, question="q1")]
    found = panel_verdicts(
        said(*rows, ("j", "q0", "single", 9.0, None), ("k", "q0", "single", 7.0, None)), make_panel("p", "jk"), ASKED
    )
    assert list(found.columns) == list(VERDICT_COLUMNS)
    assert found["value"].tolist() == [0.5, 1.0, 0.25, 8.0]
    assert found["order"].tolist() == ["baseline_first", "model_first", "model_first", "single"]
    assert found["baseline"].isna().tolist() == [False, False, False, True]
    assert found["judge"].unique().tolist() == [make_panel("p", "jk").id]
    assert found["counts"].all()


def test_categories_of_pandas_give_the_same():
    rows = said(*pair(1.0, 0.0), ("j", "q1", "single", 9.0, None), ("k", "q1", "single", 7.0, None))
    plain = panel_verdicts(rows, make_panel("p", "jk"), ASKED)
    for column in ("model", "judge", "baseline", "question", "order"):
        rows[column] = rows[column].astype("category")
    found = panel_verdicts(rows, make_panel("p", "jk"), ASKED)
    assert found["value"].tolist() == plain["value"].tolist()
    assert found["question"].tolist() == plain["question"].tolist()
    assert found["baseline"].isna().tolist() == [False, True]


@pytest.mark.parametrize("kind", ["category", "object"])
def test_an_audit_takes_a_panels_verdicts_below_its_members(kind):
    rows = said(*pair(1.0, 0.0), *pair(1.0, 1.0, order="baseline_first"), ("j", "q1", "single", 9.0, None))
    for column in ("model", "judge", "baseline", "question", "order"):
        rows[column] = rows[column].astype(kind)
    panel = make_panel("p", "jk", quorum=1)
    every = pd.concat([rows, panel_verdicts(rows, panel, ASKED)], ignore_index=True)
    answers = pd.DataFrame(columns=["model", "question", "turn", "text"])
    found = {(a.judge, a.measure, a.other): a for a in audit(every, answers, ASKED, panels={panel.id})}
    assert found[panel.id, "first_preferred", ""].value == 0.25  # it tied one and lost the other
    assert found["j", "judge_agreement", "k"].n == 1
    assert ("", "krippendorff_alpha", "") in found


def test_the_last_readable_verdict_that_counts_is_taken():
    rows = said(*pair(0.0, 0.0), *pair(1.0, 1.0), *pair(None, None), *pair(0.0, 0.0))
    rows.loc[6:, "counts"] = False
    assert panel_verdicts(rows, make_panel("p", "jk"), ASKED)["value"].tolist() == [1.0]


def test_a_panel_none_of_whose_members_spoke_says_nothing():
    assert panel_verdicts(said(*pair(1.0)), make_panel("p", "xy"), ASKED).empty
    assert panel_verdicts(said(), make_panel("p", "xy"), ASKED).columns.tolist() == list(VERDICT_COLUMNS)


def test_a_panel_comes_back_from_its_model():
    for panel in (
        make_panel("p", "jkl", quorum=2),
        make_panel("p", "jk", how="weighted", weights={"j": 3, "k": 1}),
        make_panel("Ä", "jkl", how="by_category", categories={"math": ["k"], "code": "jl"}),
    ):
        model = panel_model(panel)
        assert (model.id, model.name, model.kind) == (panel.id, panel.name, "panel")
        assert panel_of(model) == panel


def test_a_panels_identity_is_what_it_does_and_not_its_name():
    ids = {
        make_panel("p", "jk").id, make_panel("p", "jk", quorum=1).id, make_panel("p", "jl").id,
        make_panel("p", "jk", how="majority").id, make_panel("p", "jk", how="weighted", weights={"j": 1, "k": 2}).id,
    }  # fmt: skip
    assert len(ids) == 5
    assert make_panel("p", "jk").id == make_panel("q", "kj").id


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"how": "median"}, "one of mean, majority, weighted, by_category"),
        ({"weights": {"j": 1}}, "only there"),
        ({"how": "weighted"}, "weights go with"),
        ({"how": "weighted", "weights": {"j": 1}}, "give each one weight"),
        ({"how": "weighted", "weights": {"j": 1, "k": 0}}, "above 0"),
        ({"how": "by_category", "categories": {"math": ["x"]}}, "'math': name some of its members"),
        ({"how": "by_category"}, "they go with"),
        ({"quorum": 3}, "from 1 to 2"),
        ({"quorum": 0}, "from 1 to 2"),
    ],
)
def test_a_panel_that_cannot_be_says_why(options, message):
    with pytest.raises(PanelError, match=message):
        make_panel("p", "jk", **options)


@pytest.mark.parametrize("members", ["", "jj"])
def test_members_are_named_once(members):
    with pytest.raises(PanelError, match="each named once"):
        make_panel("p", members)


@pytest.mark.parametrize(
    "recipe", ["", "{}", "[1]", '{"members": ["j"], "how": "odd", "weights": {}, "categories": {}, "quorum": null}']
)
def test_a_model_without_a_panel_is_told_of(recipe):
    with pytest.raises(PanelError, match="holds no panel"):
        panel_of(Model("id", "name", "panel", "panel", recipe=recipe))
