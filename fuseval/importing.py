"""What a file's rows are made into: models, questions, answers, judge requests, judgments and verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from evals.benchmark import published_answer, published_model
from evals.records import Answer, Imported, JudgeRequest, Judgment, Message, Model, Question, Sampling, Verdict
from fuseval.placing import Known, shown
from judges.replies import verdict
from results.interchange import BENCHMARKS, FORMATS, MEANINGS
from results.interchange.kept import Held, already, digest, keep
from results.interchange.rows import Game, Row, Text

T = TypeVar("T")

_REASONS = 3  # of rows left out, in a file's summary
_SAME = 1e-6  # stored preferences are rounded
_UNKNOWN = Sampling()


@dataclass(slots=True)
class File:
    """What a file was made into; ``seen`` counts equal rows and equal judgments."""

    path: Path
    rename: str | None
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    schemas: Counter[str] = field(default_factory=Counter)
    versions: set[str] = field(default_factory=set)
    models: dict[str, None] = field(default_factory=dict)
    count: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)

    def again(self, what: str) -> int:
        """Return how often the row or judgment with this digest was met before."""
        self.seen[what] += 1
        return self.seen[what] - 1

    def name(self, row: Row, name: str) -> str:
        """Return what the ledger calls the model that the row calls ``name``."""
        return self.rename if self.rename and name == row.model else name

    def summary(self, kind: str) -> dict[str, object]:
        """Return what is told of the file: what it is, what was in it, how much was new, what was left out and why."""
        what = " and ".join(dict.fromkeys(MEANINGS[schema] for schema in self.schemas))
        reasons = Counter(self.faults).most_common()
        why = [f"{reason} ({n} times)" if n > 1 else reason for reason, n in reasons[:_REASONS]]
        why += [f"and {len(reasons) - _REASONS} reasons more"] if len(reasons) > _REASONS else []
        return {
            "file": str(self.path),
            "recognised": f"{kind} {what}" if what else None,
            "benchmark": BENCHMARKS[kind],
            "versions": ", ".join(sorted(self.versions)),
            "models": ", ".join(self.models),
            **{each: self.count[each] for each in ("answers", "judgments", "unreadable", "differ", "unplayed", "new")},
            "skipped": len(self.faults),
            "why": "; ".join(why + self.notes),
        }


@dataclass(frozen=True, slots=True)
class _Asked:
    """The keys that a game's records have, and the digest of what the file says of it."""

    content: str
    request: str
    judgment: str


