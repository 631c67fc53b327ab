"""The judge audit of the page: what each judge is like, who agrees with whom, who looks like an attack, who served.

Nothing is computed here: the ledger's audits, flags and judgments are laid out and said in plain words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports.marks import detectors
from reports.measures import BY_RATINGS, HUMAN, WORDS, Line, figure, line
from results import audit_queries
from results.audit_queries import AuditRow, FlagRow, JudgeOrderRow, ServedRow
from results.queries import LeaderboardRow
from results.store import Ledger

EXAMPLES = 3  # answers shown of each model and detector
LONGEST = 240  # characters of one
_LOCAL = frozenset({"checkpoint", "sft", "merge", "published"})  # judges that no endpoint serves
_OF_MODELS = frozenset(
    {"order_consistency", "first_preferred", "self_preference", "rating_self_preference", "unreadable"}
)
# What of two raters stands in a cell: agreement, κ and the correlation of the orders that they put models in; what of
# a rater and people does.
_MATRICES = {
    "Verdicts": (("judge_agreement", "cohen_kappa", "model_spearman"), ("human_agreement", "human_kappa")),
    "Ratings": (
        ("rating_agreement", "weighted_kappa", "rating_spearman"),
        (f"human_agreement{BY_RATINGS}", f"human_kappa{BY_RATINGS}"),
    ),
}  # fmt: skip
_SIGNS = {"cohen_kappa": "κ", "weighted_kappa": "κ", "human_kappa": "κ", f"human_kappa{BY_RATINGS}": "κ"}
_SIGNS |= {"model_spearman": "ρ", "rating_spearman": "ρ"}
_PAIRED = {measure for several in _MATRICES.values() for measures in several for measure in measures}
DETECTED = {  # what the detectors of judges.flags found of answers
    "template_markers": "hold marks of a judge's prompt template",
    "planted_verdicts": "hold a verdict in the words that judges are asked for",
    "common_answer": "are one and the same",
    "near_duplicates": "nearly repeat one to another question",
    "instruction_overlap": "take up hardly a word of their question",
}
# What cannot be seen, or changes how the rest reads: controls, format marks (of direction, of no width, soft hyphens,
# tags), separators of lines and paragraphs; and by name those that Unicode counts among letters and marks.
_UNSEEN = frozenset({"Cc", "Cf", "Zl", "Zp"})
_BLANK = re.compile("[\u034f\u115f\u1160\u2065\u3164\uffa0\U000e0000-\U000e0fff]")


@dataclass(frozen=True, slots=True)
class Block:
    """What is known of one judge on one benchmark.

    ``lines`` are the sentences by their headings. ``columns`` and ``rows`` are a table of what differs by model.
    """

    judge: str
    kind: str
    benchmark: str
    lines: Mapping[str, Sequence[Line]]
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Who agrees with whom on a benchmark: ``rows`` are a name and a cell for each of ``names``, "" where unknown."""

    title: str
    names: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    notes: Sequence[str]


@dataclass(frozen=True, slots=True)
class Found:
    """What one detector found in a model's answers, ``said`` in words; ``examples`` are (question, text) pairs."""

    detector: str
    said: str
    keys: Sequence[str]  # of the answers
    examples: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Flagged:
    """A model of whose ``answers`` to a benchmark some look like attacks; ``marked`` where leaderboards mark it.

    ``scores`` are those that have a value without the flagged answers.
    """

    model: str
    benchmark: str
    marked: bool
    answers: int
    found: Sequence[Found]
    scores: Sequence[LeaderboardRow]


def judge_audit(
    ledger: Ledger, rows: Sequence[LeaderboardRow], *, answered: Mapping[tuple[str, str, str], int]
) -> dict[str, Any]:
    """Return what the page's section on judges shows; ``rows`` are the leaderboard's.

    ``answered`` counts a model's answers by its name, the benchmark and the version.
    """
    audits, orders = audit_queries.audits(ledger), audit_queries.judge_order(ledger)
    served = [row for row in audit_queries.served_models(ledger) if row.judge_kind not in _LOCAL]
    flagged = flagged_models(audit_queries.answer_flags(ledger), rows, answered=answered)
    return {
        "judge_warnings": judge_warnings(audits, orders, served),
        "blocks": blocks(audits),
        "matrices": matrices(audits),
        "orders": [_order(row) for row in _not_audited(orders, audits)],
        "flagged": [each for each in flagged if each.marked],
        "stray": [each for each in flagged if not each.marked],
        "served": _served(served),
    }


