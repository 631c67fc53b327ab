import dataclasses

from reports.claims import statement
from results.queries import DifferenceRow


def difference(value, low, high, p=0.004, **changes):
    row = DifferenceRow(
        "rewriting-sft", "smollm2-135m", "starter", "1", "check", None, "accuracy:rewriting", value, low, high, p, 12, 0
    )
    return dataclasses.replace(row, **changes)


def test_a_difference_that_is_shown_is_claimed_with_its_interval():
    said = statement(difference(41.66, 25.0, 58.33))
    assert said.verdict == "better"
    assert said.sentence == (
        "rewriting-sft beats smollm2-135m on starter accuracy:rewriting by 41.7 [25.0, 58.3] points "
        "(p = 0.004, n = 12)."
    )


def test_a_loss_is_claimed_the_other_way_round():
    said = statement(difference(-41.66, -58.33, -25.0, p=0.0002))
    assert said.verdict == "worse"
    assert "rewriting-sft loses to smollm2-135m" in said.sentence
    assert "by 41.7 [25.0, 58.3] points (p < 0.001, n = 12)." in said.sentence


def test_of_a_metric_of_which_less_is_better_whoever_has_less_beats_the_other():
    lower = {"lower_is_better": True, "metric": "brier_score"}
    said = statement(difference(-0.25, -0.5, -0.125, **lower))
    assert said.verdict == "better"
    assert said.sentence == (
        "rewriting-sft beats smollm2-135m on starter brier_score (lower is better) by 0.2500 [0.1250, 0.5000] "
        "(p = 0.004, n = 12)."
    )
    assert statement(difference(0.25, 0.125, 0.5, **lower)).verdict == "worse"
    said = statement(difference(0.25, 0.125, 0.5, **lower)).sentence
    assert "loses to smollm2-135m on starter brier_score (lower is better) by 0.2500 [0.1250, 0.5000]" in said
    assert statement(difference(-0.25, -0.5, 0.1, **lower)).verdict == "none"


def test_nothing_is_claimed_where_the_interval_holds_zero():
    said = statement(difference(8.3, -8.3, 25.0, p=0.4))
    assert said.verdict == "none"
    assert said.sentence == (
        "no difference shown between rewriting-sft and smollm2-135m on starter accuracy:rewriting: "
        "+8.3 [−8.3, 25.0] points (p = 0.400, n = 12)."
    )


def test_nothing_is_claimed_where_interval_and_p_disagree_or_one_is_missing():
    assert statement(difference(8.3, 0.1, 25.0, p=0.06)).verdict == "none"
    assert statement(difference(8.3, -0.1, 25.0, p=0.01)).verdict == "none"
    assert statement(difference(8.3, 0.1, 25.0, p=None)).verdict == "none"
    assert "p missing" in statement(difference(8.3, 0.1, 25.0, p=None)).sentence


def test_a_missing_difference_is_said_to_be_missing():
    said = statement(difference(None, None, None, None, n=0, missing=12, judge_name="gpt", metric="win_rate"))
    assert said.verdict == "missing"
    assert said.sentence == (
        "nothing can be said of rewriting-sft and smollm2-135m on starter win_rate as judged by gpt: "
        "no question has both scores (n = 0, 12 missing)."
    )


def test_a_third_models_answers_that_both_were_judged_against_are_named():
    judged = {"metric": "win_rate", "judge_name": "gpt"}
    assert " on starter win_rate (both against o1) as judged by gpt: " in (
        statement(difference(1.0, -2.0, 3.0, baseline_name="o1", **judged)).sentence
    )
    claim = statement(difference(9.0, 1.0, 20.0, baseline_name="o1", **judged)).sentence
    assert " on starter win_rate (both against o1) by 9.0 [1.0, 20.0] points as judged by gpt (" in claim
    for one in ("rewriting-sft", "smollm2-135m"):
        assert "both" not in statement(difference(9.0, 1.0, 20.0, baseline_name=one, **judged)).sentence


def test_missing_questions_are_named_beside_a_claim():
    assert statement(difference(9.0, 1.0, 20.0, n=10, missing=2)).sentence.endswith("(p = 0.004, n = 10, 2 missing).")


def test_where_nothing_is_shown_the_sentence_says_what_would_have_been():
    row = DifferenceRow("a", "b", "starter", "1", "check", None, "accuracy", 5.0, -5.0, 15.0, 0.3, 50, 0, 0.9, 10.0)
    # Half of what is detectable takes four times the questions.
    assert "one of 10.0 would be found four times in five, one as large as this with 200 questions" in (
        statement(row).sentence
    )


def test_a_claim_about_a_marked_model_bears_the_mark():
    row = difference(41.66, 25.0, 58.33)
    assert statement(row, marked={"rewriting-sft"}).sentence.startswith("rewriting-sft † beats smollm2-135m on")
    assert statement(row, marked={"smollm2-135m"}).sentence.startswith("rewriting-sft beats smollm2-135m † on")


def test_a_p_value_that_counts_is_the_corrected_one():
    corrected = dataclasses.replace(difference(8.3, 0.1, 25.0, p=0.01), p_holm=0.06)
    assert statement(corrected).verdict == "none"
    assert "(p = 0.010, p = 0.060 after Holm's correction, n = 12)." in statement(corrected).sentence
    assert statement(dataclasses.replace(corrected, p_holm=0.03)).verdict == "better"


def test_of_two_equal_models_no_number_of_questions_is_named():
    row = dataclasses.replace(difference(0.0, -5.0, 5.0, p=1.0), detectable=10.0)
    assert statement(row).sentence.endswith(
        "0.0 [−5.0, 5.0] points (one of 10.0 would be found four times in five) (p = 1.000, n = 12)."
    )


def test_ratings_are_said_to_two_places_with_their_judge_and_what_is_missing():
    row = difference(0.25, 0.1, 0.4, n=79, missing=1, benchmark="mt_bench", metric="average", judge_name="gpt-4")
    assert statement(dataclasses.replace(row, p_holm=0.012)).sentence == (
        "rewriting-sft beats smollm2-135m on mt_bench average by 0.25 [0.10, 0.40] points as judged by gpt-4 "
        "(p = 0.004, p = 0.012 after Holm's correction, n = 79, 1 missing)."
    )
