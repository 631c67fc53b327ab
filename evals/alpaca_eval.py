"""AlpacaEval 2.0: 805 instructions, each answer compared with the one of GPT-4 (1106 preview), in one seeded order.

Li et al. 2023, github.com/tatsu-lab/alpaca_eval; Dubois et al. 2024, arXiv:2404.04475. Follows alpaca_eval 0.6.6. How
the judge is asked is read from the installed package (``evals/alpaca_annotators.py``); option ``annotator``, one of
those that :func:`evals.alpaca_annotators.usable` names, is "weighted_alpaca_eval_gpt4_turbo" unless said: the verdict
is the probability of the token "m" beside "M". The metrics are those of ``evals/alpaca_eval_score.py``. Differences:

- A question's id is its position among the 805, wherever its row stands (the published way: ``like_published``).
- Answers are greedy, of 2048 tokens at most, unless an experiment says otherwise under ``sampling:``. The leaderboard
  has no fixed rule: each of its models was sampled in its own way.
- The judge's messages are built, not parsed out of the filled-in prompt: ChatML in an answer stays text.
- A reply without a verdict is missing and can be asked for again; there, it is kept as -1 for good.
- Two equal texts are a draw without a call, as there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache

from evals.alpaca_annotators import Annotator
from evals.alpaca_annotators import annotator as find_annotator
from evals.alpaca_eval_score import positional, score
from evals.benchmark import Benchmark, Evidence, Locate, Scored, judge_request, no_check, published_model
from evals.length_control import Gamed, read_gamed
from evals.records import Answer, JudgeRequest, Question, Sampling, Score

NAME, VERSION = "alpaca_eval", "2.0"
ANNOTATOR, BASELINE = "weighted_alpaca_eval_gpt4_turbo", "gpt4_1106_preview"
GAMED = "alpaca_eval/df_gamed.csv"
M_OR_M = {"numerator_token": "m", "denominator_tokens": ["m", "M"], "is_binarize": False}


def load(asset: Locate, *, version: str | None = None, annotator: str = ANNOTATOR) -> Benchmark:
    """Return AlpacaEval 2.0 as ``annotator`` judges it; ``version`` ("2.0", "2.0-chatgpt", …) says it as well.

    Raises ValueError for an annotator that cannot be used, or that contradicts ``version``.
    """
    name = _annotator_of(version, annotator)
    if version is None and name != ANNOTATOR:  # what is stored can be scored without its annotator, or the package
        find_annotator(name)
    version = _version(name)

    @cache
    def rows() -> list[dict[str, str]]:
        found: list[dict[str, str]] = json.loads(asset("alpaca_eval/alpaca_eval_gpt4_baseline.json").read_bytes())
        return found

    @cache
    def questions() -> tuple[Question, ...]:
        return tuple(
            Question(NAME, version, id=str(position), category=row["dataset"], turns=(row["instruction"],))
            for position, row in enumerate(rows())
        )

    def baseline_answers(model: str) -> Mapping[str, tuple[str, ...]]:
        if model != BASELINE:
            raise ValueError(f"{NAME} has answers of {BASELINE!r}, none of {model!r}")
        return {str(position): (row["output"],) for position, row in enumerate(rows())}

    @cache
    def gamed() -> Gamed:
        return read_gamed(asset(GAMED))

    def requests(
        question: Question, answers: Sequence[Answer], baseline_answers: Sequence[Answer], judge: str
    ) -> Sequence[JudgeRequest]:
        return _requests(question, answers, baseline_answers, judge=judge, by=find_annotator(name))

    def scored(evidence: Evidence) -> Scored:
        return score(evidence, gamed=gamed, baseline=published_model(BASELINE).id)

    def like_published(evidence: Evidence) -> Sequence[Score]:
        return positional(evidence, gamed=gamed, baseline=published_model(BASELINE).id)

    return Benchmark(
        name=NAME,
        version=version,
        questions=questions,
        sampling=sampling,
        requests=requests,
        check=no_check,
        score=scored,
        against="published",
        baseline=baseline,
        baseline_answers=baseline_answers,
        like_published=like_published,
        needs=(GAMED,),
    )


def sampling(_question: Question) -> Sampling:
    """Greedy, at most 2048 tokens: a choice of ours."""
    return Sampling(temperature=0.0, max_tokens=2048)


def baseline(_question: Question) -> str:
    """Return the name of the model that all answers are compared with."""
    return BASELINE


def _annotator_of(version: str | None, annotator: str) -> str:
    if version is None:
        return annotator
    plain, _, said = version.partition("-")
    if plain != VERSION or (not said and version != VERSION):
        raise ValueError(f"{NAME} has version '{VERSION}', or '{VERSION}-ANNOTATOR', not {version!r}")
    said = said or ANNOTATOR
    if annotator not in (ANNOTATOR, said):
        raise ValueError(f"{NAME}@{version} has annotator={said!r}, not {annotator!r}: leave one of the two out")
    return said


def _version(annotator: str) -> str:
    return VERSION if annotator == ANNOTATOR else f"{VERSION}-{annotator}"


def _requests(
    question: Question, answers: Sequence[Answer], beside: Sequence[Answer], *, judge: str, by: Annotator
) -> Sequence[JudgeRequest]:
    """Return the one request, or none where there is no baseline or both texts are equal."""
    if not beside or answers[-1].text == beside[-1].text:
        return ()
    instruction = question.turns[0]
    model_first = by.shows_model_first(instruction)
    first, second = (answers, beside) if model_first else (beside, answers)
    messages = by.show(instruction=instruction, output_1=first[-1].text, output_2=second[-1].text)
    asked = judge_request(
        question,
        judge=judge,
        answers=(answers[-1], beside[-1]),
        order="model_first" if model_first else "baseline_first",
        messages=messages,
        sampling=by.sampling,
        reply="m_or_M" if by.parser == "logprob_parser" and by.arguments == M_OR_M else f"alpaca_eval:{by.name}",
    )
    return (asked,)
