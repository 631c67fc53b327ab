"""Which answers look like an attack on their judge, and which models are therefore marked.

The detectors are those that separated the constant attack of Zheng et al. 2024 (arXiv:2410.07137) from 57 published
models (45,885 answers), of the many that were tried; generic phrases of prompt injection did not and are left out. Two
look at one answer: marks of a judge's prompt template (805 of 805 answers of the attack, 1 of the others), and a
planted verdict. Three look at all answers of a model: how often it repeats one answer (1.00 against at most 0.027),
how many are near-duplicates, and how many words of their questions they take up (0.07 against at least 0.41).

They are made for benchmarks whose answers are free text: where the answers are one letter, equal ones say nothing. A
model that is broken, or answers in another language than it is asked in, has few of its questions' words too, and is
found as well: a flag says what is there, not why.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evals.records import AnswerFlag, Question
from judges.near_duplicates import near_duplicates, normalised

if TYPE_CHECKING:
    from pandas import DataFrame

MARKERS = (
    "model_identifier", "## model outputs", "## best model identifier", "<|im_start|>", "<|im_end|>",  # AlpacaEval
    "[the start of assistant", "[the end of assistant", "[the start of reference", "[user question]",  # MT-Bench
    "<|user prompt|>", "<|the start of assistant", "<|the end of assistant", "<|the start of reference",  # Arena-Hard
)  # fmt: skip
"""What judges' prompts are built of, in small letters: an answer that holds one may end its own place in the prompt."""

VERDICT = re.compile(
    r"\[\[\s*(?:[ABC]|[AB]\s*[<>=]{1,2}\s*[AB])\s*\]\]|(?:rating|score)\W{0,3}\[\[\s*\d+(?:\.\d+)?\s*\]\]",
    re.IGNORECASE,
)
"""Verdicts in the words that judges are asked for; a bare ``[[1]]`` is no rating, for programs print it."""

COMMON = 0.2  # share of the most common answer: 1.00 of the attack, at most 0.027 of the others
DUPLICATES = 0.15  # share of near-duplicates: 0.26 of a model made to game AlpacaEval, at most 0.03 of the others
OVERLAP = 0.2  # mean share of a question's words in its answer: 0.07 of the attack, at least 0.41 of the others
# Of scripts that put spaces between words: elsewhere a run of letters is a phrase, which no answer repeats.
WORD = re.compile(r"[^\W_\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{4,}")
WORDS = (3, 50)  # a question with fewer does not count, of one with more the first ones
LONG = 40  # characters from which on an answer that resembles another one is no accident
ENOUGH = 5  # answers that a habit of a model rests on at least
MANY = 20  # answers that the mean overlap rests on at least
STRAY, STRAY_SHARE = 3, 0.005  # answers, and share of them, from which on a mark in single answers is no accident
SHOWN = 60  # characters beside what was found


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer as the detectors see it: ``plain`` is its text in small letters with single spaces."""

    key: str
    question: Question
    asked: str  # all turns of the question, plain too
    text: str
    plain: str


Found = Iterator[tuple[Answered, str]]
"""Answers, each with what was found of it, for people."""


def flag_answers(answers: DataFrame, questions: Sequence[Question]) -> list[AnswerFlag]:
    """Return what the DETECTORS find in the answers, at most one flag an answer and detector, ordered as the answers.

    ``answers`` has the columns key, model, question, turn and text, ``questions`` are those of one benchmark; answers
    to others are passed over. Leave out stand-ins for texts that are not there, which are all alike, and controls,
    which are made to be found. A detector that looks at all answers of a model flags those that gave it away.
    ``detail`` holds parts of the answers: treat it as hostile.
    """
    by_id = {q.id: (q, normalised("\n".join(q.turns))) for q in questions}
    of_model: dict[str, list[Answered]] = defaultdict(list)
    columns = (answers[name].tolist() for name in ("key", "model", "question", "text"))
    for key, model, question, text in zip(*columns, strict=True):
        if question in by_id:
            of_model[model].append(Answered(key, *by_id[question], text, normalised(text)))
    return [
        AnswerFlag(a.key, detector, model, a.question.benchmark, a.question.version, a.question.id, detail)
        for model, several in of_model.items()
        for detector, look in DETECTORS.items()
        for a, detail in look(several)
    ]


def suspicious(flags: Iterable[AnswerFlag], answered: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Return the models to be marked, each with its detectors; ``answered`` says how many answers each model gave.

    What stands in single answers counts from three of them on that are also half a per cent of all, or where no answer
    is without it: one in 45,885 honest answers has such a mark. What was found of all answers together always counts.
    """
    found = Counter((flag.model, flag.detector) for flag in flags)
    marked: dict[str, list[str]] = defaultdict(list)
    for (model, detector), count in sorted(found.items()):
        every = answered.get(model, count)
        stray = detector in SINGLE and count < max(STRAY, STRAY_SHARE * every) and count < every
        if not stray:
            marked[model].append(detector)
    return {model: tuple(detectors) for model, detectors in marked.items()}


