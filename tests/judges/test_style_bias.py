"""Effects of style against scikit-learn's logistic regression, and slopes against least squares written out."""

import numpy as np
import pandas as pd
import pytest

from evals.benchmark import VERDICT_COLUMNS
from evals.records import Question
from judges.people import Vote, human_verdicts
from judges.trust import audit


def drawn(asked=60, *, seed=0):
    """Preferences of three models against a baseline, and texts of any length and number of bold spans."""
    rng = np.random.default_rng(seed)
    models = ("a", "b", "c")
    texts = {
        (m, n): "**b** " * rng.integers(0, 4) + "x" * rng.integers(10, 90)
        for m in (*models, "base")
        for n in range(asked)
    }
    value = {(m, n): float(rng.random()) for m in models for n in range(asked)}
    answers = pd.DataFrame(
        [(m, f"q{n}", 1, text) for (m, n), text in texts.items()], columns=["model", "question", "turn", "text"]
    )
    return texts, value, answers, [Question("b", "1", f"q{n}", "c", ("one",)) for n in range(asked)]


def counts(text):
    return np.log2([len(text) + 1, text.count("**b**") + 1])


def test_effects_are_those_of_scikit_learns_regression():
    from sklearn.linear_model import LogisticRegression

    texts, value, answers, asked = drawn()
    said = pd.DataFrame(
        [(m, "j", "base", f"q{n}", 1, "model_first", v, True) for (m, n), v in value.items()],
        columns=list(VERDICT_COLUMNS),
    )
    found = {a.measure: a for a in audit(said, answers, asked)}
    x = np.array(
        [[*counts(texts[m, n]) - counts(texts["base", n]), *(m == other for other in "abc")] for m, n in value]
    )
    x[:, :2] = np.clip(x[:, :2], -3, 3)
    share = np.array(list(value.values()))
    model = LogisticRegression(fit_intercept=False, C=1e4, tol=1e-10, max_iter=10_000)
    model.fit(np.vstack([x, x]), np.repeat([1, 0], len(x)), sample_weight=np.concatenate([share, 1 - share]))
    expected = 1 / (1 + np.exp(-model.coef_[0][:2]))
    assert [found["length_effect"].value, found["markdown_effect"].value] == pytest.approx(expected, abs=1e-5)


def test_effects_of_a_judge_that_looks_at_nothing_include_none_nineteen_times_in_twenty():
    inside = 0
    for seed in range(30):
        _, value, answers, asked = drawn(40, seed=seed)
        said = pd.DataFrame(
            [(m, "j", "base", f"q{n}", 1, "model_first", v, True) for (m, n), v in value.items()],
            columns=list(VERDICT_COLUMNS),
        )
        found = {a.measure: a for a in audit(said, answers, asked, rounds=2)}
        inside += found["length_effect"].low <= 0.5 <= found["length_effect"].high
    assert inside >= 26


def test_a_judge_that_only_one_model_wins_under_has_finite_effects():
    _, value, answers, asked = drawn()
    said = pd.DataFrame(
        [(m, "j", "base", f"q{n}", 1, "model_first", float(m == "a"), True) for m, n in value],
        columns=list(VERDICT_COLUMNS),
    )
    found = {a.measure: a for a in audit(said, answers, asked, rounds=10)}
    assert found["length_effect"].value == pytest.approx(0.5, abs=0.05)


def test_the_slope_of_ratings_is_that_of_least_squares_with_models_and_questions_held():
    texts, value, answers, asked = drawn()
    said = pd.DataFrame(
        [(m, "j", None, f"q{n}", 1, "single", 1 + 9 * v, True) for (m, n), v in value.items()],
        columns=list(VERDICT_COLUMNS),
    )
    said = said.drop(index=[3, 17, 90])  # not every model was rated on every question
    found = {a.measure: a for a in audit(said, answers, asked)}
    keys = [(m, int(q[1:])) for m, q in zip(said["model"], said["question"], strict=True)]
    x = np.array(
        [[counts(texts[key])[0], *(key[0] == m for m in "abc"), *(key[1] == n for n in range(60))] for key in keys],
        dtype=float,
    )
    expected = np.linalg.lstsq(x, said["value"].to_numpy(dtype=float), rcond=None)[0][0]
    assert found["length_slope"].value == pytest.approx(expected, abs=1e-6)


def test_people_are_asked_the_same():
    texts, _, answers, asked = drawn(2)
    longer = float(len(texts["a", 0]) > len(texts["base", 0]))
    people = human_verdicts([Vote("q0", 1, "a", "base", "expert_1", longer)], {"a": "a", "base": "base"})
    said = pd.DataFrame([("a", "j", "base", "q0", 1, "model_first", 0.5, True)], columns=list(VERDICT_COLUMNS))
    found = {(a.judge, a.measure): a for a in audit(said, answers, asked, people=people)}
    assert found["human", "longer_preferred"].value == 1.0
    assert found["j", "longer_preferred"].value == 0.5
