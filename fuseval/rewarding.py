"""How good sampled responses are: right or wrong, and what a reward model or a judge says; all kept in the ledger."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from evals.benchmark import judge_request, published_answer
from evals.budget import usd
from evals.keys import content_key
from evals.records import Answer, Judgment, Message, Reward, Sampling
from fuseval.config import ConfigError
from fuseval.judging import given_up
from fuseval.sampling import question_of
from fuseval.target import RewardSpec
from fusion.reward_rules import combined, of_correctness, of_rating
from judges.judge import judge
from judges.replies import reply_format

if TYPE_CHECKING:
    from evals.records import JudgeRequest
    from fuseval.models import Candidate
    from fuseval.sampling import Asker
    from fusion.grading import Grade
    from fusion.preference_records import Response
    from fusion.prompts import Task

_AT_ONCE = 64  # programs that are run before any of them is stored
_JUDGED = Sampling(temperature=0.0, max_tokens=1024)
_ASKED = """\
Judge the response to the user's message below by how helpful, correct, relevant, clear and complete it is. Say in a \
few sentences what is good and what is wrong about it. Then give it a rating from 1 (worst) to 10 (best), in double \
brackets on the last line, for example: [[5]]

{system}[The user's message]
{user}

[The response]
{response}

[End of the response]"""


@dataclass(frozen=True, slots=True)
class Sampled:
    """A response as it was sampled: to which task, by which source, which of its samples."""

    task: Task
    source: str
    number: int
    answer: Answer


def scored(
    sampled: Sequence[Sampled], spec: RewardSpec, models: Mapping[str, Candidate], asker: Asker
) -> list[Response]:
    """Return the responses with reward and correctness; those that no reward could be had for are left out.

    What the ledger holds is not computed or asked again. ConfigError where there is neither reward model nor judge,
    and a prompt has no gold answer or tests either.
    """
    from fusion.preference_records import Response

    correct = _correct(sampled, asker)
    found: dict[str, Mapping[str, float | None]] = {}
    if spec.model:
        found["model"] = _by_model(sampled, models[spec.model], spec, asker)
    if spec.judge:
        found["judge"] = _by_judge(sampled, models[spec.judge], asker)
    if spec.weights:
        found = {"sum": combined(found, {str(name): weight for name, weight in spec.weights.items()})}
    if not found:
        lacking = next((s.task.prompt for s in sampled if (s.task.prompt.id, s.answer.key) not in correct), None)
        if lacking is not None:
            raise ConfigError(
                f"prompt {lacking.id!r} has no answer and no tests, so nothing tells a good response to it from a bad "
                "one: name a reward model or a judge under reward"
            )
        found = {"correct": {key: of_correctness(right) for (_, key), right in correct.items()}}
    [rewards] = found.values()
    told = []
    for s in sampled:
        reward = rewards.get(s.answer.key)
        if reward is not None:
            right = correct.get((s.task.prompt.id, s.answer.key))
            told.append(Response(s.task.prompt.id, s.source, s.number, s.answer.text, reward, right))
    return told


def _correct(sampled: Sequence[Sampled], asker: Asker) -> dict[tuple[str, str], bool]:
    """Return, by prompt and answer, whether the answers to prompts with gold answers or tests are right."""
    rules = {s.task.prompt.id: rule for s in sampled if (rule := _rule(s.task))}
    known = {
        (reward.scorer, reward.answer): bool(reward.value)
        for scorer in dict.fromkeys(rules.values())
        for reward in asker.ledger.rewards(scorer=scorer)
    }
    asked = [s for s in sampled if s.task.prompt.id in rules]
    missing = {(rules[s.task.prompt.id], s.answer.key): s for s in asked}
    missing = {key: s for key, s in missing.items() if key not in known}
    stage = "check responses"
    asker.watch(stage, 0, len(missing))
    for done, (key, grade) in enumerate(_graded(missing), 1):
        known[key] = grade.correct
        asker.ledger.add(Reward(key[1], key[0], float(grade.correct), grade.note))
        asker.watch(stage, done, len(missing))
    return {(s.task.prompt.id, s.answer.key): known[rules[s.task.prompt.id], s.answer.key] for s in asked}


def _graded(missing: Mapping[tuple[str, str], Sampled]) -> Iterator[tuple[tuple[str, str], Grade]]:
    from fusion.grading import grade_all, grade_code

    maths = {key: s for key, s in missing.items() if s.task.gold is not None}
    yield from zip(maths, grade_all((s.answer.text, s.task.gold or "") for s in maths.values()), strict=True)
    code = iter([(key, s) for key, s in missing.items() if key not in maths])
    while some := list(islice(code, _AT_ONCE)):
        from fusion.sandbox import judge_all

        grades = grade_code([(s.answer.text, s.task.tests or "") for _, s in some], judge_all)
        yield from zip((key for key, _ in some), grades, strict=True)


def _rule(task: Task) -> str | None:
    """Return the name of what tells whether a response to the task is right, the same for equal gold or tests."""
    if task.gold is not None:
        return f"answer {content_key(task.gold)[:16]}"
    return None if task.tests is None else f"tests {content_key(task.tests)[:16]}"


def _by_model(sampled: Sequence[Sampled], by: Candidate, spec: RewardSpec, asker: Asker) -> dict[str, float | None]:
    """Return the reward model's rewards by the answers' keys, each batch's stored as it comes."""
    from fusion.launch import together
    from fusion.rewards import Rewarded, RewardParams, give_rewards

    assert by.folder is not None
    rewards = {reward.answer: reward.value for reward in asker.ledger.rewards(scorer=by.id)}
    wanted = {s.answer.key: s for s in sampled}
    left: dict[str, list[Sampled]] = defaultdict(list)  # equal responses to a prompt are read once
    for key, s in wanted.items():
        if key not in rewards:
            left[content_key(question_of(s.task.prompt).id, s.answer.text)].append(s)
    stage, done = f"reward responses by {by.name}", len(wanted) - sum(map(len, left.values()))
    asker.watch(stage, done, len(wanted))
    if left:
        asker.engines.close()  # on a GPU the reward model needs its memory
        asked = RewardParams(batch_size=spec.batch_size, trust_remote_code=spec.trust_remote_code)
        alike = list(left.values())
        said = [[*s.task.prompt.messages, {"role": "assistant", "content": s.answer.text}] for s, *_ in alike]

        def keep(batch: list[tuple[int, Rewarded]]) -> None:
            nonlocal done
            for number, rewarded in batch:
                for s in alike[number]:
                    rewards[s.answer.key] = rewarded.value
                    asker.ledger.add(Reward(s.answer.key, by.id, rewarded.value, rewarded.why))
                done += len(alike[number])
            asker.watch(stage, done, len(wanted))

        give = together(give_rewards, asker.launch)
        give(by.folder, said, asked, on_batch=keep)
    return {key: rewards[key] for key in wanted}


def _by_judge(sampled: Sequence[Sampled], by: Candidate, asker: Asker) -> dict[str, float | None]:
    """Return the judge's ratings by the answers' keys, 1 as 0 and 10 as 1; each judgment is stored as it comes."""
    requests = {s.answer.key: rating_request(s.task, by, s.answer) for s in sampled}
    asker.ledger.add(*requests.values())
    keys = {request.judgment for request in requests.values()}
    left = keys - asker.ledger.have("judgments", keys) - given_up(asker, stage="judge")
    stage, done, budget = f"rate responses by {by.name}", len(keys) - len(left), asker.engines.budget
    asker.watch(stage, done, len(keys))
    if left:
        missing = [request for request in requests.values() if request.judgment in left]
        model, cost = asker.engines.chat_model(by), asker.engines.cost_of(by)
        for record in judge(missing, by=model, attempts=1, cost=cost):
            asker.ledger.add(record)
            done += isinstance(record, Judgment)
            asker.watch(stage, done, len(keys), usd(budget.spent) if budget.spent else "")
    read = reply_format("rating").read
    said = {judgment.key: judgment for judgment in asker.ledger.judgments(keys=keys)}
    rewards: dict[str, float | None] = {}
    for key, request in requests.items():
        if (judgment := said.get(request.judgment)) is None:
            continue  # a failure, which the ledger has
        rating = read(judgment)
        rewards[key] = of_rating(rating)
        asker.ledger.add(Reward(key, by.id, rewards[key], "" if rating else "no rating in the judge's reply"))
    return rewards


def rating_request(task: Task, by: Candidate, answer: Answer | None = None) -> JudgeRequest:
    """Return what a judge is asked about a response; without one, as long as that is without it."""
    said = {message["role"]: message["content"] for message in task.prompt.messages}
    system = f"[What the assistant was told beforehand]\n{said['system']}\n\n" if "system" in said else ""
    text = _ASKED.format(system=system, user=said["user"], response=answer.text if answer else "")
    question = question_of(task.prompt)
    shown = answer or published_answer(question, model="", turn=1, text="")
    return judge_request(
        question, judge=by.id, answers=[shown], order="single",
        messages=[Message("user", text)], sampling=_JUDGED, reply="rating",
    )  # fmt: skip
