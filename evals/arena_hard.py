"""Arena-Hard v0.1 and v2.0: each answer compared with a published baseline's by five verdicts, in both orders.

Li et al. 2024, arXiv:2406.11939. v0.1 follows lmarena/arena-hard-auto@3071ef9: 500 prompts, baseline gpt-4-0314, a
second attempt for a reply without a label, a game of two unlike labels left out alone. v2.0 follows @196f6b8: 500 hard
prompts against o3-mini-2025-01-31, 250 of creative writing against gemini-2.0-flash-001, the last label of a reply
counts, a question needs both games. The first game shows the baseline as assistant A, the second swaps. A decisive
verdict (>>) weighs three times one of the others and says no more than they do: a win or a loss.

All games are against one baseline, so that the comparisons form a star, where the maximum of Bradley and Terry's
likelihood has a closed form: each rating makes the expected win rate equal the weighted mean that was observed. Hence
``bradley_terry``, the figure that v0.1 publishes, equals ``win_rate`` to the last digit.

Metrics, in per cent: ``win_rate``, ``bradley_terry``; v2.0: ``win_rate:<category>`` and, where the file of questions
is at hand, ``win_rate:coding`` and ``win_rate:math``; ``win_rate:style`` and ``win_rate:same_style`` where the answers'
texts are known (:mod:`evals.style`: fitted over all models of a judge and baseline; lengths in bytes, not in tokens).

Differences from the references:

- Intervals resample questions. The published ones take every game, and each copy of a decisive one, as independent,
  which makes them a third or more too narrow; ``like_published`` returns those.
- The system prompt that the references send to OpenAI's models alone ("You are a helpful assistant.") is sent to none.
- v0.1's judge may write as much as its configuration file (@b4b78bf) says, 2,048 tokens; earlier revisions said 4,096.
- v2.0 prescribes no sampling: each model's entry in its configuration has its own. Ours is the one it gives for a
  served open model that does not reason (temperature 0, 8,196 tokens).
- v2.0's references publish the mean and the percentiles of 100 unseeded resamples, ours the exact mean and seeded ones.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from evals import arena_scores
from evals.arena_scores import ORDERS
from evals.assets import AssetError
from evals.benchmark import Benchmark, Evidence, Locate, judge_request, no_check
from evals.records import Answer, JudgeRequest, Message, Question, Sampling, Score

NAME = "arena_hard"


@dataclass(frozen=True, slots=True)
class Prompts:
    """What a judge is told: a system prompt for every category, one template, and how its reply is drawn."""

    system: Mapping[str, str]
    template: str
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class _Edition:
    baselines: Mapping[str, str]  # category -> model
    prompts: Callable[[Locate], Prompts]
    max_tokens: int  # of an answer
    reply: str
    rules: arena_scores.Rules


def load(asset: Locate, *, version: str | None = None) -> Benchmark:
    """Return the benchmark; ``version`` is "v0.1" (default) or "v2.0". ValueError on any other."""
    name = "v0.1" if version is None else version
    if name not in EDITIONS:
        raise ValueError(f"{NAME} has no version {name!r}; it takes version: {', '.join(EDITIONS)}")
    edition = EDITIONS[name]
    rows = cache(lambda: tuple(_rows(asset(f"{NAME}/{name}/question.jsonl"))))
    prompts = cache(lambda: edition.prompts(asset))
    sampling = Sampling(temperature=0.0, max_tokens=edition.max_tokens)

    def baseline_answers(model: str) -> Mapping[str, tuple[str, ...]]:
        if model not in edition.baselines.values():
            raise ValueError(
                f"{NAME} {name} has no baseline {model!r}; its baselines: {', '.join(edition.baselines.values())}"
            )
        return read_answers(asset(f"{NAME}/{name}/model_answer/{model}.jsonl"))

    def parts() -> Mapping[str, str]:
        try:
            return {
                row["uid"]: row["subcategory"] for row in rows() if row.get("subcategory", "") in edition.rules.parts
            }
        except AssetError:  # a ledger is scored without them
            return {}

    return Benchmark(
        NAME,
        name,
        questions=cache(lambda: tuple(_question(row, name) for row in rows())),
        sampling=lambda _question: sampling,
        requests=lambda *given: _games(*given, prompts=prompts(), reply=edition.reply),
        check=no_check,
        score=partial(arena_scores.score, rules=edition.rules, parts=parts),
        against="published",
        baseline=partial(_baseline, edition),
        baseline_answers=cache(baseline_answers),
        like_published=partial(_like_published, rules=edition.rules),
    )


def _like_published(evidence: Evidence, *, rules: arena_scores.Rules) -> Sequence[Score]:
    from evals.arena_published import like_published  # with numpy, which nothing needs that only asks

    return arena_scores.told_apart(like_published(evidence, rules=rules), evidence.wanted, evidence.questions)


def read_answers(path: Path) -> dict[str, tuple[str, ...]]:
    """Return question id -> the text of every turn, from a file of answers in v0.1's or v2.0's published form."""
    answers = {}
    for row in _rows(path):
        if "messages" in row:
            said = [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]
            answers[row["uid"]] = tuple(text if isinstance(text, str) else text["answer"] for text in said)
        else:
            answers[row["question_id"]] = tuple(turn["content"] for turn in row["choices"][0]["turns"])
    return answers


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    # Not splitlines: the strings hold U+2028 and its like.
    return (json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip())


def _question(row: Mapping[str, Any], version: str) -> Question:
    return Question(benchmark=NAME, version=version, id=row["uid"], category=row["category"], turns=(row["prompt"],))


def _baseline(edition: _Edition, question: Question) -> str:
    try:
        return edition.baselines[question.category]
    except KeyError:
        raise ValueError(
            f"question {question.id} of {NAME} {question.version} has category {question.category!r}, for which there "
            f"is no baseline; the categories are {', '.join(edition.baselines)}"
        ) from None


def _games(
    question: Question,
    answers: Sequence[Answer],
    baseline_answers: Sequence[Answer],
    judge: str,
    *,
    prompts: Prompts,
    reply: str,
) -> tuple[JudgeRequest, ...]:
    """Return the requests for both games; none without a baseline's answer, or of the baseline with itself."""
    if not baseline_answers or answers[-1].model == baseline_answers[-1].model:
        return ()
    pair = answers[-1], baseline_answers[-1]
    asked = []
    for order in ORDERS:
        first, second = pair if order == "model_first" else pair[::-1]
        # One pass: braces and placeholders in what is filled in stay text. The names are v0.1's, then v2.0's.
        prompt = prompts.template.format(
            question_1=question.turns[0],
            answer_1=first.text,
            answer_2=second.text,
            QUESTION=question.turns[0],
            ANSWER_A=first.text,
            ANSWER_B=second.text,
        )
        asked.append(
            judge_request(
                question,
                judge=judge,
                answers=pair,
                order=order,
                messages=(Message("system", prompts.system[question.category]), Message("user", prompt)),
                sampling=prompts.sampling,
                reply=reply,
            )
        )
    return tuple(asked)


