"""lm-eval's tasks in an experiment: who is asked how, and their metrics into the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from evals.answer import asks
from evals.lm_harness import Harness
from evals.lm_options import ENDPOINT_DRAWS, ENGINE_DRAWS, most_tokens
from evals.records import Answer, Failure, Verdict
from fuseval.config import ConfigError
from fuseval.judging import given_up
from fuseval.models import Candidate

if TYPE_CHECKING:
    from evals.lm_model import Responder
    from fuseval.asking import Asked
    from fuseval.pipeline import Run


def check_harness(run: Run) -> None:
    """Raise ConfigError for a task that one of the models cannot be asked."""
    pairs = [(one.benchmark.harness, c) for one in run.asked if one.benchmark.harness for c in run.candidates]
    if wrong := [text for harness, candidate in pairs for text in _wrong(run, harness, candidate)]:
        raise ConfigError("\n".join(wrong))


def _wrong(run: Run, harness: Harness, candidate: Candidate) -> Iterator[str]:
    yield from _cannot_draw(run, harness, candidate)
    if not candidate.endpoint:
        if candidate.strip_thinking and harness.options.backend == "hf":
            yield f"{candidate.name!r} has strip_thinking, which backend hf of {harness.name} lacks: take engine"
        return
    if "generate_until" in harness.kinds and not harness.options.apply_chat_template:
        yield (
            f"{harness.name} is asked of {candidate.name!r}, an endpoint, which chats: say apply_chat_template: true "
            "in its options"
        )
    if harness.kinds == {"generate_until"}:
        return
    if not _has_completions(candidate):
        yield (
            f"{harness.name} needs log-likelihoods, and {candidate.name!r} is an endpoint without base_url or "
            "tokenizer (a folder), or one of mode batch: give both, where the server echoes prompts (as vLLM), or leave"
            " one of them out"
        )
    price = run.engines.price(candidate)
    if run.experiment.budget is not None and price is not None and (price.input or price.output):
        yield (
            f"{harness.name} needs log-likelihoods of {candidate.name!r}, which no budget counts: leave budget out, or "
            "one of them"
        )


def _cannot_draw(run: Run, harness: Harness, candidate: Candidate) -> Iterator[str]:
    """Yield what of the tasks' generation_kwargs a candidate cannot be told, and replies that it cannot hold."""
    if not candidate.endpoint and harness.options.backend == "hf":
        return
    known, who = (ENDPOINT_DRAWS, "endpoints are") if candidate.endpoint else (ENGINE_DRAWS, "the engine is")
    ways = "" if candidate.endpoint else ", or take backend: hf"
    for task, told in harness.drawn.items():
        if unknown := sorted(set(told) - known):
            given = ", ".join(f"{name}: {told[name]!r}" for name in unknown)
            yield (
                f"lm_eval:{task} draws replies by {given}, which {who} not told: say gen_kwargs: "
                f"{{{unknown[0]}: null}} in the options of {harness.name}{ways}"
            )
        longest, most = run.engines.settings.max_model_len, most_tokens(told)
        if not candidate.endpoint and most >= longest:
            yield (
                f"lm_eval:{task} asks {candidate.name!r} for replies of up to {most} tokens, and engine.max_model_len "
                f"is {longest}, prompt and reply together: raise it, or say gen_kwargs: {{max_gen_toks: …}} in the "
                f"options of {harness.name}"
            )


def answers(run: Run, candidate: Candidate, one: Asked) -> Iterator[Answer | Failure]:
    """Yield what comes of asking a candidate the questions of a task that it has not answered."""
    harness, skipped = one.benchmark.harness, given_up(run, stage="answer")
    assert harness is not None
    wanted = list(asks(one.questions, identity=candidate.id, sampling=one.sampling))
    known = run.ledger.have("answers", [ask.key for ask in wanted]) | skipped
    missing = [ask for ask in wanted if ask.key not in known]
    if missing:
        model, cost = _responder(run, candidate, harness), run.engines.cost_of(candidate)
        yield from harness.answers(missing, identity=candidate.id, model=model, cost=cost)


def measure_all(run: Run) -> None:
    """Compute the tasks' own metrics of the answers that were not measured yet, and aggregate them anew."""
    for one in run.asked:
        for candidate in run.candidates if one.benchmark.harness else ():
            measure(run, candidate, one)


def measure(run: Run, candidate: Candidate, one: Asked) -> None:
    """Compute a task's own metrics of a candidate's answers, where some were not measured yet, and aggregate them."""
    harness = one.benchmark.harness
    assert harness is not None
    found = [answer for several in one.answers(candidate, run.ledger).values() for answer in several]
    if not found:
        return
    keys = {answer.key for answer in found}
    known = [
        a for a in run.ledger.aggregates(benchmark=harness.name, version=harness.version) if a.model == candidate.id
    ]
    if known and all(a.n == len(found) for a in known) and not keys - run.ledger.have("measures", keys):
        return
    stage = f"measure {harness.name}: {candidate.name}"
    run.watch(stage, 0, len(found))
    done = harness.measure(found)
    run.ledger.add(*done.measures, *done.aggregates, *_verdicts(done.measures))
    run.watch(stage, len(found), len(found))


def _verdicts(measures: Sequence[Any]) -> Iterator[Verdict]:
    """Yield, for people who browse answers, whether each was right by its first metric that says so."""
    seen: set[str] = set()
    for m in measures:
        if m.answer not in seen and m.value in (0.0, 1.0):
            seen.add(m.answer)
            yield Verdict(m.answer, "check", m.benchmark, m.version, m.question, 1, m.model, None, "single", m.value)


def _responder(run: Run, candidate: Candidate, harness: Harness) -> Responder:
    if candidate.endpoint:
        from evals.lm_endpoint import EndpointLM

        return EndpointLM(run.ready(candidate), completions=_completions(run, candidate))
    if harness.options.backend == "hf":
        from evals.lm_model import TransformersLM
        from fuseval.pipeline import fuse

        assert candidate.folder is not None
        fuse(run, [candidate])
        settings, options = run.engines.settings, harness.options
        return TransformersLM(candidate.folder, dtype=settings.dtype, batch_size=options.batch_size)
    from evals.lm_model import EngineLM

    run.ready(candidate)
    return EngineLM(run.engines.local(candidate), strip_thinking=candidate.strip_thinking)


def _has_completions(candidate: Candidate) -> bool:
    e = candidate.endpoint
    return bool(e and e.base_url and e.tokenizer and e.mode == "chat")


def _completions(run: Run, candidate: Candidate) -> Any:
    from evals.lm_endpoint import Completions

    e = candidate.endpoint
    if e is None or not _has_completions(candidate):
        return None
    return Completions(
        base_url=str(e.base_url),
        model=e.model,
        key=run.engines.environ.get(e.api_key_env or "", ""),
        tokenizer=str(e.tokenizer),
        concurrency=min(e.concurrency, 16),
        timeout=e.timeout,
        max_attempts=e.max_attempts,
        max_length=run.engines.settings.max_model_len,
    )
