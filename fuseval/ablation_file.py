"""The file of `fuseval ablate`: an experiment, and what is searched for among merges of its models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from fuseval.config import ConfigError, did_you_mean, read_mapping, validated, with_task_files
from fuseval.experiment import Experiment
from fuseval.mistakes import mistakes
from fuseval.searching import SearchError, check_search
from fuseval.space import ParameterSpec, Space, fits
from fuseval.strict import Name, Strict
from fuseval.variant import can_be, read_space

BLOCK = "ablation"


class SearchSpec(Strict):
    """How the space is gone through; see fuseval.searching."""

    kind: Literal["grid", "random", "tpe", "cma_es", "nsga2"] = "tpe"
    trials: Annotated[int, Field(ge=1)] | None = None  # None: of a grid all its points, else 32
    seed: Annotated[int, Field(ge=0)] = 0
    earlier: bool = True  # begin with what finished trials of other studies over the same space have shown


class ScoreSpec(Strict):
    """One stored score: a metric of one of the experiment's benchmarks that is a mean over its questions.

    Where the benchmark says that less of it is better, it counts with the minus sign, whatever its weight's.
    """

    benchmark: str  # as it is named in `benchmarks`
    metric: str
    judge: str | None = None  # a judge or panel by name; None: the one that there is, or the check


_Score = TypeVar("_Score", bound=ScoreSpec)


class WeightedScore(ScoreSpec):
    """A score and how much it counts."""

    weight: float = 1.0  # below 0 for what should be small


class ObjectiveSpec(Strict):
    """What makes a merge better than another: the weighted sum of scores, less a penalty; larger is better."""

    scores: Annotated[list[WeightedScore], Field(min_length=1)]
    length_penalty: Annotated[float, Field(ge=0)] = 0.0  # points for each 100 tokens that an answer is longer than
    # the base's to the same question, on average over the questions


class RacingSpec(Strict):
    """Trials are asked few questions first, and more only while they may still be the best."""

    start: Annotated[int, Field(ge=1)]  # questions of the first rung, spread over the benchmarks
    factor: Annotated[float, Field(gt=1)] = 2.0  # by how much a rung has more than the one before it
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05  # the chance to drop the truly best, over the whole race


class CapsSpec(Strict):
    """When to stop, whatever has been found; the study goes on with larger caps."""

    trials: Annotated[int, Field(ge=1)] | None = None
    dollars: Annotated[float, Field(gt=0)] | None = None  # charged for the study's own answers and judgments
    hours: Annotated[float, Field(gt=0)] | None = None  # of making, answering and judging, over all runs


class AblationSpec(Strict):
    """What is searched for among merges of ``sources`` onto ``base``; see docs/ablating.md."""

    name: Name | None = None  # None: the experiment's
    base: str | None = None  # None: the model that the others are compared with
    sources: Annotated[list[str], Field(min_length=1)]
    method: Any = None  # what all merges share, where the space does not say it
    params: dict[str, Any] = Field(default_factory=dict)
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # None: the base's
    seed: Annotated[int, Field(ge=0)] = 0  # of the methods that draw at random
    search: SearchSpec = Field(default_factory=SearchSpec)
    space: dict[str, ParameterSpec] = Field(default_factory=dict)
    points: list[dict[str, str | bool | int | float]] | None = None  # of the space, to try these and search no further
    objective: Annotated[list[ObjectiveSpec], Field(min_length=1)]  # or one; several are weighed against each other
    constraints: list[ScoreSpec] = Field(default_factory=list)  # no worse than the base beyond the interval
    racing: RacingSpec | None = None
    caps: CapsSpec = Field(default_factory=CapsSpec)
    holdout: Annotated[int, Field(ge=0)] = 0  # questions that the search does not see, on which the winner is scored
    keep: Literal["best", "none", "all"] = "none"  # which merges are written as checkpoints
    strip_thinking: bool = False  # of the merges, as of a model

    @field_validator("objective", mode="before")
    @classmethod
    def _one(cls, given: Any) -> Any:
        return [given] if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _one_race(self) -> AblationSpec:
        if self.racing and len(self.objective) > 1:
            raise ValueError("a race has one leader, and here are several objectives: leave racing out")
        return self


class AblationFile(Experiment):
    """An experiment with its block ``ablation``."""

    ablation: AblationSpec

    @property
    def title(self) -> str:
        """The study's name."""
        return self.ablation.name or self.name

    @property
    def merged_onto(self) -> str:
        """The name of the merges' base."""
        return self.ablation.base or self.base

    @property
    def space(self) -> Space:
        """What is searched; raises ConfigError."""
        given = self.ablation
        return read_space(given.space, sources=given.sources, method=given.method, params=given.params)


