"""MT-Bench: 80 questions of two turns; a judge rates each turn from 1 to 10, or compares it with a baseline's.

Zheng et al. 2023, arXiv:2306.05685. Follows lm-sys/FastChat@0e6d3e4 ``fastchat/llm_judge``: its questions, sampling
temperatures, judge prompts (with a reference answer for math, reasoning and coding) and references. Options:
``references``, whose reference answers the judge sees ("gpt-4", as published, or "gpt-4-0125-preview": FastChat's
pull request 3158 found 13 of the 30 wrong); ``mode``, "single" (ratings), "pairwise" (each turn beside the base's, in
both orders) or "all_pairs" (beside every other model's). Differences:

- An answer that could not be had is missing; FastChat has the text of its error judged.
- Models are asked through their own chat template without a system prompt; FastChat picks a template by name.
- A rating outside 1 to 10 is no verdict, and "[[07]]" is 7.
- ``average`` rests on the last rating of each turn of the answers that count. FastChat averages every row of its file,
  those repeated or about replaced answers too: that is ``average:fastchat``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from evals.benchmark import Benchmark, Locate, judge_request, no_check
from evals.mt_bench_score import score_all_pairs, score_pairs, score_single
from evals.records import Answer, JudgeRequest, Message, Question, Sampling

NAME = "mt_bench"
REFERENCES = ("gpt-4", "gpt-4-0125-preview")
MODES = {"single": "", "pairwise": "-pairwise", "all_pairs": "-all-pairs"}  # and what that adds to the version
AGAINST: dict[str, Literal["nothing", "base", "each"]] = {"single": "nothing", "pairwise": "base", "all_pairs": "each"}
NEEDS_REFERENCE = ("math", "reasoning", "coding")
TEMPERATURES = {  # FastChat common.temperature_config
    **{"writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0},
    **{"coding": 0.0, "reasoning": 0.0, "stem": 0.1, "humanities": 0.1},
}
JUDGING = Sampling(temperature=0.0, max_tokens=2048)

Prompts = Mapping[str, Mapping[str, str]]
"""The judge prompts by name, each with its system_prompt and prompt_template."""


def load(asset: Locate, *, version: str | None = None, references: str = "gpt-4", mode: str = "single") -> Benchmark:
    """Return MT-Bench with these ``references`` and in this ``mode``; ``version`` ("1", "1-pairwise", …) says both.

    Raises ValueError for an option that there is not, or that contradicts ``version``.
    """
    _check("references", references, REFERENCES)
    _check("mode", mode, tuple(MODES))
    if version is not None:
        versions = {_version(r, m): (r, m) for r in REFERENCES for m in MODES}
        _check("version", version, tuple(versions))
        for option, given, default, own in zip(
            ("references", "mode"), (references, mode), ("gpt-4", "single"), versions[version], strict=True
        ):
            if given not in (default, own):
                raise ValueError(f"{NAME}@{version} has {option}={own!r}, not {given!r}: leave one of the two out")
        references, mode = versions[version]
    version = _version(references, mode)

    @cache
    def rows() -> dict[str, dict[str, Any]]:
        return {str(row["question_id"]): row for row in read_jsonl(asset("mt_bench/question.jsonl"))}

    @cache
    def questions() -> tuple[Question, ...]:
        shown = {
            str(row["question_id"]): tuple(row["choices"][0]["turns"])
            for row in read_jsonl(asset(f"mt_bench/reference_answer/{references}.jsonl"))
        }
        return tuple(_question(row, version=version, references=shown) for row in rows().values())

    @cache
    def prompts() -> dict[str, dict[str, str]]:
        return {row["name"]: row for row in read_jsonl(asset("mt_bench/judge_prompts.jsonl"))}

    def sampling(question: Question) -> Sampling:
        return Sampling(temperature=_temperature(rows().get(question.id, {}), question.category), max_tokens=1024)

    def requests(
        question: Question, answers: Sequence[Answer], baseline_answers: Sequence[Answer], judge: str
    ) -> Sequence[JudgeRequest]:
        if mode == "single":
            return _ratings(question, answers, judge=judge, prompts=prompts())
        return _comparisons(question, answers, baseline_answers, judge=judge, prompts=prompts())

    return Benchmark(
        name=NAME,
        version=version,
        questions=questions,
        sampling=sampling,
        requests=requests,
        check=no_check,
        score={"single": score_single, "pairwise": score_pairs, "all_pairs": score_all_pairs}[mode],
        against=AGAINST[mode],
    )


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    r"""Return the file's rows; only "\n" ends one, since U+2028 and the like stand inside of strings."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]


