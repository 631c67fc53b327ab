"""How far to trust what judges said: which models stand aside, which answers look like attacks, the judges' audit."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from evals.benchmark import Benchmark, Evidence
from evals.keys import content_key
from evals.records import AnswerFlag, Model, Question, Score
from evals.stats import mean_scores
from judges.flags import flag_answers, suspicious
from judges.panel import Panel, panel_of, panel_verdicts
from judges.people import by_people, human_verdicts, read_votes
from judges.self_preference import families
from judges.trust import audit
from results import evidence
from results.interchange.export import NOT_THERE
from results.store import Ledger

if TYPE_CHECKING:
    from pandas import DataFrame

VERSION = 1
"""Raise it when detectors or measures change: stored audits are then made anew."""

ATTACK = "attack:"  # before the detector, among a score's flags
UNFLAGGED = ":unflagged"  # behind a metric: without the answers that look like attacks
PEOPLE_ON = "mt_bench"  # the benchmark that people voted on


@dataclass(frozen=True)
class Cast:
    """Who is who among a ledger's models, beside those that are compared."""

    models: Sequence[Model]
    given: Mapping[str, str]  # families by name, as experiments say

    @cached_property
    def controls(self) -> frozenset[str]:
        """Models whose answers must lose."""
        return frozenset(m.id for m in self.models if m.kind == "control")

    @cached_property
    def retests(self) -> dict[str, str]:
        """Judges that were asked again, and under which identity."""
        return {str(m.parent): m.id for m in self.models if m.kind == "retest"}

    @cached_property
    def panels(self) -> list[Panel]:
        """Judges that are made of several."""
        return [panel_of(m) for m in self.models if m.kind == "panel"]

    @cached_property
    def families(self) -> dict[str, str]:
        """Families by identity."""
        return families(self.models, given=self.given)


def cast(ledger: Ledger) -> Cast:
    """Return who is who; families that experiments named hold over what the models' names speak of."""
    given: dict[str, str] = {}
    for (text,) in ledger.sql("SELECT experiment FROM runs WHERE experiment <> '' ORDER BY started").fetchall():
        found = json.loads(text).get("models") or ()
        given.update({m["name"]: m["family"] for m in found if m.get("family")})
    return Cast(ledger.models(), given)


def with_panels(said: DataFrame, who: Cast, questions: Sequence[Question]) -> DataFrame:
    """Return the verdicts, and after them those that panels make of them."""
    import pandas as pd

    spoken = [rows for panel in who.panels if len(rows := panel_verdicts(said, panel, questions))]
    return pd.concat([said, *spoken], ignore_index=True) if spoken else said


def compared(said: DataFrame, who: Cast) -> DataFrame:
    """Return the verdicts that scores rest on: not those of retests, and not those about controls."""
    if who.controls or who.retests:
        aside = said["model"].isin(list(who.controls)) | said["judge"].isin(list(who.retests.values()))
        return said[~aside.to_numpy(dtype=bool)].reset_index(drop=True)
    return said


@dataclass(frozen=True)
class Suspicion:
    """Which answers look like attacks, and the models that are marked for it, with their detectors."""

    flags: Sequence[AnswerFlag]
    marked: Mapping[str, tuple[str, ...]]

    @cached_property
    def questions(self) -> dict[str, frozenset[str]]:
        """The questions whose answers are flagged, by marked model."""
        found: dict[str, set[str]] = defaultdict(set)
        for flag in self.flags:
            if flag.model in self.marked:
                found[flag.model].add(flag.question)
        return {model: frozenset(several) for model, several in found.items()}

    def marks(self, model: str) -> tuple[str, ...]:
        """Return the flags of a marked model's scores."""
        return tuple(f"{ATTACK}{detector}" for detector in self.marked.get(model, ()))


def texts(ledger: Ledger, known: Benchmark, who: Cast) -> DataFrame:
    """Return the answers that count, but controls' and those whose text an import did not have."""
    answers = evidence.current_answers(ledger, benchmark=known.name, version=known.version)
    aside = answers["text"].str.startswith(NOT_THERE) | answers["model"].isin(list(who.controls))
    return answers[~aside.to_numpy(dtype=bool)]


