"""Which question of which benchmark an imported row is about, which answers its judge saw, and which of them count."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from evals.alpaca_annotators import annotator
from evals.assets import AssetError
from evals.benchmark import Benchmark, Locate, published_answer, published_model
from evals.catalog import find_benchmark, stored_benchmark
from evals.keys import content_key
from evals.mt_bench import REFERENCES
from evals.records import Question, Selection
from results.interchange import BENCHMARKS, arena_hard, fastchat
from results.interchange.export import NOT_THERE
from results.interchange.rows import Game, Row
from results.store import Ledger

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"  # that of AlpacaEval 2.0
ARENA_VERSIONS = ("v0.1", "v2.0")

_STORED = """
SELECT question, turn, text FROM answers WHERE benchmark = ? AND version = ? AND model = ? AND NOT starts_with(text, ?)
ORDER BY coalesce(position, epoch_ns(recorded_at)), key
"""

_TURNS = """
SELECT a.model, m.name, a.question, a.turn, a.key, any_value(starts_with(a.text, $4)) AS stands_in,
    max(g.position) AS judged, any_value(coalesce(a.position, epoch_ns(a.recorded_at))) AS age
FROM answers a JOIN models m ON m.id = a.model
LEFT JOIN (
    SELECT unnest(r.answers) AS answer, coalesce(g.position, epoch_ns(g.recorded_at)) AS position
    FROM judge_requests r JOIN judgments g ON g.key = r.judgment WHERE r.benchmark = $1 AND r.version = $2
) g ON g.answer = a.key
WHERE a.benchmark = $1 AND a.version = $2 AND a.model IN (SELECT unnest($3::VARCHAR[]))
GROUP BY ALL ORDER BY stands_in DESC, judged NULLS FIRST, age, a.key
"""


@dataclass(slots=True)
class Known:
    """What is known beside the files: the benchmark's versions and questions, and what the ledger holds."""

    kind: str
    asset: Locate
    ledger: Ledger
    missing: dict[str, AssetError] = field(default_factory=dict)  # by version, why its questions cannot be had
    _versions: dict[str, tuple[Benchmark, dict[str, Question]]] = field(default_factory=dict)
    _by_text: dict[str, list[str]] = field(default_factory=dict)
    _answers: dict[tuple[str, str], dict[tuple[str, int], list[str]]] = field(default_factory=dict)

    def version(self, version: str) -> tuple[Benchmark, dict[str, Question]]:
        """Return the benchmark of this version and its questions; raises AssetError where they cannot be had."""
        if version not in self._versions:
            name = BENCHMARKS[self.kind]
            found = stored_benchmark(name, version, asset=self.asset) or find_benchmark(name, asset=self.asset)
            questions = [replace(q, version=version) for q in found.questions()]
            self._versions[version] = found, {q.id: q for q in questions}
        return self._versions[version]

    def questions(self, version: str) -> dict[str, Question]:
        """Return the questions of this version; none where they cannot be had, which ``missing`` tells from then on."""
        if version not in self.missing:
            try:
                return self.version(version)[1]
            except AssetError as error:
                self.missing[version] = error
        return {}

    def by_text(self, version: str, text: str, occurrence: int) -> Question | None:
        """Return the question with this text; of several, the one that this occurrence of it in a file is about."""
        _, questions = self.version(version)
        if not self._by_text:
            for q in questions.values():
                self._by_text.setdefault(q.turns[0], []).append(q.id)
        ids = self._by_text.get(text)
        return questions[ids[occurrence % len(ids)]] if ids else None

    def stored(self, version: str, model: str, question: str, turn: int) -> list[str]:
        """Return the texts of a model's answers that the ledger held before this file, the last one last."""
        if (version, model) not in self._answers:
            texts = defaultdict(list)
            rows = self.ledger.sql(_STORED, BENCHMARKS[self.kind], version, model, NOT_THERE).fetchall()
            for asked, number, text in rows:
                texts[asked, number].append(text)
            self._answers[version, model] = texts
        return self._answers[version, model].get((question, turn), [])

    def forget_answers(self) -> None:
        """Look at the ledger's answers again from now on."""
        self._answers.clear()

    def baseline(self, question: Question) -> str:
        """Return the name of the model that the benchmark itself compares with; "baseline" where it has none."""
        benchmark, _ = self.version(question.version)
        return benchmark.baseline(question) if benchmark.baseline else "baseline"

    def published(self, question: Question, name: str) -> Sequence[str]:
        """Return what a baseline's published answer to the question says, turn by turn; nothing if there is none."""
        benchmark, _ = self.version(question.version)
        if benchmark.baseline is None or benchmark.baseline_answers is None or benchmark.baseline(question) != name:
            return ()
        try:
            return benchmark.baseline_answers(name).get(question.id, ())
        except AssetError:
            return ()


