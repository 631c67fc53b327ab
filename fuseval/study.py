"""A study before its first trial: who is merged, which questions are asked when, and what its record says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from evals.keys import content_key
from evals.racing import rungs as rung_sizes
from evals.records import Question, Study
from fuseval.ablation_file import AblationFile, ScoreSpec
from fuseval.asking import Asked, asked, spread
from fuseval.config import ConfigError
from fuseval.experiment import BenchmarkSpec
from fuseval.models import Candidate
from fuseval.pipeline import Run
from fuseval.prices import unpriced
from fuseval.searching import AHEAD
from fuseval.space import Space, to_json

TRIALS = 32  # of a search that is no grid, where nobody says how many


_LEAST_HELD = 2  # questions of a benchmark: an interval takes two


@dataclass(frozen=True)
class Plan:
    """What a study does: ``run`` holds the models that there are, and the ledger and engines that trials use."""

    file: AblationFile
    run: Run
    space: Space
    search: tuple[Asked, ...]  # the questions that the search sees, a benchmark each that the objective names
    holdout: tuple[Asked, ...]  # others of the same benchmarks
    rungs: tuple[tuple[Asked, ...], ...]  # of search, each with more of them; the last has all

    @property
    def base(self) -> Candidate:
        """The model that sources are merged onto."""
        return self.run.models[self.file.merged_onto]

    @property
    def sources(self) -> list[Candidate]:
        """The models that are merged onto it."""
        return [self.run.models[name] for name in self.file.ablation.sources]

    def benchmark_of(self, score: ScoreSpec, among: Sequence[Asked]) -> Asked:
        """Return the benchmark that a score is of, with those of its questions that are ``among``."""
        names = [spec.name for spec in self.file.benchmarks if spec.name in used(self.file)]
        return among[names.index(score.benchmark)]

    def judge_id(self, score: ScoreSpec) -> str | None:
        """Return the identity of the judge that a score names; None where it names none."""
        judges = {judge.spec.model: judge.model.id for judge in self.run.judges}
        judges |= {panel.name: panel.id for panel in self.run.panels}
        return judges[score.judge] if score.judge is not None else None

    @cached_property
    def record(self) -> Study:
        """The study as the ledger has it; its id is a hash of all that a trial's figures and the proposals rest on."""
        given = self.file.ablation
        base, sources = self.base.id, tuple(source.id for source in self.sources)
        shared = {"dtype": given.dtype, "seed": given.seed, "strip_thinking": given.strip_thinking}
        space = json.dumps(json.loads(to_json(self.space)) | {"shared": shared}, ensure_ascii=False)
        objective = json.dumps(self._objective(), ensure_ascii=False, sort_keys=True)
        racing = given.racing.model_dump() if given.racing else None
        how = given.search.model_dump(exclude={"trials", "seed"}) if given.points is None else {"points": given.points}
        search = json.dumps({**how, "racing": racing})
        identity = content_key("study", base, sources, space, objective, search, given.search.seed)
        return Study(identity, self.file.title, base, sources, space, objective, search, given.search.seed)

    @property
    def ahead(self) -> bool:
        """Whether points do not depend on what trials before them were worth: whole rungs are raced together."""
        given = self.file.ablation
        return given.points is not None or given.search.kind in AHEAD

    @property
    def most_trials(self) -> int | None:
        """How many trials the study has at most; None: as many as the grid has points."""
        given = self.file.ablation
        if given.points is not None:
            return min(len(given.points), given.caps.trials or len(given.points))
        wanted = given.search.trials or (None if given.search.kind == "grid" else TRIALS)
        return min(filter(None, (wanted, given.caps.trials)), default=None)

    def _objective(self) -> dict[str, object]:
        def told(score: ScoreSpec) -> dict[str, object]:
            return score.model_dump() | {
                "benchmark": place(self.benchmark_of(score, self.search)),
                "judge": self.judge_id(score),
            }

        given = self.file.ablation
        return {
            "objectives": [
                {"scores": [told(score) for score in one.scores], "length_penalty": one.length_penalty}
                for one in given.objective
            ],
            "constraints": [told(score) for score in given.constraints],
            "questions": {
                place(one): {
                    "search": len(one.questions),
                    "holdout": len(held.questions),
                    "digest": content_key([q.id for q in one.questions], [q.id for q in held.questions]),
                    "sampling": content_key([one.sampling(q) for q in one.questions]),
                }
                for one, held in zip(self.search, self.holdout, strict=True)
            },
            "baseline": self.run.base.id,
            "judges": [judge.model.id for judge in self.run.judges] + [panel.id for panel in self.run.panels],
        }