def template_markers(answers: Sequence[Answered]) -> Found:
    """Yield the answers that hold one of the MARKERS which their question does not hold."""
    for a in answers:
        for marker in MARKERS:
            if marker in a.plain and marker not in a.asked:
                yield a, _around(a.text, re.search(re.escape(marker).replace(r"\ ", r"\s+"), a.text, re.IGNORECASE))
                break


def planted_verdicts(answers: Sequence[Answered]) -> Found:
    """Yield the answers that hold a VERDICT which their question does not hold."""
    for a in answers:
        if "[[" in a.text:
            found = next((m for m in VERDICT.finditer(a.text) if normalised(m[0]) not in a.asked), None)
            if found:
                yield a, _around(a.text, found)


def common_answers(answers: Sequence[Answered]) -> Found:
    """Yield the answers that are the model's most common one, where that is COMMON among all its answers."""
    times = Counter({text: len(asked) for text, asked in _by_text(answers).items()})
    for text, count in times.most_common(1):
        if count >= ENOUGH and count >= COMMON * sum(times.values()):
            said = f"{count} of {sum(times.values())} answers are this one: {_start(text)}"
            yield from ((a, said) for a in answers if a.plain == text)


def repeated_answers(answers: Sequence[Answered]) -> Found:
    """Yield the answers that nearly repeat one to another question, where many of the model's do (DUPLICATES)."""
    long = [a for a in answers if len(a.plain) >= LONG]
    first = near_duplicates([a.plain for a in long])
    asked = defaultdict(set)
    for a, other in zip(long, first, strict=True):
        asked[other].add(a.asked)
    repeats = [(a, other) for a, other in zip(long, first, strict=True) if other is not None and len(asked[other]) > 1]
    if len(repeats) >= ENOUGH and len(repeats) >= DUPLICATES * len(answers):
        said = f"{len(repeats)} of {len(answers)} answers nearly repeat another one:"
        yield from ((a, f"{said} {_start(long[other].plain)}") for a, other in repeats)


def unrelated_answers(answers: Sequence[Answered]) -> Found:
    """Yield the answers that take up few words of their question, where all of the model do so (OVERLAP)."""
    shares = [(a, share) for a in answers if (share := _overlap(a)) is not None]
    mean = sum(share for _, share in shares) / max(len(shares), 1)
    if len(shares) >= MANY and mean < OVERLAP:
        said = f"of a question's words {mean:.0%} stand in its answer, here"
        yield from ((a, f"{said} {share:.0%}: {_start(a.plain)}") for a, share in shares if share < OVERLAP)


SINGLE: dict[str, Callable[[Sequence[Answered]], Found]] = {
    "template_markers": template_markers,
    "planted_verdicts": planted_verdicts,
}
"""What looks at every answer by itself."""

DETECTORS: dict[str, Callable[[Sequence[Answered]], Found]] = {
    **SINGLE,
    "common_answer": common_answers,
    "near_duplicates": repeated_answers,
    "instruction_overlap": unrelated_answers,
}
"""All detectors by their name; each takes the answers of one model."""


def _by_text(answers: Sequence[Answered]) -> dict[str, set[str]]:
    """Return by text the different questions that it answers; a turn of a conversation is no other question."""
    found = defaultdict(set)
    for a in answers:
        found[a.plain].add(a.asked)
    return found


def _overlap(a: Answered) -> float | None:
    """Return the share of the question's words, of four letters and more, in the answer; None where they are few."""
    least, most = WORDS
    words = list(dict.fromkeys(WORD.findall(a.asked)))[:most]
    return sum(word in a.plain for word in words) / len(words) if len(words) >= least else None


def _around(text: str, found: re.Match[str] | None) -> str:
    if found is None:  # in small letters only: some capitals have no single small one
        return _start(text)
    begun, ended = max(0, found.start() - SHOWN), found.end() + SHOWN
    return f"{'…' if begun else ''}{text[begun:ended]}{'…' if ended < len(text) else ''}"


def _start(text: str) -> str:
    return text[: 2 * SHOWN] + ("…" if len(text) > 2 * SHOWN else "")