def load_ablation(file: Path) -> AblationFile:
    """Read and check ``file`` wholly; raises ConfigError with one line for each mistake."""
    return checked_ablation(read_mapping(file, "ablation file"), file)


def checked_ablation(given: dict[str, Any], file: Path) -> AblationFile:
    """Return what was read from ``file``, checked as :func:`load_ablation` does."""
    read = _with_task_files(validated(AblationFile, given, file), file)
    found = [*mistakes(read, file.parent), *_mistakes(read)]
    lines = [f"{text} ({place} in {file.name})" for place, text in found]
    try:
        space, points = read.space, read.ablation.points
        lines += [
            f"{point!r} gives no value, or one that cannot be, to a parameter of the space "
            f"(ablation.points[{number}] in {file.name})"
            for number, point in enumerate(points or ())
            if not (fits(space, point) and can_be(space, point))
        ]
        if points is None:
            check_search(space, read.ablation.search.kind, objectives=len(read.ablation.objective))
    except ConfigError as error:
        lines += [f"{line.removesuffix(')')} in {file.name})" for line in str(error).splitlines()]
    except SearchError as error:
        lines.append(f"{error} (ablation.search in {file.name})")
    if lines:
        raise ConfigError("\n".join(lines))
    return read


def _with_task_files(read: AblationFile, file: Path) -> AblationFile:
    """Return the file with those of its lm-eval tasks named in full, in what the block says of them too."""
    found = with_task_files(read, file)
    full = {was.name: spec.name for was, spec in zip(read.benchmarks, found.benchmarks, strict=True)}

    def told(score: _Score) -> _Score:
        return score.model_copy(update={"benchmark": full.get(score.benchmark, score.benchmark)})

    given = found.ablation
    objective = [one.model_copy(update={"scores": [told(score) for score in one.scores]}) for one in given.objective]
    changed = {"objective": objective, "constraints": [told(score) for score in given.constraints]}
    return found.model_copy(update={"ablation": given.model_copy(update=changed)})


def _mistakes(read: AblationFile) -> Iterator[tuple[str, str]]:
    """Yield the place and the text of what the block says of things that are not in the experiment."""
    given = read.ablation
    known = [model.name for model in read.models]
    known += [target.name for target in read.fusion.targets] + [merge.name for merge in read.fusion.merges]
    endpoints = {model.name for model in read.models if model.endpoint}
    if read.engine.kind == "endpoints":
        yield "engine.kind", "a study's merges are served by nobody: take kind local or ray for them"
    named = [("base", read.merged_onto), *((f"sources[{i}]", name) for i, name in enumerate(given.sources))]
    for place, name in named:
        if name not in known:
            text = f"no model is called {name!r} here; there are {', '.join(known)}.{did_you_mean(name, known)}"
            yield f"{BLOCK}.{place}", text
        elif name in endpoints:
            yield f"{BLOCK}.{place}", f"{name!r} is an endpoint: its weights are not here to be merged"
    if twice := sorted({name for name in given.sources if given.sources.count(name) > 1}):
        yield f"{BLOCK}.sources", f"{twice[0]!r} is there twice; name it once"
    benchmarks = [spec.name for spec in read.benchmarks]
    judges = [judge.model for judge in read.judges] + [panel.name for panel in read.panels]
    for place, score in _scores(given):
        if score.benchmark not in benchmarks:
            more = did_you_mean(score.benchmark, benchmarks)
            text = f"no benchmark is called {score.benchmark!r} here; there are {', '.join(benchmarks)}.{more}"
            yield f"{place}.benchmark", text
        if benchmarks.count(score.benchmark) > 1:
            text = f"{score.benchmark!r} stands in benchmarks twice, with other options, and a score cannot tell which"
            yield f"{place}.benchmark", f"{text}: a study of each is two files"
        if score.judge is not None and score.judge not in judges:
            there = ", ".join(judges) or "none"
            yield f"{place}.judge", f"no judge is called {score.judge!r} here; there are {there}"


def _scores(given: AblationSpec) -> Iterator[tuple[str, ScoreSpec]]:
    for number, objective in enumerate(given.objective):
        for at, score in enumerate(objective.scores):
            yield f"{BLOCK}.objective[{number}].scores[{at}]", score
    for at, constraint in enumerate(given.constraints):
        yield f"{BLOCK}.constraints[{at}]", constraint