def plan_study(file: AblationFile, run: Run) -> Plan:
    """Return what the file says, with its questions parted; raises ConfigError where there are too few of them."""
    given = file.ablation
    whole = _whole(file, run)
    _check_backends(run, whole)
    if given.caps.dollars is not None and (unknown := unpriced_judges(run)):
        raise ConfigError("\n".join(f"ablation.caps.dollars cannot hold: {text}" for text in unknown))
    # A large benchmark of which a few questions are asked takes no more of them than those few.
    held = _shares(
        given.holdout,
        [
            min(len(one.questions), spec.limit or len(one.questions))
            for one, spec in zip(whole, _specs(file), strict=True)
        ],
    )
    scored = {score.benchmark for one in given.objective for score in one.scores}
    for share, spec in zip(held, _specs(file), strict=True):
        if given.holdout and spec.name in scored and share < _LEAST_HELD:
            raise ConfigError(
                f"holdout: {given.holdout} leaves {share} of {spec.name} to hold out, which tells nothing of it: make "
                "it larger"
            )
    holdout, search = [], []
    for one, count, spec in zip(whole, held, _specs(file), strict=True):
        apart = proportional(one.questions, count, seed=given.search.seed)
        kept = {q.id for q in apart}
        rest = [q for q in one.questions if q.id not in kept]
        if not rest:
            raise ConfigError(
                f"holdout: {given.holdout} leaves no question of {spec.name} to search with: make it smaller"
            )
        limit = min((n for n in (spec.limit, run.limit) if n is not None), default=None)
        holdout.append(replace(one, questions=apart))
        search.append(replace(one, questions=spread(rest, limit, seed=spec.seed)))
    return Plan(file, run, file.space, tuple(search), tuple(holdout), tuple(_rungs(file, search)))


def unpriced_judges(run: Run) -> list[str]:
    """Return, for each judge whose price nobody knows, why no cap on dollars can hold, and what to write."""
    endpoints = [judge.candidate for judge in run.judges if judge.candidate.endpoint]
    return [
        unpriced(c.name, model=c.endpoint.model, base_url=c.endpoint.base_url)
        for c in endpoints
        if c.endpoint and run.engines.price(c) is None
    ]


def place(one: Asked) -> str:
    """Return a benchmark's name with its version."""
    return f"{one.benchmark.name}@{one.benchmark.version}"


def used(file: AblationFile) -> set[str]:
    """Return the benchmarks that the objective or a constraint names."""
    given = file.ablation
    return {score.benchmark for one in given.objective for score in one.scores} | {
        score.benchmark for score in given.constraints
    }


def count(among: Sequence[Asked]) -> int:
    """Return how many questions these are."""
    return sum(len(one.questions) for one in among)


def proportional(questions: Sequence[Question], count: int, *, seed: int) -> list[Question]:
    """Return ``count`` random questions, of each category its share; a smaller count's are among a larger one's.

    So a few of them stand for all, whatever the sizes of the categories.
    """
    sizes = Counter(q.category for q in questions)
    seen: Counter[str] = Counter()
    place_of = {}
    for q in sorted(questions, key=lambda q: content_key("subset", seed, q.benchmark, q.version, q.id)):
        seen[q.category] += 1
        place_of[q.id] = (seen[q.category] - 0.5) / sizes[q.category]
    kept = {q.id for q in sorted(questions, key=lambda q: place_of[q.id])[:count]}
    return [q for q in questions if q.id in kept]


def _check_backends(run: Run, whole: Sequence[Asked]) -> None:
    """Raise ConfigError for a task that reads a checkpoint's folder, which merges in memory have not."""
    harnesses = [one.benchmark.harness for one in whole if one.benchmark.harness]
    for harness in harnesses:
        if harness.options.backend == "hf" and run.engines.settings.tensor_parallel == 1:
            raise ConfigError(
                f"{harness.name} has backend hf, which reads a checkpoint from its folder, and a study's merges are "
                "never written: take backend engine in its options (ablation.objective, ablation.constraints)"
            )


def _specs(file: AblationFile) -> list[BenchmarkSpec]:
    return [spec for spec in file.benchmarks if spec.name in used(file)]


def _whole(file: AblationFile, run: Run) -> list[Asked]:
    """Return the benchmarks with all their questions."""
    unbounded = [spec.model_copy(update={"limit": None}) for spec in _specs(file)]
    return asked(file.model_copy(update={"benchmarks": unbounded}), asset=run.asset)


def _shares(total: int, sizes: Sequence[int]) -> list[int]:
    """Return ``total`` parted in proportion to sizes, by largest remainders."""
    exact = [total * size / max(1, sum(sizes)) for size in sizes]
    found = [int(share) for share in exact]
    by_rest = sorted(range(len(sizes)), key=lambda at: found[at] - exact[at])
    for at in by_rest[: total - sum(found)]:
        found[at] += 1
    return found


def _rungs(file: AblationFile, search: Sequence[Asked]) -> list[tuple[Asked, ...]]:
    racing, total = file.ablation.racing, count(search)
    sizes = rung_sizes(racing.start, total, factor=racing.factor) if racing else [total]
    found = []
    for size in sizes:
        parts = zip(search, _shares(size, [len(one.questions) for one in search]), strict=True)
        seed = file.ablation.search.seed
        found.append(
            tuple(replace(one, questions=proportional(one.questions, share, seed=seed)) for one, share in parts)
        )
    return found