def suspicion(ledger: Ledger, known: Benchmark, questions: Sequence[Question], who: Cast, *, anew: bool) -> Suspicion:
    """Return what is suspicious in the answers that count, as it is stored or looked for ``anew``.

    Only answers to questions that judges read can be attacks.
    """
    place = {"benchmark": known.name, "version": known.version}
    asked = {q.id: q for q in questions if q.check is None}
    if anew:
        answers = texts(ledger, known, who)
        flags = flag_answers(answers[answers["question"].isin(asked).to_numpy(dtype=bool)], list(asked.values()))
    else:
        flags = ledger.answer_flags(**place)
    counts, _ = evidence.answered(ledger, **place)
    return Suspicion(flags, suspicious(flags, counts))


def basis(ledger: Ledger, known: Benchmark, who: Cast) -> str:
    """Return a digest of all that an audit rests on, but people's votes: while it stays, so does the audit."""
    place = {"benchmark": known.name, "version": known.version}
    _, answers = evidence.answered(ledger, **place)
    cast = [(m.id, m.kind, who.families.get(m.id)) for m in who.models]
    return content_key("audit", VERSION, evidence.digests(ledger, **place), answers, cast)


def votes_digest(people: Path | None) -> str | None:
    """Return a digest of a file of votes."""
    return hashlib.sha256(people.read_bytes()).hexdigest() if people else None


def unflagged(known: Benchmark, told: Evidence, found: Suspicion, scores: Sequence[Score]) -> list[Score]:
    """Return those of the ``scores`` that are of marked models, without the flagged answers, named with UNFLAGGED.

    Where no answer is left, the value is missing.
    """
    theirs = [s for s in scores if s.model in found.marked]
    if not theirs:
        return []
    wanted = [replace(w, questions=w.questions - found.questions.get(w.model, frozenset())) for w in told.wanted]
    said = told.verdicts
    dropped = {(model, question) for model, several in found.questions.items() for question in several}
    kept = [pair not in dropped for pair in zip(said["model"], said["question"], strict=True)]
    rest = Evidence(
        told.questions, [w for w in wanted if w.questions], said[kept].reset_index(drop=True), lambda: told.answers
    )
    scored = known.score(rest)
    means = mean_scores(scored.items, benchmark=known.name, version=known.version)
    left = {_place(s): s for s in (*means, *scored.scores)}
    for metric, same in scored.same.items():
        left.update({_place(s, metric): replace(s, metric=metric) for s in means if s.metric == same})
    nothing = [replace(s, value=None, low=None, high=None, n=0, missing=0) for s in theirs]
    each = (left.get(_place(s), none) for s, none in zip(theirs, nothing, strict=True))
    return [replace(s, metric=s.metric + UNFLAGGED, flags=found.marks(s.model)) for s in each]


def _place(score: Score, metric: str | None = None) -> tuple[str, str, str | None, str]:
    return score.model, score.judge, score.baseline, metric or score.metric


def store_audit(
    ledger: Ledger, told: Evidence, everything: DataFrame, found: Suspicion, *, who: Cast, people: Path | None = None
) -> None:
    """Store what can be told of the judges from ``everything`` that they said, and the flagged answers.

    ``people`` is a file of people's votes on MT-Bench answers (see judges.people); those count that are on models which
    the ledger knows by name.
    """
    if not told.questions:
        return
    benchmark, version = told.questions[0].benchmark, told.questions[0].version
    votes = None
    if people is not None and benchmark == PEOPLE_ON:
        votes = human_verdicts(by_people(read_votes(people)), {m.name: m.id for m in who.models})
    audits = audit(
        everything[(everything["judge"] != "check").to_numpy(dtype=bool)].reset_index(drop=True),
        told.answers,
        told.questions,
        people=votes,
        retests=who.retests,
        controls=who.controls,
        panels=[panel.id for panel in who.panels],
        families=who.families,
    )
    ledger.put_audit(audits, found.flags, benchmark=benchmark, version=version)
