"""How far to trust a judge: everything that can be told from what it said, from other judges, and from people.

:func:`audit` makes one table of :data:`MEASURES`; each has its own page in this room, with its sources.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evals.records import Audit, Question
from judges.agreement import agreement
from judges.calibration import calibration
from judges.clustered import Figure, measured
from judges.human_agreement import human_agreement, votes_of
from judges.null_control import null_control
from judges.order_bias import order_bias
from judges.retest import readability, retest, spread
from judges.self_preference import self_preference
from judges.style_bias import people_style_bias, style_bias
from judges.verdict_table import Table, names_of, verdict_table

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, slots=True)
class Measure:
    """What a measure says, its ``unit``, and the value of a judge without fault (None: there is none such)."""

    says: str
    unit: str
    ideal: float | None = None


ROUNDS = 2_000  # enough for figures that are read to two digits; a score has 10,000
SHARE, PREFERENCE, POINTS, CORRELATION, KAPPA = "share", "preference", "points", "correlation", "coefficient"

MEASURES: Mapping[str, Measure] = {
    "order_consistency": Measure("pairs whose winner is the same in both orders", SHARE, 1.0),
    "first_preferred": Measure("judgments that prefer the answer shown first, a tie counting half", SHARE, 0.5),
    "longer_preferred": Measure("pairs whose longer answer wins, a tie counting half", SHARE),
    "length_effect": Measure(
        "probability that of two equals the one twice as long wins, markup held fixed", SHARE, 0.5
    ),
    "markdown_preferred": Measure("pairs in which the answer with more Markdown wins, a tie counting half", SHARE),
    "markdown_effect": Measure(
        "probability that of two equals the one with twice the Markdown wins, length held fixed", SHARE, 0.5
    ),
    "length_slope": Measure("what twice the length adds to a rating, model and question held fixed", POINTS, 0.0),
    "self_preference": Measure(
        "by how much more than other judges it prefers its own family's answers", PREFERENCE, 0.0
    ),
    "rating_self_preference": Measure(
        "by how much more than other judges it lifts its own family's ratings", POINTS, 0.0
    ),
    "retest_agreement": Measure("judgments with the same winner or rating when asked again", SHARE, 1.0),
    "retest_mean_change": Measure("mean change of the preference when asked again", PREFERENCE, 0.0),
    "retest_gap": Measure("mean absolute change of the preference when asked again", PREFERENCE, 0.0),
    "retest_rating_mean_change": Measure("mean change of the rating when asked again", POINTS, 0.0),
    "retest_rating_gap": Measure("mean absolute change of the rating when asked again", POINTS, 0.0),
    "human_agreement": Measure("people's votes that it agrees with, ties included", SHARE, 1.0),
    "human_agreement_decided": Measure("people's votes that it agrees with where neither says tie", SHARE, 1.0),
    "human_kappa": Measure("Cohen's κ with people's votes", KAPPA, 1.0),
    "human_agreement_by_ratings": Measure(
        "people's votes that agree with which answer it rates higher, ties included", SHARE, 1.0
    ),
    "human_agreement_decided_by_ratings": Measure(
        "people's votes that agree with which answer it rates higher where neither is a tie", SHARE, 1.0
    ),
    "human_kappa_by_ratings": Measure("Cohen's κ of which answer it rates higher with people's votes", KAPPA, 1.0),
    "judge_agreement": Measure("pairs on which both judges say the same: won, tied or lost", SHARE),
    "cohen_kappa": Measure("Cohen's κ of two judges' verdicts: won, tied or lost", KAPPA),
    "model_spearman": Measure("rank correlation of the orders in which two judges put the models", CORRELATION),
    "rating_agreement": Measure("answers that both judges rate the same", SHARE),
    "weighted_kappa": Measure("Cohen's κ of two judges' ratings, gaps weighing by their squares", KAPPA),
    "rating_spearman": Measure("rank correlation of the models' mean ratings by two judges", CORRELATION),
    "krippendorff_alpha": Measure("Krippendorff's ordinal α of all judges' verdicts", KAPPA, 1.0),
    "rating_alpha": Measure("Krippendorff's interval α of all judges' ratings", KAPPA, 1.0),
    "calibration_error": Measure("mean gap between how sure it is and how often it is right", SHARE, 0.0),
    "brier": Measure("mean squared gap between its preference and what is right", "squared share", 0.0),
    "null_control": Measure("pairs that an answer which must lose does lose", SHARE, 1.0),
    "null_preference": Measure("mean preference for an answer that must lose", PREFERENCE, 0.0),
    "null_rating_control": Measure("answers which must lose that are rated below the others' mean", SHARE, 1.0),
    "null_rating": Measure("mean rating of an answer that must lose", POINTS, 1.0),
    "unreadable": Measure("judgments without a verdict", SHARE, 0.0),
    "score_spread": Measure("standard deviation of the models' mean preferences", PREFERENCE),
    "rating_spread": Measure("standard deviation of the models' mean ratings", POINTS),
}
"""What :func:`audit` tells of a judge; shares and preferences are from 0 to 1, points those of a rating."""


def audit(
    said: DataFrame,
    answers: DataFrame,
    questions: Sequence[Question],
    *,
    people: DataFrame | None = None,
    retests: Mapping[str, str] | None = None,
    controls: Collection[str] = (),
    panels: Collection[str] = (),
    families: Mapping[str, str] | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> list[Audit]:
    """Return every one of the MEASURES that can be had of one benchmark's verdicts, with 95 % intervals.

    - ``said`` has VERDICT_COLUMNS of :mod:`evals.benchmark`, the oldest first: what all judges said, panels
      (:func:`judges.panel.panel_verdicts`), repeated judges and controls included.
    - ``answers`` has ANSWER_COLUMNS: the texts of the models and of baselines, without stand-ins for texts that are not
      there; where one is missing, only the measures of style lack the pair.
    - ``people`` are people's votes as :func:`judges.people.human_verdicts` gives them.
    - ``retests`` maps a judge to the identity under which it was asked again, ``families`` a model or judge to its
      family; ``controls`` are models whose answers must lose, ``panels`` judges that are made of others. All are
      identities.

    Controls and repeated judges have no part in any measure but those about them; panels agree, or do not, with judges
    and people, but have no say in α nor in what "the other judges" say. Intervals resample questions with ``seed``
    (those of length_effect and markdown_effect are cluster-robust). Raises ValueError where there is no question.
    """
    if not questions:
        raise ValueError("an audit needs the questions of one benchmark, and there are none: import or run it first")
    retests, families = retests or {}, families or {}
    frames = [said] if people is None else [said, people]
    names = names_of(*frames, questions=[q.id for q in questions])
    if not names.questions:
        return []
    aside = said["model"].isin(list(controls)) | said["judge"].isin(list(retests.values()))
    every, table = verdict_table(said, names=names), verdict_table(said[~aside.to_numpy(dtype=bool)], names=names)
    voters = None if people is None else verdict_table(people, names=names)
    figures = [
        *_of_each(table, answers, families=families, panels=panels),
        *retest(every, retests=retests),
        *null_control(every, controls=controls),
        *agreement(table, not_raters=panels),
        *_with_people(table, voters, answers, panels=panels),
    ]
    first = questions[0]
    return measured(figures, benchmark=first.benchmark, version=first.version, rounds=rounds, seed=seed)


def _of_each(
    table: Table, answers: DataFrame, *, families: Mapping[str, str], panels: Collection[str]
) -> Iterator[Figure]:
    yield from order_bias(table)
    yield from style_bias(table, answers)
    yield from self_preference(table, families=families, not_others=panels)
    yield from readability(table)
    yield from spread(table)


def _with_people(
    table: Table, voters: Table | None, answers: DataFrame, *, panels: Collection[str]
) -> Iterator[Figure]:
    votes = None
    if voters is not None:
        votes = votes_of(table, voters)
        yield from people_style_bias(voters, answers)
        yield from human_agreement(table, votes)
    yield from calibration(table, votes, not_others=panels)