def blocks(audits: Sequence[AuditRow]) -> list[Block]:
    """Return a block for each judge and benchmark, people last.

    What is of two judges, or of people among themselves, stands in the matrices; a judge asked again has no block.
    """
    grouped: dict[tuple[str, str, str], list[AuditRow]] = {}
    for row in sorted(audits, key=lambda row: (row.benchmark, row.version, row.judge == HUMAN)):
        of_two = row.measure in _PAIRED and (row.other != HUMAN or row.judge == HUMAN)
        if row.judge and row.judge_kind != "retest" and not of_two:
            grouped.setdefault((row.judge, row.benchmark, row.version), []).append(row)
    return [_block(each) for each in grouped.values()]


def matrices(audits: Sequence[AuditRow]) -> list[Matrix]:
    """Return, for each benchmark, who agrees with whom: in verdicts on pairs, and in ratings."""
    found: list[Matrix] = []
    for benchmark, version in dict.fromkeys((row.benchmark, row.version) for row in audits):
        here = [row for row in audits if (row.benchmark, row.version) == (benchmark, version)]
        for title, measures in _MATRICES.items():
            alpha = {"Verdicts": "krippendorff_alpha", "Ratings": "rating_alpha"}[title]
            notes = [line(row).text for row in here if row.measure == alpha]
            found += _matrix(f"{title} on {benchmark} {version}", here, [m for each in measures for m in each], notes)
    return found


def judge_warnings(
    audits: Sequence[AuditRow], orders: Sequence[JudgeOrderRow], served: Sequence[ServedRow]
) -> list[str]:
    """Return what nobody should miss: judges by place, judges that empty answers win over, judges that changed."""
    return [*_by_place(audits, orders), *_controls_win(audits), *_changed(served)]


def flagged_models(
    flags: Sequence[FlagRow],
    rows: Sequence[LeaderboardRow],
    *,
    answered: Mapping[tuple[str, str, str], int],
) -> list[Flagged]:
    """Return the models with flagged answers, by benchmark and name; controls, which are meant to look so, are not."""
    grouped: dict[tuple[str, str, str], dict[str, list[FlagRow]]] = {}
    for flag in flags:
        if flag.kind != "control":
            place = (flag.model_name, flag.benchmark, flag.version)
            grouped.setdefault(place, {}).setdefault(flag.detector, []).append(flag)
    found = []
    for place, by_detector in grouped.items():
        scores = [row for row in rows if (row.name, row.benchmark, row.version) == place]
        found.append(
            Flagged(
                model=place[0],
                benchmark=f"{place[1]} {place[2]}",
                marked=any(detectors(row.flags) for row in scores),
                answers=answered.get(place, 0),
                found=[_found(detector, several) for detector, several in by_detector.items()],
                scores=[row for row in scores if row.unflagged_n is not None],
            )
        )
    return found


def visible(text: str) -> str:
    """Write out the marks that hide or reorder what follows, so that nothing reads otherwise than it is."""
    return "".join(f"⟨U+{ord(c):04X}⟩" if _hides(c) else c for c in text)


def _hides(c: str) -> bool:
    return (c not in "\t\n" and unicodedata.category(c) in _UNSEEN) or _BLANK.match(c) is not None


def _block(rows: Sequence[AuditRow]) -> Block:
    first = rows[0]
    of_models = [row for row in rows if row.measure in _OF_MODELS and row.other]
    lines: dict[str, list[Line]] = {}
    order = {measure: place for place, measure in enumerate(WORDS)}
    for row in sorted(rows, key=lambda row: order.get(row.measure.removesuffix(BY_RATINGS), len(order))):
        if not (row.measure in _OF_MODELS and row.other):
            said = line(row)
            lines.setdefault(said.heading, []).append(said)
    measures = [measure for measure in WORDS if any(row.measure == measure for row in of_models)]
    cells = {(row.other_name, row.measure): figure(row) for row in of_models}
    names = dict.fromkeys(row.other_name for row in of_models)
    return Block(
        judge="People" if first.judge == HUMAN else first.judge_name,
        kind=first.judge_kind if first.judge_kind == "panel" else "",
        benchmark=f"{first.benchmark} {first.version}",
        lines=lines,
        columns=[measure.replace("_", " ") for measure in measures],
        rows=[(name, [cells.get((name, measure), "") for measure in measures]) for name in names],
    )


