"""A task's documents put to a model, and what the task's own filters and metrics make of the stored responses.

One document is one question, its responses are one stored answer: the text itself where there is one, else JSON of all
responses in the task's order (of a choice among answers their log-likelihoods). So a run goes on document by document,
and metrics are computed from the ledger, without a model.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evals.answer import Ask, Cost, item_seed
from evals.chat import NoReply, Reply
from evals.lm_needs import make_repeatable
from evals.records import Aggregate, Answer, Failure, Measure

if TYPE_CHECKING:
    from evals.lm_model import Responder, Response, Value

_NOTHING_ASKED = NoReply("bad_request", "the task makes no request of this document: it has no choices, or no text", 0)
BOOTSTRAP = 1_000  # draws of lm-eval's standard error where a metric has no formula; its command line takes 100,000


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a task: the question's id, the task, its number there, and itself."""

    question: str
    task: Any
    number: int
    doc: Any


def requests_of(
    documents: Sequence[Document], *, told: Mapping[str, Any], chat_template: Callable[..., str] | None
) -> dict[str, list[Any]]:
    """Return lm-eval's requests (Instances) by question.

    Examples are drawn document by document from one seed, as lm-eval does: so those before the wanted ones are drawn
    too, and a question's prompt does not depend on which others are asked.
    """
    wanted: dict[int, dict[int, str]] = defaultdict(dict)
    tasks = {id(d.task): d.task for d in documents}
    for d in documents:
        wanted[id(d.task)][d.number] = d.question
    found: dict[str, list[Any]] = {}
    for key, numbers in wanted.items():
        task = tasks[key]
        task.set_fewshot_seed(seed=told["fewshot_seed"])
        shots = int(task.get_config("num_fewshot") or 0)
        for number, doc in task.doc_iterator(limit=max(numbers) + 1):
            if number not in numbers and not shots:
                continue
            context = task.fewshot_context(
                doc,
                num_fewshot=shots,
                system_instruction=told["system_instruction"],
                apply_chat_template=chat_template is not None,
                fewshot_as_multiturn=told["fewshot_as_multiturn"] and chat_template is not None,
                chat_template=chat_template,
                gen_prefix=task.doc_to_prefix(doc),
            )
            if number in numbers:
                made = task.construct_requests(
                    doc=doc,
                    ctx=context,
                    metadata=(task.config.task, number, task.config.repeats),
                    apply_chat_template=chat_template is not None,
                    chat_template=chat_template,
                )
                found[numbers[number]] = made if isinstance(made, list) else [made]
    return found


def answers(
    wanted: Sequence[Ask],
    requests: Mapping[str, Sequence[Any]],
    *,
    identity: str,
    model: Responder,
    cost: Cost,
) -> Iterator[Answer | Failure]:
    """Yield an answer, or a failure, for each wanted question as its last response arrives."""
    from evals.lm_model import Wish

    wishes: list[Wish] = []
    places: list[tuple[int, int]] = []  # of each wish: which question's, and its place there
    for at, ask in enumerate(wanted):
        copies = [instance for instance in requests[ask.question.id] for _ in range(instance.repeats or 1)]
        wishes += [Wish(instance, item_seed(ask.seed, number)) for number, instance in enumerate(copies)]
        places += [(at, number) for number in range(len(copies))]
    lacking = Counter(at for at, _ in places)
    for ask in (ask for at, ask in enumerate(wanted) if not lacking[at]):
        yield _record(ask, [_NOTHING_ASKED], identity=identity, cost=cost, seconds=0.0)
    came: dict[int, dict[int, Response | NoReply]] = defaultdict(dict)
    begun = time.perf_counter()
    for number, response in model.respond(wishes):
        at, place = places[number]
        came[at][place] = response
        if len(came[at]) == lacking[at]:
            ordered = [found for _, found in sorted(came.pop(at).items())]
            yield _record(wanted[at], ordered, identity=identity, cost=cost, seconds=time.perf_counter() - begun)


def _record(
    ask: Ask, came: Sequence[Response | NoReply], *, identity: str, cost: Cost, seconds: float
) -> Answer | Failure:
    q = ask.question
    # Of log-likelihoods by an endpoint nobody counts the tokens: what these cost is not known, and is not 0.
    counted = [each for each in came if isinstance(each, NoReply) or each.prompt_tokens]
    prices = [cost(_reply(each, seconds)) for each in counted]
    paid = [dollars for dollars in prices if dollars is not None]
    total = sum(paid) if paid else None
    refused = next((each for each in came if isinstance(each, NoReply)), None)
    if refused is not None:
        return Failure(
            ask.key, "answer", identity, q.benchmark, q.id, refused.kind, refused.message, refused.attempts, total
        )
    there = [each for each in came if not isinstance(each, NoReply)]
    return Answer(
        key=ask.key,
        model=identity,
        benchmark=q.benchmark,
        version=q.version,
        question=q.id,
        turn=1,
        text=written([each.value for each in there]),
        finish_reason="length" if any(each.finish_reason == "length" for each in there) else "stop",
        prompt_tokens=sum(each.prompt_tokens for each in there),
        output_tokens=sum(each.output_tokens for each in there),
        seconds=seconds,
        seed=ask.seed,
        sampling=ask.sampling,
        thinking="\n\n".join(filter(None, (each.thinking for each in there))),
        cost=total,
    )


