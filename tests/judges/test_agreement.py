"""Agreement against scikit-learn, scipy and the package krippendorff, and against people as FastChat counts it."""

from itertools import combinations

import krippendorff
import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import cohen_kappa_score

from evals.benchmark import VERDICT_COLUMNS
from evals.records import Question
from judges.agreement import alpha, confusion, kappa, rank_correlation, ranks_of
from judges.people import Vote, human_verdicts
from judges.trust import audit

NO_TEXTS = pd.DataFrame(columns=["model", "question", "turn", "text"])
ASKED = [Question("b", "1", f"q{n}", "c", ("one", "two")) for n in range(25)]
MODELS = ("a", "b", "c", "d", "e")


def said(values, *, baseline="base", turn=1, order="model_first"):
    """Verdicts of {judge: (models, questions)} values."""
    rows = [
        (MODELS[m], judge, baseline, f"q{n}", turn, order, value, True)
        for judge, table in values.items()
        for (m, n), value in np.ndenumerate(table)
    ]
    return pd.DataFrame(rows, columns=list(VERDICT_COLUMNS))


def drawn(kinds, *, seed=0, judges="jkl", missing=0.1):
    """Judges that agree half the time, with some verdicts missing, (5, 25) each."""
    rng = np.random.default_rng(seed)
    shared = rng.choice(kinds, size=(5, 25))
    own = {judge: np.where(rng.random((5, 25)) < 0.5, shared, rng.choice(kinds, size=(5, 25))) for judge in judges}
    return {judge: np.where(rng.random((5, 25)) < missing, np.nan, values) for judge, values in own.items()}


def measures(audits):
    return {(a.judge, a.measure, a.other): a for a in audits}


def test_kappas_are_scikit_learns():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 4, size=(2, 200))
    counts = confusion(np.zeros(200, dtype=int), one, other, kinds=4, questions=1).sum(axis=0)
    apart = np.subtract.outer(np.arange(4), np.arange(4)) ** 2
    assert kappa(counts, weights=1 - np.eye(4)) == pytest.approx(cohen_kappa_score(one, other))
    assert kappa(counts, weights=apart) == pytest.approx(cohen_kappa_score(one, other, weights="quadratic"))


def test_two_judges_who_always_say_one_and_the_same_have_no_kappa():
    counts = np.array([5.0, 0, 0, 0])
    assert np.isnan(kappa(counts, weights=1 - np.eye(2)))


def test_judges_agree_as_the_libraries_say():
    values = drawn([0.0, 0.5, 1.0])
    found = measures(audit(said(values), NO_TEXTS, ASKED))
    for one, other in combinations("jkl", 2):
        both = np.isfinite(values[one]) & np.isfinite(values[other])
        a, b = values[one][both], values[other][both]
        assert found[one, "judge_agreement", other].value == pytest.approx((a == b).mean())
        expected = cohen_kappa_score((2 * a).astype(int), (2 * b).astype(int))
        assert found[one, "cohen_kappa", other].value == pytest.approx(expected)
        means = [np.nanmean(np.where(both, values[judge], np.nan), axis=1) for judge in (one, other)]
        assert found[one, "model_spearman", other].value == pytest.approx(spearmanr(*means).statistic)
    expected = krippendorff.alpha(np.stack([v.ravel() for v in values.values()]), level_of_measurement="ordinal")
    assert found["", "krippendorff_alpha", ""].value == pytest.approx(expected)


def test_raters_agree_as_the_libraries_say():
    values = drawn([1.0, 3.0, 7.0, 7.5, 9.0])
    found = measures(audit(said(values, baseline=None, order="single"), NO_TEXTS, ASKED))
    both = np.isfinite(values["j"]) & np.isfinite(values["k"])
    a, b = (np.round(2 * values[judge][both]).astype(int) for judge in "jk")
    assert found["j", "rating_agreement", "k"].value == pytest.approx((a == b).mean())
    # scikit-learn weighs by the places of the labels, so that all half points must be among them.
    expected = cohen_kappa_score(a, b, weights="quadratic", labels=range(2, 21))
    assert found["j", "weighted_kappa", "k"].value == pytest.approx(expected)
    expected = krippendorff.alpha(np.stack([v.ravel() for v in values.values()]), level_of_measurement="interval")
    assert found["", "rating_alpha", ""].value == pytest.approx(expected)


@pytest.mark.parametrize("level", ["ordinal", "interval"])
def test_alpha_from_sums_is_the_packages(level):
    rng = np.random.default_rng(3)
    counts = rng.multinomial(3, [0.2, 0.5, 0.3], size=60)
    values = np.array([1.0, 2.0, 5.0])
    met = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(3)
    sums = (met / (counts.sum(axis=1) - 1)[:, None, None]).sum(axis=0).ravel()
    expected = krippendorff.alpha(value_counts=counts, value_domain=values, level_of_measurement=level)
    assert alpha(sums, values=values, level=level) == pytest.approx(expected)