def _check(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{NAME} has no {option} {value!r}; it has {', '.join(choices)}")


def _version(references: str, mode: str) -> str:
    return "1" + (f"-{references}" if references != "gpt-4" else "") + MODES[mode]


def _question(row: Mapping[str, Any], *, version: str, references: Mapping[str, tuple[str, ...]]) -> Question:
    """Make the question; upstream's own ``reference`` field is one that FastChat never reads."""
    name, category = str(row["question_id"]), row["category"]
    if category in NEEDS_REFERENCE and name not in references:
        raise ValueError(f"{NAME} {version} has no reference answer to question {name}, as {category} needs")
    return Question(
        benchmark=NAME,
        version=version,
        id=name,
        category=category,
        turns=tuple(row["turns"]),
        reference=references[name] if category in NEEDS_REFERENCE else (),
    )


def _temperature(row: Mapping[str, Any], category: str) -> float:
    return float(row.get("required_temperature", TEMPERATURES.get(category, 0.7)))


def _ratings(
    question: Question, answers: Sequence[Answer], *, judge: str, prompts: Prompts
) -> tuple[JudgeRequest, ...]:
    """Return a request for each turn; that for the second shows the whole conversation."""
    asked = []
    for answer, name in zip(answers, ("single-v1", "single-v1-multi-turn"), strict=False):
        asked.append(
            judge_request(
                question,
                judge=judge,
                answers=(answer,),
                order="single",
                messages=_messages(question, prompts, name, _texts("answer", answers)),
                sampling=JUDGING,
                reply="rating",
            )
        )
    return tuple(asked)


def _comparisons(
    question: Question, answers: Sequence[Answer], baseline: Sequence[Answer], *, judge: str, prompts: Prompts
) -> tuple[JudgeRequest, ...]:
    """Return two requests, one an order, for each turn; none of a model with itself or without a baseline."""
    if not baseline or baseline[0].model == answers[0].model:
        return ()
    asked = []
    for mine, theirs, name in zip(answers, baseline, ("pair-v2", "pair-v2-multi-turn"), strict=False):
        for order, first, second in (("model_first", answers, baseline), ("baseline_first", baseline, answers)):
            asked.append(
                judge_request(
                    question,
                    judge=judge,
                    answers=(mine, theirs),
                    order=order,
                    messages=_messages(question, prompts, name, _texts("answer_a", first) | _texts("answer_b", second)),
                    sampling=JUDGING,
                    reply="pair",
                )
            )
    return tuple(asked)


def _texts(name: str, answers: Sequence[Answer]) -> dict[str, str]:
    """Return what prompts call ``name`` (the first turn's answer), ``name``_1 and ``name``_2."""
    return {name: answers[0].text} | {f"{name}_{n}": answer.text for n, answer in enumerate(answers, start=1)}


def _messages(question: Question, prompts: Prompts, name: str, answers: Mapping[str, str]) -> tuple[Message, Message]:
    """Fill in the prompt called ``name``, or its sibling with references; texts go in as they are, braces and all."""
    if question.category in NEEDS_REFERENCE:
        name = name.replace("-v1", "-math-v1").replace("-v2", "-math-v1")
    prompt = prompts[name]
    texts = {f"question_{n}": turn for n, turn in enumerate(question.turns, start=1)}
    texts |= {f"ref_answer_{n}": turn for n, turn in enumerate(question.reference, start=1)}
    user = prompt["prompt_template"].format(question=question.turns[0], **texts, **answers)
    return Message("system", prompt["system_prompt"]), Message("user", user)
