"""The ledger's answers and judgments as other projects' files: imported rows as they came, our own as theirs would be.

An own judgment is written where the project's files can say it: for MT-Bench ratings and pairs of games, for
AlpacaEval preferences, for Arena-Hard labels. Answers whose text is not known are left out.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.records import Question
from results.errors import LedgerError
from results.interchange import BENCHMARKS, alpaca_eval, arena_hard, fastchat
from results.interchange.kept import kept_rows
from results.interchange.rows import Target, file_names, write_lines, write_list
from results.queries import display_names

if TYPE_CHECKING:
    from results.store import Ledger

NOT_THERE = "[not in the imported file:"
"""How the text of an answer begins that stands for one which an imported file did not hold."""

_FOLDERS = {"mt_bench": "mt_bench", "arena_hard": "arena-hard-{}", "alpaca_eval": "alpaca_eval-{}"}

_ANSWERS = """
SELECT a.model, a.question, a.turn, a.text, a.key, epoch(a.recorded_at) AS time
FROM answers a WHERE a.benchmark = $1 AND a.version = $2
ORDER BY coalesce(a.position, epoch_ns(a.recorded_at)), a.key
"""
_JUDGMENTS = """
SELECT r.question, r.turn, r.model, r.baseline, r.judge, r.answer_order, r.answers, r.messages, g.text, v.value,
    epoch(g.recorded_at) AS time