def _judge_config(asset: Locate, name: str) -> dict[str, Any]:
    import yaml  # the reference's own configuration file, not one of ours

    config: dict[str, Any] = yaml.safe_load(asset(name).read_text(encoding="utf-8"))
    return config


def _v0_1_prompts(asset: Locate) -> Prompts:
    config = _judge_config(asset, f"{NAME}/v0.1/judge_config.yaml")
    [template] = config["prompt_template"]
    return Prompts({"arena-hard-v0.1": config["system_prompt"]}, template, _drawn(config))


def _v2_0_prompts(asset: Locate) -> Prompts:
    config = _judge_config(asset, f"{NAME}/v2.0/arena-hard-v2.0.yaml")
    settings = judge_settings(asset(f"{NAME}/v2.0/judge_utils.py"))
    system = {category: said["system_prompt"] for category, said in settings.items()}
    return Prompts(system, config["prompt_template"], _drawn(config))


def _drawn(config: Mapping[str, Any]) -> Sampling:
    return Sampling(temperature=float(config["temperature"]), max_tokens=int(config["max_tokens"]))


def judge_settings(path: Path) -> dict[str, dict[str, str]]:
    """Return the literal JUDGE_SETTINGS of v2.0's judge_utils.py: category -> baseline, system_prompt.

    The file is parsed and never executed; AssetError where it does not have that form.
    """
    strings: dict[str, str] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text))):
                strings[name] = text
            case ast.Assign(targets=[ast.Name(id="JUDGE_SETTINGS")], value=ast.Dict() as settings):
                read = _dict(settings, strings)
                if all(isinstance(said, dict) and "system_prompt" in said for said in read.values()):
                    return read
    raise AssetError(f"{path} holds no JUDGE_SETTINGS as a dict of literals: take the file of the pinned revision")


def _dict(node: ast.Dict, strings: Mapping[str, str]) -> dict[str, Any]:
    """Return a dict of texts, of names that stand for them, and of dicts of these; what else it holds is left out."""
    found: dict[str, Any] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        match key, value:
            case ast.Constant(value=str(name)), ast.Constant(value=str(text)):
                found[name] = text
            case ast.Constant(value=str(name)), ast.Name(id=variable) if variable in strings:
                found[name] = strings[variable]
            case ast.Constant(value=str(name)), ast.Dict():
                found[name] = _dict(value, strings)
    return found


EDITIONS: dict[str, _Edition] = {
    "v0.1": _Edition(
        baselines={"arena-hard-v0.1": "gpt-4-0314"},
        prompts=_v0_1_prompts,
        max_tokens=4096,
        reply="five_verdicts",
        rules=arena_scores.V0_1,
    ),
    "v2.0": _Edition(
        baselines={"hard_prompt": "o3-mini-2025-01-31", "creative_writing": "gemini-2.0-flash-001"},
        prompts=_v2_0_prompts,
        max_tokens=8196,
        reply="five_verdicts_last",
        rules=arena_scores.V2_0,
    ),
}