def test_the_interval_of_alpha_holds_it_and_shrinks_with_questions():
    def width(count):
        rng = np.random.default_rng(0)
        shared = rng.choice([0.0, 1.0], size=(1, count))
        values = {judge: np.where(rng.random((1, count)) < 0.6, shared, 1 - shared) for judge in "jk"}
        asked = [Question("b", "1", f"q{n}", "c", ("one",)) for n in range(count)]
        a = measures(audit(said(values), NO_TEXTS, asked))["", "krippendorff_alpha", ""]
        assert a.low < a.value < a.high
        return a.high - a.low

    assert width(400) < 0.6 * width(100)


def test_ranks_are_scipys_and_equal_means_share_theirs():
    values = np.random.default_rng(0).integers(0, 4, size=(20, 7)).astype(float)
    assert ranks_of(values) == pytest.approx(rankdata(values, axis=-1))


def test_a_resample_that_lacks_a_model_has_no_rank_correlation():
    assert np.isnan(rank_correlation(np.array([[1.0, 2, 0, 3, 4, 0, 1, 1, 0]]))[0])


def test_a_panel_is_beside_the_judges_and_no_rater_of_its_own():
    values = drawn([0.0, 0.5, 1.0], judges="jk")
    alone = measures(audit(said(values), NO_TEXTS, ASKED))
    found = measures(audit(said(values | {"p": values["j"]}), NO_TEXTS, ASKED, panels={"p"}))
    assert found["j", "judge_agreement", "p"].value == 1.0
    assert found["", "krippendorff_alpha", ""] == alone["", "krippendorff_alpha", ""]


def counted_by_hand(verdict, votes, *, ties):
    """FastChat's count: each vote against the judge's verdict on its pair, with ties or without."""
    held = [(verdict[q, t, pair], v) for q, t, pair, v in votes if (q, t, pair) in verdict]
    held = [(said, voted) for said, voted in held if ties or "tie" not in (said, voted)]
    return sum(said == voted for said, voted in held) / len(held), len(held)


def test_agreement_with_people_is_fastchats_with_ties_and_without():
    rng = np.random.default_rng(5)
    names = {0.0: "higher", 0.5: "tie", 1.0: "lower"}
    rows, verdict, votes, by_hand = [], {}, [], []
    for a, b in combinations(MODELS, 2):
        for n in range(25):
            for turn in (1, 2):
                games = rng.choice([0.0, 0.5, 1.0], size=2, p=[0.4, 0.1, 0.5])
                rows += [
                    (a, "j", b, f"q{n}", turn, o, g, True)
                    for o, g in zip(("model_first", "baseline_first"), games, strict=True)
                ]
                verdict[n, turn, (a, b)] = names[games[0]] if games[0] == games[1] else "tie"
                for person in range(rng.integers(0, 4)):
                    value, turned = rng.choice([0.0, 0.5, 1.0]), rng.random() < 0.5
                    pair = (b, a) if turned else (a, b)
                    votes.append(Vote(f"q{n}", turn, *pair, f"expert_{person}", 1 - value if turned else value))
                    by_hand.append((n, turn, (a, b), names[value]))
    verdicts = pd.DataFrame(rows, columns=list(VERDICT_COLUMNS))
    people = human_verdicts(votes, {m: m for m in MODELS})
    found = measures(audit(verdicts, NO_TEXTS, ASKED, people=people))
    for measure, ties in (("human_agreement", True), ("human_agreement_decided", False)):
        a = found["j", measure, "human"]
        assert (a.value, a.n) == (
            pytest.approx(counted_by_hand(verdict, by_hand, ties=ties)[0]),
            counted_by_hand(verdict, by_hand, ties=ties)[1],
        )
    among = (
        pd.DataFrame(by_hand, columns=["n", "turn", "pair", "vote"]).groupby(["n", "turn", "pair"])["vote"].agg(list)
    )
    each = [two for several in among for two in combinations(several, 2)]
    a = found["human", "human_agreement", "human"]
    assert (a.value, a.n) == (pytest.approx(sum(x == y for x, y in each) / len(each)), len(each))
    decided = [two for two in each if "tie" not in two]
    assert found["human", "human_agreement_decided", "human"].n == len(decided)
    held = [(verdict[q, t, pair], v) for q, t, pair, v in by_hand]
    assert found["j", "human_kappa", "human"].value == pytest.approx(cohen_kappa_score(*zip(*held, strict=True)))


def test_ratings_agree_with_people_through_which_is_higher_and_near_ones_are_ties():
    rows = [("a", 8.0), ("b", 8.05), ("c", 3.0)]
    rated = pd.DataFrame([(m, "j", None, "q0", 1, "single", r, True) for m, r in rows], columns=list(VERDICT_COLUMNS))
    votes = [
        Vote("q0", 1, "a", "b", "expert_0", 0.5),
        Vote("q0", 1, "c", "a", "expert_0", 0.0),
        Vote("q0", 1, "b", "c", "expert_1", 0.0),
    ]
    found = measures(audit(rated, NO_TEXTS, ASKED, people=human_verdicts(votes, {m: m for m in "abc"})))
    assert found["j", "human_agreement_by_ratings", "human"].value == pytest.approx(2 / 3)
    assert found["j", "human_agreement_decided_by_ratings", "human"].value == pytest.approx(1 / 2)
    assert ("j", "human_agreement", "human") not in found