FROM judge_requests r JOIN judgments g ON g.key = r.judgment
LEFT JOIN verdicts v ON v.request = r.key AND v.judge = r.judge
WHERE r.benchmark = $1 AND r.version = $2 AND r.key NOT IN (SELECT unnest($3::VARCHAR[]))
ORDER BY coalesce(g.position, epoch_ns(g.recorded_at)), r.key
"""


@dataclass(frozen=True, slots=True)
class Reply:
    """An own judgment as its request and verdict show it; names instead of identities, texts instead of keys."""

    question: Question
    turn: int
    model: str
    baseline: str
    judge: str
    order: str
    answers: tuple[str, ...]
    messages: list[dict[str, str]]
    text: str
    value: float | None
    time: float


Files = dict[Target, list[dict[str, Any]]]
"""Where files lie below a folder, and the rows of each."""


def export_files(
    ledger: Ledger, kind: str, folder: Path, *, version: str | None = None, models: Collection[str] | None = None
) -> list[Path]:
    """Write ``kind``'s files below ``folder`` and return their paths; ``models`` are names or identities (None: all).

    Imported rows come first and as they came, in their order; ``version`` is the benchmark's.
    """
    names = display_names(ledger)
    named = {m.id: m.name for m in ledger.models()}
    chosen = None if models is None else {i for i, name in names.items() if {i, name, named[i]} & set(models)}
    files: Files = defaultdict(list)
    imported = kept_rows(ledger, kind=kind, version=version, models=chosen)
    for row in imported:
        files[_below(kind, row.version, row.target)].append(row.raw)
    answered = {key for row in imported if not row.requests for key in row.answers}
    written = {key for row in imported for key in row.requests}
    covered = _answered(ledger, kind, answered)
    for benchmark, own_version in ledger.benchmarks():
        if benchmark == BENCHMARKS[kind] and version in (None, own_version):
            place = _Place(ledger, kind, own_version, names, chosen)
            for target, rows in _own(place, covered=covered, written=written).items():
                files[_below(kind, own_version, target)] += rows
    paths = _paths(folder, files, names.values())
    write = write_list if kind == "alpaca_eval" else write_lines
    for path in sorted(paths):
        write(path, [row for target in paths[path] for row in files[target]])
    return sorted(paths)


def _paths(folder: Path, targets: Collection[Target], names: Iterable[str]) -> dict[Path, list[Target]]:
    """Return what goes where: names of models, judges and versions become parts of a path, no two alike.

    ``names`` are further ones that there are, so that what a file is called does not depend on what else is exported.
    """
    parts = file_names({*names, *(name for target in targets for name in target.names)})
    found: dict[Path, list[Target]] = defaultdict(list)
    for target in targets:
        found[folder / target.form.format(*(parts[name] for name in target.names))].append(target)
    for path in found:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise LedgerError(f"{path} does not lie in {folder}: nothing was exported; remove the link that leads away")
    return found


@dataclass(frozen=True, slots=True)
class _Place:
    ledger: Ledger
    kind: str
    version: str
    names: Mapping[str, str]
    chosen: Collection[str] | None

    @property
    def benchmark(self) -> tuple[str, str]:
        return BENCHMARKS[self.kind], self.version

    def wants(self, model: str) -> bool:
        return self.chosen is None or model in self.chosen


def _below(kind: str, version: str, target: Target) -> Target:
    """Return the target below the folder of its benchmark and, where a project has several, its version."""
    folder = _FOLDERS[BENCHMARKS[kind]]
    return Target(f"{folder}/{target.form}", (*[version] * folder.count("{}"), *target.names))


def _answered(ledger: Ledger, kind: str, keys: Collection[str]) -> set[tuple[str, str, str]]:
    """Return whose answers to what (folder, model, question) imported files of answers hold."""
    query = "SELECT version, model, question FROM answers WHERE key IN (SELECT unnest(?::VARCHAR[]))"
    rows = ledger.sql(query, list(keys)).fetchall()
    return {(_shelf(kind, version), model, question) for version, model, question in rows}


def _shelf(kind: str, version: str) -> str:
    return _FOLDERS[BENCHMARKS[kind]].format(version)


def _own(place: _Place, *, covered: set[tuple[str, str, str]], written: Collection[str]) -> Files:
    """Return the files of what was not imported; answers written are added to ``covered``."""
    questions = {q.id: q for q in place.ledger.questions(*place.benchmark)}
    texts: dict[str, str] = {}
    told: dict[str, dict[str, dict[int, tuple[str, str, float]]]] = defaultdict(lambda: defaultdict(dict))
    for model, question, turn, text, key, time in place.ledger.sql(_ANSWERS, *place.benchmark).fetchall():
        texts[key] = text
        told[question][model][turn] = (text, key, time)  # the last one stays
    files: Files = defaultdict(list)
    for q in questions.values():
        for model, turns in told[q.id].items():
            whole = len(turns) == len(q.turns) and not any(t.startswith(NOT_THERE) for t, _, _ in turns.values())
            where = _shelf(place.kind, place.version), model, q.id
            if whole and place.wants(model) and where not in covered:
                covered.add(where)
                target, row = _answer(place.kind, q, place.names.get(model, model), [turns[t] for t in sorted(turns)])
                files[target].append(row)
    judged = _WRITERS[place.kind](_replies(place, questions, texts, written))
    for target, rows in judged.items():
        files[target] += rows
    return files


def _replies(
    place: _Place, questions: Mapping[str, Question], texts: Mapping[str, str], written: Collection[str]
) -> list[Reply]:
    def named(identity: str | None) -> str:
        return place.names.get(identity, identity) if identity else ""

    found = []
    for row in place.ledger.sql(_JUDGMENTS, *place.benchmark, list(written)).fetchall():
        question, turn, model, baseline, judge, order, answers, messages, text, value, time = row
        shown = tuple(texts.get(answer, "") for answer in answers)
        if question in questions and place.wants(model):
            found.append(
                Reply(questions[question], turn, named(model), named(baseline), named(judge), order, shown,
                      json.loads(messages), text, value, time)
            )  # fmt: skip
    return found


def _answer(kind: str, q: Question, model: str, turns: list[tuple[str, str, float]]) -> tuple[Target, dict[str, Any]]:
    texts, (_, key, time) = [text for text, _, _ in turns], turns[-1]
    if kind == "fastchat":
        row = fastchat.answer_row(question=q.id, model=model, turns=texts, key=key, time=time)
        return fastchat.answers_path(model), row
    if kind == "alpaca_eval":
        row = alpaca_eval.output_row(instruction=q.turns[0], dataset=q.category, model=model, text=texts[0])
        return alpaca_eval.answers_path(model), row
    row = arena_hard.answer_row(question=q.id, prompt=q.turns[0], model=model, text=texts[0], key=key, time=time)
    return arena_hard.answers_path(model), row


def _fastchat(replies: Iterable[Reply]) -> Files:
    files: Files = defaultdict(list)
    for r in (r for r in replies if r.order == "single"):
        files[fastchat.judgments_path(r.judge, paired=False)].append(
            fastchat.single_row(
                question=r.question.id, model=r.model, judge=r.judge, prompt_name=_prompt_name(r, paired=False),
                prompt=_user(r), text=r.text, value=r.value, turn=r.turn, time=r.time,
            )
        )  # fmt: skip
    for games in _pairs(replies, shown_first=("model_first", "baseline_first")):
        if None in games:
            continue  # a row of FastChat's holds both games
        one, two = (game for game in games if game)
        files[fastchat.judgments_path(one.judge, paired=True)].append(
            fastchat.pair_row(
                question=one.question.id, model=one.model, baseline=one.baseline, judge=one.judge,
                prompt_name=_prompt_name(one, paired=True), prompts=(_user(one), _user(two)),
                texts=(one.text, two.text), values=(one.value, two.value), turn=one.turn, time=two.time,
            )
        )  # fmt: skip
    return files


def _alpaca(replies: Iterable[Reply]) -> Files:
    files: Files = defaultdict(list)
    for r in replies:
        if len(r.answers) == 2 and not any(text.startswith(NOT_THERE) for text in r.answers):
            files[alpaca_eval.annotations_path(r.model, r.judge)].append(
                alpaca_eval.annotation_row(
                    instruction=r.question.turns[0], dataset=r.question.category, model=r.model, baseline=r.baseline,
                    judge=r.judge, outputs=(r.answers[0], r.answers[1]), value=r.value,
                )
            )  # fmt: skip
    return files


def _arena(replies: Iterable[Reply]) -> Files:
    files: Files = defaultdict(list)
    for games in _pairs(replies, shown_first=("baseline_first", "model_first")):
        [one, *_] = [game for game in games if game]
        files[arena_hard.judgments_path(one.model, one.judge)].append(
            arena_hard.judgment_row(
                question=one.question.id, category=one.question.category, model=one.model, baseline=one.baseline,
                judge=one.judge, games=[_game(game) for game in games],
            )
        )  # fmt: skip
    return files


def _game(reply: Reply | None) -> dict[str, Any] | None:
    if reply is None:
        return None
    score = arena_hard.label(reply.value, order=reply.order)
    return arena_hard.game(score=score, text=reply.text, messages=reply.messages)


def _pairs(replies: Iterable[Reply], *, shown_first: tuple[str, str]) -> list[tuple[Reply | None, Reply | None]]:
    """Return both games of each comparison, in the order in which the project plays them; None for one not played."""
    played: dict[tuple[str, ...], dict[str, list[Reply]]] = defaultdict(lambda: defaultdict(list))
    for r in replies:
        if r.order in shown_first:
            played[r.judge, r.model, r.baseline, r.question.id, str(r.turn), *r.answers][r.order].append(r)
    found: list[tuple[Reply | None, Reply | None]] = []
    for by_order in played.values():
        first, second = (by_order[order] for order in shown_first)
        for n in range(max(len(first), len(second))):
            found.append((first[n] if n < len(first) else None, second[n] if n < len(second) else None))
    return found


def _prompt_name(reply: Reply, *, paired: bool) -> str:
    return fastchat.prompt_name(paired=paired, reference=bool(reply.question.reference), turn=reply.turn)


def _user(reply: Reply) -> str:
    return next((m["content"] for m in reversed(reply.messages) if m["role"] == "user"), "")


_WRITERS = {"fastchat": _fastchat, "alpaca_eval": _alpaca, "arena_hard": _arena}