def _reply(came: Response | NoReply, seconds: float) -> Reply | NoReply:
    if isinstance(came, NoReply):
        return came
    return Reply("", came.finish_reason, came.prompt_tokens, came.output_tokens, seconds, "")


def written(values: Sequence[Value]) -> str:
    """Return responses as an answer's text."""
    if len(values) == 1 and isinstance(values[0], str):
        return values[0]
    return json.dumps([list(value) if isinstance(value, tuple) else value for value in values], ensure_ascii=False)


def read(text: str, *, count: int, texts: bool) -> list[Value]:
    """Return the responses that an answer's text holds."""
    if count == 1 and texts:
        return [text]
    return [tuple(value) if isinstance(value, list) else value for value in json.loads(text)]


@dataclass(slots=True)
class Measured:
    """What metrics found: of each answer, and over all of them as lm-eval aggregates."""

    measures: list[Measure] = field(default_factory=list)
    aggregates: list[Aggregate] = field(default_factory=list)


def measure(found: Sequence[tuple[Document, Answer]]) -> Measured:
    """Return what the tasks' metrics make of one model's answers; lm-eval's aggregate is over all that are given.

    A metric is a mean over questions where lm-eval's aggregate equals the weighted mean of its values: a list of
    numbers counts as its mean with the list's length as weight, and of brier_score and bits_per_byte a question's part
    in the mean is computed. Only those have values a question.
    """
    make_repeatable()
    raw: dict[str, list[tuple[Answer, Any]]] = defaultdict(list)
    tasks: dict[str, Any] = {}
    for document, answer in found:
        for metric, value in _metrics(document, answer):
            raw[metric].append((answer, value))
            tasks.setdefault(metric, document.task)
    done = Measured()
    for metric, values in raw.items():
        aggregate = _aggregate(tasks[metric], metric, values)
        done.aggregates.append(aggregate)
        combine = _aggregation(tasks[metric], metric)
        for answer, value in values if aggregate.is_mean else ():
            number, weight = weighed(value, combine)
            done.measures.append(
                Measure(
                    answer.key, metric, answer.model, answer.benchmark, answer.version, answer.question, number, weight
                )
            )
    return done


def _metrics(document: Document, answer: Answer) -> Iterator[tuple[str, Any]]:
    """Yield the metrics of one document after each of the task's filters; named as lm-eval's tables name them."""
    from lm_eval.api.instance import Instance

    task = document.task
    kind = task.OUTPUT_TYPE
    texts, copies = kind == "generate_until", int(task.config.repeats or 1)
    values = read(answer.text, count=copies, texts=texts)
    request = "loglikelihood" if kind == "multiple_choice" else kind
    instances = []
    for place in range(0, len(values), copies):
        made = Instance(request_type=request, doc=document.doc, arguments=(), idx=place // copies)
        made.resps = list(values[place : place + copies])
        instances.append(made)
    task._instances = instances
    task.apply_filters()
    for filtered in instances[0].filtered_resps:
        for metric, value in task.process_results(
            document.doc, [instance.filtered_resps[filtered] for instance in instances]
        ).items():
            yield metric if filtered == "none" else f"{metric},{filtered}", value


def weighed(value: Any, combine: Callable[..., Any] | None = None) -> tuple[float | None, float]:
    """Return a metric's value of one document as a number and its weight in the mean; None where it is no number.

    ``combine`` is lm-eval's aggregation. A Brier score is the mean of its questions' own ones, and bits per byte are
    −Σ log-likelihood / (Σ bytes · ln 2), which the bytes weigh.
    """
    named = getattr(combine, "__name__", "")
    if named == "brier_score" and combine is not None:
        return float(combine([value])), 1.0
    if named == "bits_per_byte" and value[1] > 0:
        return -float(value[0]) / (float(value[1]) * math.log(2.0)), float(value[1])
    if isinstance(value, list) and value and all(_is_number(each) for each in value):
        return sum(map(float, value)) / len(value), float(len(value))
    return (float(value), 1.0) if _is_number(value) else (None, 0.0)


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, str | list | tuple) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _aggregate(task: Any, metric: str, values: Sequence[tuple[Answer, Any]]) -> Aggregate:
    from lm_eval.api.metrics import stderr_for_metric

    name, combine = metric.partition(",")[0], _aggregation(task, metric)
    items = [value for _, value in values]
    total = float(combine(items))
    error = stderr_for_metric(metric=combine, bootstrap_iters=BOOTSTRAP)
    stderr = error(items) if error is not None and len(items) > 1 else None
    answer = values[0][0]
    return Aggregate(
        model=answer.model,
        benchmark=answer.benchmark,
        version=answer.version,
        metric=metric,
        value=total if math.isfinite(total) else None,
        stderr=float(stderr) if stderr is not None and math.isfinite(stderr) else None,
        n=len(items),
        is_mean=_is_mean(items, total, combine),
        higher_is_better=bool(task.higher_is_better().get(name, True)),
    )


def _aggregation(task: Any, metric: str) -> Callable[..., Any]:
    from lm_eval.api.metrics import mean

    found: Callable[..., Any] = task.aggregation().get(metric.partition(",")[0], mean)
    return found


def _is_mean(items: Iterable[Any], total: float, combine: Callable[..., Any]) -> bool:
    pairs = [weighed(item, combine) for item in items]
    if any(value is None for value, _ in pairs):
        return False
    weights = sum(weight for _, weight in pairs)
    return abs(sum((value or 0.0) * weight for value, weight in pairs) / weights - total) <= 1e-9
