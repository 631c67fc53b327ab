"""What implicit fusion samples: each source's responses to the prompts, stored in the ledger as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from evals.answer import Ask, answer, asks, stored_answers
from evals.budget import usd
from evals.keys import content_key
from evals.records import PROMPTS, Answer, Question, Sampling
from fuseval.asking import stored
from fuseval.judging import given_up
from fuseval.target import SAMPLES, SELF, DrawSpec, Target
from judges.self_preference import family

if TYPE_CHECKING:
    from fuseval.engines import Engines
    from fuseval.models import Candidate, Watch
    from fusion.launch import Launch
    from fusion.preference_records import Prompt
    from results.store import Ledger

PUBLISHED = Sampling(temperature=0.8, top_p=0.95)
PUBLISHED_OF: Mapping[str, Sampling] = {"Qwen": Sampling(temperature=0.7, top_p=0.8, repetition_penalty=1.05)}
"""How FuseChat-3.0 (arXiv:2503.04222) and WRPO (arXiv:2412.03187) sample, by family, and of all others."""

_VERSION = "1"  # of how a prompt is asked


@dataclass(frozen=True, slots=True)
class Draw:
    """A source of responses: who answers, and how; sample n has the seed of ``sampling`` plus n.

    ``samples`` is how many responses a prompt has, or how many by its kind; a kind that is not named has SAMPLES.
    """

    title: str
    candidate: Candidate
    samples: int | Mapping[str, int]
    sampling: Sampling

    def samples_of(self, kind: str) -> int:
        """Return how many responses a prompt of this kind has."""
        return self.samples if isinstance(self.samples, int) else self.samples.get(kind, SAMPLES)

    def wanted(self, prompts: Iterable[Prompt]) -> Iterator[tuple[Sampling, list[Question]]]:
        """Yield how each sample in turn is drawn, and the questions that have so many.

        A text that stands in several sets is asked once, as the first's, and as often as the kind with the most.
        """
        questions: dict[str, Question] = {}
        counts: dict[str, int] = {}
        for prompt in prompts:
            question = question_of(prompt)
            questions.setdefault(question.id, question)
            counts[question.id] = max(self.samples_of(prompt.kind), counts.get(question.id, 0))
        for number in range(max(counts.values(), default=0)):
            sampling = replace(self.sampling, seed=self.sampling.seed + number)
            yield sampling, [question for name, question in questions.items() if counts[name] > number]


@dataclass(frozen=True, slots=True)
class Asker:
    """What it takes to ask models: the ledger, the engines, who watches; seed and ``retry_failed`` as a run's.

    ``launch`` starts the processes that share the work of a reward model.
    """

    ledger: Ledger
    engines: Engines
    watch: Watch
    seed: int = 0
    retry_failed: bool = False
    launch: Launch | None = None


def draws(target: Target, models: Mapping[str, Candidate], *, seed: int) -> list[Draw]:
    """Return how the target's sources are sampled, in the order in which they win ties."""
    drawn = [spec for spec in target.draws if spec.source != SELF]
    specs = drawn or [DrawSpec(source=source) for source in target.sources]
    return [draw(spec, models[spec.source], seed=seed) for spec in specs]


def own_draw(target: Target, candidate: Candidate, *, seed: int) -> Draw:
    """Return how the target itself is sampled, once it is fine-tuned into ``candidate``."""
    spec = next((spec for spec in target.draws if spec.source == SELF), DrawSpec(source=SELF))
    return draw(spec, candidate, seed=seed)


def draw(spec: DrawSpec, candidate: Candidate, *, seed: int) -> Draw:
    """Return how a model is sampled: as given, else as published for its family."""
    said = candidate.family or family(candidate.name) or family(candidate.model.source)
    given = spec.model_dump(exclude={"source", "name", "samples", "stop"}, exclude_none=True)
    sampling = replace(PUBLISHED_OF.get(said or "", PUBLISHED), seed=seed, stop=tuple(spec.stop), **given)
    samples = spec.samples if isinstance(spec.samples, int) else {str(kind): n for kind, n in spec.samples.items()}
    return Draw(spec.title, candidate, samples, sampling)


def question_of(prompt: Prompt) -> Question:
    """Return the ledger's record of a prompt, whose id is a hash of its text: equal ones are asked once."""
    said = {message["role"]: message["content"] for message in prompt.messages}
    system, user = said.get("system"), said["user"]
    return Question(PROMPTS, _VERSION, content_key(system, user), prompt.kind, (user,), system)


def unasked(of: Draw, prompts: Sequence[Prompt], ledger: Ledger) -> Iterator[Ask]:
    """Yield what a source is still to be asked."""
    for sampling, questions in of.wanted(prompts):
        wanted = {ask.key: ask for ask in asks(questions, identity=of.candidate.id, sampling=lambda _, s=sampling: s)}  # type: ignore[misc]
        there = stored(ledger)(list(wanted))
        yield from (ask for key, ask in wanted.items() if key not in there)


def sample(of: Draw, prompts: Sequence[Prompt], asker: Asker) -> dict[str, list[Answer]]:
    """Return a source's responses by the prompts' ids, in the order of the samples; what the ledger lacks is asked.

    Responses that could not be had, as the ledger's failures say, are left out.
    """
    wanted = list(of.wanted(prompts))
    asker.ledger.add(*(wanted[0][1] if wanted else ()))
    found: dict[str, list[Answer]] = {question_of(prompt).id: [] for prompt in prompts}
    stage, total = f"sample {of.title}", sum(len(questions) for _, questions in wanted)
    skipped, budget, known = given_up(asker, stage="answer"), asker.engines.budget, stored(asker.ledger)
    done = 0
    for sampling, questions in wanted:

        def how(_: Question, sampling: Sampling = sampling) -> Sampling:
            return sampling

        there = len(stored_answers(questions, identity=of.candidate.id, sampling=how, stored=known))
        asker.watch(stage, done + there, total)
        for record in answer(
            questions,
            identity=of.candidate.id,
            model=lambda: asker.engines.chat_model(of.candidate),
            sampling=how,
            stored=known,
            cost=asker.engines.cost_of(of.candidate),
            given_up=skipped,
        ):
            asker.ledger.add(record)
            there += isinstance(record, Answer)
            asker.watch(stage, done + there, total, usd(budget.spent) if budget.spent else "")
        for question, answers in stored_answers(
            questions, identity=of.candidate.id, sampling=how, stored=known
        ).items():
            found[question] += answers
        done += there
    return {prompt.id: found[question_of(prompt).id] for prompt in prompts}