def placing(known: Known, rows: Sequence[Row]) -> Callable[[Row], Question | None]:
    """Return what finds, for one file's rows in their order, the question of each; None where there is no such one."""
    if known.kind == "alpaca_eval":
        return partial(_by_instruction, known, Counter())
    if known.kind == "arena_hard":
        return partial(_by_identifier, known)
    games = defaultdict(list)
    for row in rows:
        for g in row.games:
            games[g.judge, g.model].append(g)
    versions = {whose: _references(known, played) for whose, played in games.items()}
    return partial(_of_mt_bench, known, versions)


def shown(known: Known, question: Question, game: Game, *, model: str, baseline: str | None) -> list[tuple[str, ...]]:
    """Return what the judge saw of the model and, beside it, of the baseline (both names), turn by turn.

    The texts are the row's, else the prompt's, else the ledger's or the benchmark's, else ones that say so.
    """
    names = [model, *([baseline] if baseline else [])]
    if game.shown is not None:
        return [(text,) for text in game.shown]
    ways = _in_prompt(known, question, game)
    if len(ways) == 1:
        return ways[0]
    if ways:
        identity = published_model(model).id
        return max(ways, key=lambda way: way[0][-1] in known.stored(question.version, identity, question.id, game.turn))
    return [_unseen(known, question, game, name) for name in names]


def _in_prompt(known: Known, question: Question, game: Game) -> list[list[tuple[str, ...]]]:
    if game.prompt is None:
        return []
    paired = game.order != "single"
    if known.kind == "arena_hard":
        ways = arena_hard.shown(game.prompt.text, question.turns)
    else:
        ways = fastchat.shown(game.prompt.text, question.turns, turn=game.turn, paired=paired)
    return [list(way[::-1] if game.order == "baseline_first" else way) for way in ways]


def _unseen(known: Known, question: Question, game: Game, name: str) -> tuple[str, ...]:
    """Return stand-ins where there was a prompt that cannot be read; else the last texts known, where they are."""
    turns = range(1, game.turn + 1)
    if game.prompt is not None:
        shown_in = content_key(game.prompt.text)
        return tuple(f"{NOT_THERE} turn {turn} of {name} in the judge's prompt {shown_in}]" for turn in turns)
    published = known.published(question, name)
    if len(published) >= game.turn:
        return tuple(published[: game.turn])
    found = [known.stored(question.version, published_model(name).id, question.id, turn) for turn in turns]
    return tuple(texts[-1] if texts else stand_in(name, turn) for turn, texts in zip(turns, found, strict=True))


def strange_turn(row: Row, question: Question) -> int | None:
    """Return a turn that the row judges and that the question does not have; None where there is no such."""
    return next((game.turn for game in row.games if not 1 <= game.turn <= len(question.turns)), None)


def notes(known: Known, *, versions: Iterable[str], faulty: bool) -> list[str]:
    """Return what else is to be told of a file whose rows are of these versions."""
    found = []
    for version in sorted(versions) if known.kind == "alpaca_eval" else ():
        name = version.removeprefix("2.0-")
        if version != "2.0" and not _in_package(name):
            found.append(
                f"annotator {name!r} is none of the installed alpaca_eval package's that can judge here: "
                "its annotations are scored as they are"
            )
    if faulty:
        found += [f"{version}'s questions cannot be had: {error}" for version, error in known.missing.items()]
    return found


