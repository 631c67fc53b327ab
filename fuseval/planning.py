"""What a run would still do, and what that would cost; nothing is made or asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from evals.answer import asks
from evals.chat import FAILURES
from evals.prices import Price, token_cost
from evals.records import PROMPTS, JudgeRequest, Message
from fuseval.asking import Asked, Judge, is_shown_unanswered
from fuseval.config import ConfigError
from fuseval.estimate import Asked as Priced
from fuseval.estimate import Estimate, Tokens, Usual, described, estimate, timed, tokenizer_for, total
from fuseval.judging import given_up, wanted
from fuseval.models import inputs, is_at_hand, make
from fuseval.rewarding import rating_request
from fuseval.sampling import draws, unasked
from fuseval.training import plan_target
from fusion.prompts import read_tasks
from results.evidence import usual_answer, usual_judgment

if TYPE_CHECKING:
    from fuseval.models import Candidate
    from fuseval.pipeline import Run

_FREE = Price(0.0, 0.0)  # of an engine of one's own
_NOTHING = Estimate(0, 0, False, None, 0, None, None)


@dataclass(frozen=True, slots=True)
class _Step:
    """One thing that is still to be done: making a model, or asking one."""

    stage: str
    model: str
    of: str
    missing: int
    takes: Estimate | None = None


def plan(run: Run) -> list[dict[str, object]]:
    """Return what is still to be made and asked, a row a stage and model, with tokens, dollars and time; then all."""
    steps: list[_Step] = []
    for candidate in run.candidates:
        made = candidate.folder is None or candidate.folder.exists()
        if not made and not run.is_answered(candidate):
            steps += _samples(run, candidate)
            steps.append(_Step("make", candidate.name, candidate.model.kind, 1))
        steps += [_answers(run, candidate, one) for one in run.asked]
    steps += [_judgments(run, judge, one) for judge in run.judges for one in run.asked]
    estimates = [step.takes for step in steps if step.takes]
    if len(estimates) > 1:
        steps.append(_Step("all", "", "", sum(step.missing for step in steps), total(estimates)))
    return [_row(step) for step in steps]


def alignments(run: Run) -> list[tuple[dict[str, object], str]]:
    """Return of each explicit fusion how its models' tokens align and what it takes, and a page that says so.

    No model is run; a GGUF file is converted, for its tokenizer, and the vocabularies' maps are kept for the
    fusion itself. ConfigError where there is no such target; a target of a model that is not made yet is only named.
    """
    from fusion.alignment_markdown import as_markdown, code

    pages: list[tuple[dict[str, object], str]] = []
    for candidate in run.models.values():
        target = candidate.target
        if target is None or target.kind != "explicit":
            continue
        missing = [name for name in inputs(candidate, run.models) if not is_at_hand(run.models[name])]
        if missing:
            lack = f"Not known before {', '.join(missing)} is made, which fuseval fuse does."
            told: dict[str, object] = {"target": candidate.name, "report": None, "why": lack}
            pages.append((told, f"# Alignment of {code(candidate.name)}\n\n{lack}\n"))
            continue
        for name in inputs(candidate, run.models):
            make(run.models[name], run.models, watch=run.watch)
        report = plan_target(candidate, target, run.models, watch=run.watch)
        told = {"target": candidate.name, "report": report}
        pages.append((told, as_markdown(report, of=candidate.name)))
    if not pages:
        raise ConfigError(
            f"{run.experiment.name} has no target of kind explicit, of whose tokens something could be said; "
            "fuseval run --dry-run says what else would be made"
        )
    return pages


def _row(step: _Step) -> dict[str, object]:
    told = described(step.takes) if step.takes else dict.fromkeys(described(_NOTHING), "")
    told.pop("requests")  # which is what is missing
    return {"stage": step.stage, "model": step.model, "of": step.of, "missing": step.missing, **told}


def _samples(run: Run, candidate: Candidate) -> Iterator[_Step]:
    """Yield what the sources of a target of kind implicit are still asked, and its judge at most.

    What the target itself is asked once it is fine-tuned, as wrpo does, costs no money and is left out.
    """
    if candidate.target is None or candidate.target.kind != "implicit":
        return
    tasks = read_tasks(candidate.data) if candidate.data else []
    skipped, sampled = given_up(run, stage="answer"), []
    for draw in draws(candidate.target, run.models, seed=run.experiment.seed):
        missing = [ask for ask in unasked(draw, [task.prompt for task in tasks], run.ledger) if ask.key not in skipped]
        usual = _usual(usual_answer(run.ledger, model=draw.candidate.id, benchmark=PROMPTS))
        takes = _estimate(run, draw.candidate, missing, usual, about=False)
        sampled += [task for task in tasks for _ in range(draw.samples_of(task.prompt.kind))]
        yield _Step("sample", draw.title, candidate.name, len(missing), takes)
    if judge := candidate.target.reward.judge:
        most = max(draw.sampling.max_tokens for draw in draws(candidate.target, run.models, seed=run.experiment.seed))
        by = run.models[judge]
        left = max(0, len(sampled) - len(run.ledger.rewards(scorer=by.id)))
        takes = _estimate(run, by, [rating_request(task, by) for task in sampled[:left]], None, about=True)
        price = run.engines.price(by)
        if takes.dollars and price:  # at most, for the responses that they are shown
            low, high = takes.dollars
            shown = most * left
            takes = replace(takes, dollars=(low, high + token_cost(price, shown, 0, batch=_batch(by))))
        yield _Step("rate", by.name, candidate.name, left, takes)


def _answers(run: Run, candidate: Candidate, one: Asked) -> _Step:
    found, skipped = one.answers(candidate, run.ledger), given_up(run, stage="answer")
    unanswered = [q for q in one.questions if q.id not in found]
    left = [a for a in asks(unanswered, identity=candidate.id, sampling=one.sampling) if a.key not in skipped]
    usual = _usual(usual_answer(run.ledger, model=candidate.id, benchmark=one.benchmark.name))
    missing = len(left)
    if one.benchmark.harness and left:  # a question may be several requests, each with its examples
        shown = one.benchmark.harness.prompts([a.question for a in left])
        left = [replace(a, messages=(Message("user", text),)) for a in left for text in shown[a.question.id]]
    # Of later turns nobody knows yet what was said before.
    takes = _estimate(run, candidate, left, usual, about=any(len(q.turns) > 1 for q in unanswered))
    return _Step("answer", candidate.name, one.benchmark.name, missing, takes)


def _judgments(run: Run, judge: Judge, one: Asked) -> _Step:
    def requests() -> Iterator[JudgeRequest]:
        every = wanted(run, one, judge, unanswered=True)
        return (r for r in every if not (is_shown_unanswered(r) and never.intersection({(r.model, r.question)})))

    failed = run.ledger.failures(stage="answer", benchmark=one.benchmark.name) if not run.retry_failed else []
    never = {(f.model, f.question) for f in failed if not FAILURES.get(f.kind, True)}
    keys = {r.judgment for r in requests()}
    left = keys - run.ledger.have("judgments", keys) - given_up(run, stage="judge")
    usual = _usual(usual_judgment(run.ledger, judge=judge.model.id, benchmark=one.benchmark.name))
    tokens = {q.id: one.sampling(q).max_tokens for q in one.questions}
    shown = sum(
        tokens[r.question] for r in _distinct(requests()) if r.judgment in left and is_shown_unanswered(r)
    )  # at most, of the answers that are not there yet
    asked = (r for r in _distinct(requests()) if r.judgment in left)
    takes = _estimate(run, judge.candidate, asked, usual, about=shown > 0)
    price = run.engines.price(judge.candidate)
    if takes.dollars and price:
        low, high = takes.dollars
        takes = replace(takes, dollars=(low, high + token_cost(price, shown, 0, batch=_batch(judge.candidate))))
    return _Step("judge", judge.model.name, one.benchmark.name, len(left), takes)


def _estimate(run: Run, asked: Candidate, requests: Iterable[Priced], usual: Usual | None, *, about: bool) -> Estimate:
    endpoint = asked.endpoint
    folder = Path(endpoint.tokenizer) if endpoint and endpoint.tokenizer else asked.folder
    tokens = tokenizer_for(endpoint.model if endpoint else asked.name, folder=folder)
    found = estimate(
        requests,
        tokens=Tokens(tokens.count, about=tokens.about or about),
        price=run.engines.price(asked) if endpoint else _FREE,
        batch=_batch(asked),
        usual=usual,
        extra_body=endpoint.extra_body if endpoint else None,
    )
    if not endpoint or _batch(asked) or not usual:
        return found
    return timed(
        found,
        seconds=usual.seconds,
        concurrency=endpoint.concurrency * (1 + len(endpoint.replicas)),
        requests_per_minute=endpoint.requests_per_minute,
        tokens_per_minute=endpoint.tokens_per_minute,
    )


def _batch(asked: Candidate) -> bool:
    return bool(asked.endpoint and asked.endpoint.mode == "batch")


def _distinct(requests: Iterable[JudgeRequest]) -> Iterator[JudgeRequest]:
    seen: set[str] = set()
    for request in requests:
        if request.judgment not in seen:
            seen.add(request.judgment)
            yield request


def _usual(found: tuple[int, float, float] | None) -> Usual | None:
    return Usual(*found) if found else None
