"""How far a judge agrees with people, and people with each other, as FastChat computes it.

Zheng et al. 2023, arXiv:2306.05685, section 4.2; lm-sys/FastChat@0283a0b ``llm_judge/compute_agreement.py``. Each vote
of a person is held against the judge's verdict on the pair (a winner must win in both orders, else it is a tie); of
people each two votes on a pair are held against each other. With ties (its setup S1) everything counts and a tie agrees
with a tie, without (S2) only where neither side said so. Here κ and intervals come with it, and both turns are one
figure: give one turn's verdicts for the published ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from judges.agreement import shares_and_kappa
from judges.clustered import Array, Figure, Ints, mean, ratio, summed
from judges.verdict_table import Ratings, Rows, Table, outcome

HUMAN = "human"
TIE = 0.1  # ratings that differ by no more are a tie: FastChat's TIE_DELTA
NOMINAL = 1.0 - np.eye(3)


@dataclass(frozen=True, slots=True)
class Votes:
    """Verdicts on pairs whose sides stand in one order, (n,) each: 1, 0.5 or 0 for the model with the lower number."""

    pair: Ints  # one number for both models, question and turn
    question: Ints
    verdict: Array


def human_agreement(table: Table, votes: Votes) -> Iterator[Figure]:
    """Yield ``human_agreement`` with ties, ``human_agreement_decided`` without, and ``human_kappa``.

    Of judges that rate, on the pairs that their ratings make, the same with ``_by_ratings`` at the end; of people
    among themselves, with "human" as the judge, the first two. ``votes`` are those of people, on the table's models.
    """
    for ending, judged in (("", _compared(table)), ("_by_ratings", _rated(table, votes))):
        for judge, verdicts in judged.items():
            mine, vote = joined(verdicts, votes)
            said, voted = verdicts.verdict[mine], votes.verdict[vote]
            yield from _shares(judge, votes.question[vote], said, voted, table, ending=ending)
    yield from _among_people(votes, len(table.names.questions))


def votes_of(table: Table, voters: Table) -> Votes:
    """Return all readable votes of ``voters``, where each person is a judge; both tables must have the same names."""
    sides = [one_order(table, p, p.verdict) for p in voters.pairs.values()]
    empty = np.empty(0, np.int64)
    if not sides:
        return Votes(empty, empty, np.empty(0))
    pair, question, verdict = (
        np.concatenate([getattr(side, name) for side in sides]) for name in ("pair", "question", "verdict")
    )
    known = np.isfinite(verdict)
    return Votes(pair[known], question[known], verdict[known])


def one_order(table: Table, rows: Rows, verdict: Array) -> Votes:
    """Return verdicts for the rows' models as verdicts for whichever side has the lower number."""
    lower, higher = np.minimum(rows.model, rows.baseline), np.maximum(rows.model, rows.baseline)
    pair = table.names.place(lower, higher, rows.question, rows.turn)
    return Votes(pair, rows.question, np.where(rows.model == lower, verdict, 1.0 - verdict))


def joined(verdicts: Votes, votes: Votes) -> tuple[Ints, Ints]:
    """Return, of every vote on a pair that there is a readable verdict on, the places of verdict and vote."""
    known = np.flatnonzero(np.isfinite(verdicts.verdict))
    pairs, first = np.unique(verdicts.pair[known], return_index=True)
    if not len(pairs):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    at = np.minimum(np.searchsorted(pairs, votes.pair), len(pairs) - 1)
    vote = np.flatnonzero(pairs[at] == votes.pair)
    return known[first[at[vote]]], vote


def _shares(judge: str, question: Ints, said: Array, voted: Array, table: Table, *, ending: str) -> Iterator[Figure]:
    if not len(said):
        return
    codes = [(2 * column).astype(np.int64) for column in (said, voted)]
    names = (f"human_agreement{ending}", f"human_kappa{ending}")
    yield from shares_and_kappa(judge, HUMAN, question, codes, weights=NOMINAL, table=table, names=names)
    decided = np.where((said != 0.5) & (voted != 0.5), (said == voted).astype(float), np.nan)
    questions = len(table.names.questions)
    measure = f"human_agreement_decided{ending}"
    yield from mean(judge, measure, HUMAN, question=question, values=decided, questions=questions)


def _compared(table: Table) -> dict[str, Votes]:
    return {judge: one_order(table, p, p.verdict) for judge, p in table.pairs.items()}


def _rated(table: Table, votes: Votes) -> dict[str, Votes]:
    """Return what the ratings of both sides say of the pairs that people voted on."""
    pairs, first = np.unique(votes.pair, return_index=True)
    turns, questions, models = table.names.turns + 1, len(table.names.questions), len(table.names.models) + 1
    turn, question = pairs % turns, votes.question[first]
    among = pairs // turns // questions
    lower, higher = among // models, among % models - 1
    found = {}
    for judge, rated in table.ratings.items():
        ours, theirs = (
            _ratings_at(rated, table.names.place(side, np.full_like(side, -1), question, turn))
            for side in (lower, higher)
        )
        gap = np.where(np.abs(ours - theirs) <= TIE + 1e-9, 0.0, ours - theirs)
        found[judge] = Votes(pairs, question, outcome(gap + 0.5))
    return found


def _ratings_at(rated: Ratings, places: Ints) -> Array:
    at = np.minimum(np.searchsorted(rated.place, places), len(rated.place) - 1)
    found: Array = np.where(rated.place[at] == places, rated.value[at], np.nan)
    return found


def _among_people(votes: Votes, questions: int) -> Iterator[Figure]:
    """Yield how far each two votes on one pair agree: counts of equal votes tell how many of the two are alike."""
    pairs, first, which = np.unique(votes.pair, return_index=True, return_inverse=True)
    counts = np.zeros((len(pairs), 3))
    np.add.at(counts, (which, (2 * votes.verdict).astype(np.int64)), 1.0)
    question = votes.question[first] if len(pairs) else votes.question
    for measure, several in (("human_agreement", counts), ("human_agreement_decided", counts[:, [0, 2]])):
        every = several.sum(axis=1)
        alike, two = (several * (several - 1) / 2).sum(axis=1), every * (every - 1) / 2
        if two.any():
            yield Figure(
                HUMAN, measure, HUMAN, int(two.sum()), summed(question, alike, two, questions=questions), ratio
            )