@dataclass(slots=True)
class Batch:
    """The records of some rows of a file, until they are stored."""

    known: Known
    file: File
    position: int
    models: dict[str, Model] = field(default_factory=dict)
    questions: dict[str, str] = field(default_factory=dict)  # version -> a question of it
    answers: dict[str, Answer] = field(default_factory=dict)
    told: dict[tuple[str, str, str, int, str], Answer] = field(default_factory=dict)  # by what their keys are made of
    asked: dict[str, tuple[JudgeRequest, Judgment, Verdict]] = field(default_factory=dict)
    kept: dict[str, Imported] = field(default_factory=dict)

    def take(self, row: Row, question: Question) -> None:
        """Make the records of one row."""
        name = self.file.name(row, row.model)
        model = self._model(name)
        self.file.schemas[row.schema] += 1
        self.file.versions.add(question.version)
        self.file.models[name] = None
        self.file.count["unplayed"] += row.unread
        held = []
        for said in row.conversations:
            whose = self._model(self.file.name(row, said.model))
            if beyond := max(0, len(said.turns) - len(question.turns)):
                turns = f"question {question.id} has {len(question.turns)} turns, the row answers {len(said.turns)}"
                self.file.faults += [turns] * beyond
            for turn, text in enumerate(said.turns[: len(question.turns)], 1):
                key = self._answer(question, whose, turn, text.text).key
                held.append(Held(text, "answer", key, key))
        requests = []
        for game in row.games:
            same = self._ask(row, question, game)
            requests.append(same.request)
            held.append(Held(game.text, "judgment", same.judgment, same.content))
            held += [Held(text, "request", same.request, same.content, role) for role, text in _messages(game)]
        target = FORMATS[self.known.kind].target(row, model=name)
        kept = keep(
            row, version=question.version, model=model, target=target, held=held, requests=requests,
            position=self.position + len(self.kept), again=self.file.again,
        )  # fmt: skip
        self.kept[kept.key] = kept

    def store(self, touched: dict[str, set[str]]) -> None:
        """Add what the ledger does not hold yet, and count it."""
        ledger = self.known.ledger
        ledger.add(*self.models.values())
        for version in self.questions:
            if version not in touched:
                ledger.add(*self.known.version(version)[1].values())
                touched[version] = set()
        answers = _new(self.answers, ledger.have("answers", self.answers))
        asked = _new(self.asked, ledger.have("judge_requests", self.asked))
        kept = _new(self.kept, already(ledger, self.kept))
        ledger.add(*answers, *(record for records in asked for record in records), *kept)
        for a in self.answers.values():
            touched[a.version].add(a.model)
        self.file.count["answers"] += len(self.answers)
        self.file.count["judgments"] += len(self.asked)
        self.file.count["unreadable"] += sum(read.value is None for _, _, read in self.asked.values())
        self.file.count["new"] += len(answers) + len(asked)

    def _model(self, name: str) -> str:
        if name not in self.models:
            self.models[name] = published_model(name)
        return self.models[name].id

    def _answer(self, question: Question, model: str, turn: int, text: str) -> Answer:
        slot = question.version, question.id, model, turn, text
        if slot not in self.told:
            answer = published_answer(question, model=model, turn=turn, text=text)
            self.told[slot] = self.answers[answer.key] = answer
            self.questions[question.version] = question.id
        return self.told[slot]

    def _ask(self, row: Row, question: Question, game: Game) -> _Asked:
        name = self.file.name(row, game.model)
        beside = (game.baseline or self.known.baseline(question)) if game.order != "single" else None
        judge, model, baseline = self._model(game.judge), self._model(name), self._model(beside) if beside else None
        texts = shown(self.known, question, game, model=name, baseline=beside)
        last = []
        for whose, turns in zip((model, baseline), texts, strict=False):
            made = [self._answer(question, str(whose), turn, text) for turn, text in enumerate(turns, 1)]
            last.append(made[-1].key)
        messages = tuple(Message(role, text.text) for role, text in _messages(game))
        said = digest(
            row.schema, question.version, question.id, judge, model, baseline, game.turn, game.order, game.text.text,
            *(message.content for message in messages), *(f"{token} {logprob}" for token, logprob in game.top_logprobs),
        )  # fmt: skip
        again = self.file.again(said)
        request = JudgeRequest(
            key=digest("imported request", said, again),
            judgment=digest("imported judgment", said, again),
            judge=judge,
            benchmark=question.benchmark,
            version=question.version,
            question=question.id,
            turn=game.turn,
            model=model,
            baseline=baseline,
            order=game.order,
            answers=tuple(last),
            messages=messages,
            sampling=_UNKNOWN,
            reply=game.reply,
        )
        judgment = Judgment(
            key=request.judgment,
            judge=judge,
            text=game.text.text,
            finish_reason="stop",
            top_logprobs=game.top_logprobs,
            prompt_tokens=0,
            output_tokens=0,
            seconds=0.0,
            served_model=game.judge,
        )
        read = verdict(request, judgment)
        value, file_says = read.value, game.said
        if (value is None) != (file_says is None) or abs((value or 0.0) - (file_says or 0.0)) > _SAME:
            self.file.count["differ"] += 1
        self.asked[request.key] = request, judgment, read
        return _Asked(said, request.key, judgment.key)


def _messages(game: Game) -> Iterator[tuple[str, Text]]:
    if game.system:
        yield "system", game.system
    if game.prompt:
        yield "user", game.prompt


def _new(records: Mapping[str, T], stored: Collection[str]) -> list[T]:
    return [record for key, record in records.items() if key not in stored]