def _matrix(title: str, rows: Sequence[AuditRow], measures: Sequence[str], notes: Sequence[str]) -> Iterable[Matrix]:
    """Yield the matrix of these measures, where any two raters have one."""
    cells: dict[frozenset[str], dict[str, str]] = {}
    names: dict[str, str] = {}
    for row in rows:
        if row.measure in measures:
            cells.setdefault(frozenset((row.judge, row.other)), {})[row.measure] = figure(row)
            names |= {row.judge: row.judge_name, row.other: row.other_name}
    order = sorted(names, key=lambda id_: (id_ == HUMAN, names[id_]))
    if len(order) < 2:
        return

    def cell(one: str, other: str) -> str:
        found = cells.get(frozenset((one, other)), {})
        return "\n".join(f"{_SIGNS[m]} {found[m]}" if m in _SIGNS else found[m] for m in measures if m in found)

    shown = ["people" if id_ == HUMAN else names[id_] for id_ in order]
    table = [(name, [cell(one, other) for other in order]) for name, one in zip(shown, order, strict=True)]
    yield Matrix(title, shown, table, notes)


def _found(detector: str, flags: Sequence[FlagRow]) -> Found:
    texts: dict[str, str] = {}  # equal ones once
    for flag in flags:
        texts.setdefault(visible(_cut(flag.detail or flag.text or "")), flag.question)
    said = DETECTED.get(detector, "were flagged")
    examples = [(question, text) for text, question in list(texts.items())[:EXAMPLES]]
    return Found(detector.replace("_", " "), said, [flag.answer for flag in flags], examples)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _order(row: JudgeOrderRow) -> dict[str, Any]:
    """Return what a judge without an audit did with the order of answers."""
    shown = {"consistent": f"{row.consistent:.0%}", "first": f"{row.first_preferred:.0%}"}
    return {"judge": row.judge_name, "benchmark": f"{row.benchmark} {row.version}", "pairs": row.pairs, **shown}


def _not_audited(orders: Sequence[JudgeOrderRow], audits: Sequence[AuditRow]) -> list[JudgeOrderRow]:
    audited = {(row.judge_name, row.benchmark, row.version) for row in audits if row.measure == "order_consistency"}
    return [row for row in orders if (row.judge_name, row.benchmark, row.version) not in audited]


def _by_place(audits: Sequence[AuditRow], orders: Sequence[JudgeOrderRow]) -> Iterable[str]:
    """Yield a warning for each judge that mostly prefers a place, by its audit or, where it has none, its verdicts."""
    alone = {(r.judge_name, r.benchmark, r.version, r.measure): r.value for r in audits if not r.other}
    places = {
        key[:3]: (value, alone.get((*key[:3], "first_preferred")))
        for key, value in alone.items()
        if key[3] == "order_consistency"
    }
    for row in _not_audited(orders, audits):
        places[row.judge_name, row.benchmark, row.version] = row.consistent, row.first_preferred
    for (judge, benchmark, version), (consistent, first) in places.items():
        if consistent is not None and first is not None and (consistent < 0.5 or abs(first - 0.5) >= 0.2):
            yield (
                f"{judge} mostly judges by place on {benchmark} {version}: it kept its preference in {consistent:.0%} "
                f"of the pairs when the answers changed places, and preferred the answer shown first in {first:.0%} of "
                "its judgments (50% would be fair). Its win rates say little about quality."
            )


def _controls_win(audits: Sequence[AuditRow]) -> Iterable[str]:
    found: dict[tuple[str, str], list[str]] = {}
    for row in audits:
        if row.measure in ("null_control", "null_rating_control") and row.value is not None and row.value < 0.5:
            said = f"{row.other_name} loses in {figure(row)} of {row.n:,} cases"
            found.setdefault((row.judge_name, f"{row.benchmark} {row.version}"), []).append(said)
    for (judge, benchmark), several in found.items():
        yield f"{judge} can be won over by answers that say nothing: on {benchmark} {' and '.join(several)}."


def _changed(served: Sequence[ServedRow]) -> Iterable[str]:
    names = sorted({row.judge_name for row in served if row.changed})
    if names:
        who = f"{', '.join(names[:-1])} and {names[-1]} were" if len(names) > 1 else f"{names[0]} was"
        yield f"{who} served by several models or systems within one run: those judgments may not be of one kind."


def _served(rows: Sequence[ServedRow]) -> list[dict[str, Any]]:
    return [
        {
            "judge": row.judge_name,
            "model": visible(row.served_model) or "not told",
            "fingerprint": visible(row.fingerprint) or "not told",
            "run": row.run or "",
            "times": " to ".join(dict.fromkeys(f"{time:%Y-%m-%d %H:%M}" for time in (row.first, row.last))) + " UTC",
            "judgments": row.judgments,
            "changed": row.changed,
        }
        for row in rows
    ]