def _in_package(name: str) -> bool:
    try:
        annotator(name)
    except ValueError:
        return False
    return True


def stand_in(name: str, turn: int) -> str:
    """Return the text that stands for an answer which no file held."""
    return f"{NOT_THERE} turn {turn} of {name}]"


def complete(known: Known, version: str, models: set[str]) -> None:
    """Let stand-ins take the place of turns that no file held, and say which of two texts of an answer counts.

    That is the one that was judged last (a file's later judgments are about answers that were made again), or else
    the one that was stored last; but never a stand-in where there is a text.
    """
    ledger, benchmark = known.ledger, BENCHMARKS[known.kind]
    _, questions = known.version(version)
    counts: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    names, doubled = dict[str, str](), set[str]()
    rows = ledger.sql(_TURNS, benchmark, version, sorted(models), NOT_THERE).fetchall()
    for model, name, question, turn, key, *_ in rows:
        names[model] = name
        if turn in counts[model, question]:
            doubled.add(model)
        counts[model, question][turn] = key
    for (model, question), turns in counts.items():
        for turn in range(1, len(questions[question].turns) + 1):
            if turn not in turns:
                text = stand_in(names[model], turn)
                answer = published_answer(questions[question], model=model, turn=turn, text=text)
                turns[turn] = answer.key
                ledger.add(answer)
    selections = ledger.selections(benchmark=benchmark, version=version)
    ours = {s.model for s in selections if not s.judges}
    of_runs = {s.model for s in selections if s.judges}
    for model in sorted(models & (doubled | ours) - of_runs):
        keys = [key for (whose, _), turns in counts.items() if whose == model for key in turns.values()]
        ledger.add(
            Selection(
                model=model, benchmark=benchmark, version=version, questions=tuple(questions), answers=tuple(keys),
                baseline=None, judges=(),
            )
        )  # fmt: skip


def _by_instruction(known: Known, seen: Counter[tuple[str, ...]], row: Row) -> Question | None:
    judge = row.games[0].judge if row.games else ANNOTATOR
    version = "2.0" if judge == ANNOTATOR else f"2.0-{judge}"
    slot = (row.schema, row.model, version, row.question)
    seen[slot] += 1
    return known.by_text(version, row.question, seen[slot] - 1)


def _by_identifier(known: Known, row: Row) -> Question | None:
    for version in ARENA_VERSIONS:
        if found := known.questions(version).get(row.question):
            return found
    if known.missing.keys() >= set(ARENA_VERSIONS):
        raise known.missing[ARENA_VERSIONS[0]]
    return None


def _of_mt_bench(known: Known, versions: dict[tuple[str, str], str], row: Row) -> Question | None:
    version = versions[row.games[0].judge, row.games[0].model] if row.games else "1"
    paired = bool(row.games) and row.games[0].order != "single"
    _, questions = known.version(version + "-pairwise" if paired else version)
    return questions.get(row.question)


def _references(known: Known, games: Sequence[Game]) -> str:
    """Return the version most of whose reference answers stand in these prompts; "1" where none does."""
    _, questions = known.version("1")
    found = [
        (g.question, fastchat.references(g.prompt.text, questions[g.question].turns, turn=g.turn))
        for g in games
        if g.prompt and g.question in questions and "The Start of Reference Answer" in g.prompt.text
    ]
    prompts = [(question, seen) for question, seen in found if seen]
    fits = Counter({"1": 0})
    for version in ("1", *(f"1-{name}" for name in REFERENCES[1:])):
        if fits["1"] == len(prompts):
            break
        asked = known.questions(version)
        fits[version] = sum(q in asked and asked[q].reference[: len(seen)] == seen for q, seen in prompts)
        if version in known.missing and 2 * fits["1"] < len(prompts):
            raise known.missing[version]
    return max(fits, key=lambda version: fits[version])
