from reports.numbers import interval, number, p_text, points


def test_a_missing_value_is_never_a_number():
    assert number(None, "accuracy") == "missing"
    assert interval(None, None, "accuracy") == "[missing]"
    assert p_text(None) == "p missing"


def test_per_cents_have_one_place_and_ratings_two():
    assert number(50.04, "win_rate") == "50.0"
    assert number(7.906, "average") == "7.91"
    assert number(-0.01, "win_rate", sign=True) == "0.0"


def test_lm_evals_metrics_have_four_places_and_no_points():
    assert number(0.41236, "exact_match,strict-match") == number(0.41236, "acc:mmlu_pro_law") == "0.4124"
    assert (points("acc"), points("accuracy"), points("category:math")) == ("", " points", " points")
