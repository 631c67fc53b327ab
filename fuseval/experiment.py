"""Experiment: everything that one YAML file may say, and what each key means. Nothing here reads a file."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fuseval.endpoint_spec import Endpoint
from fuseval.engine_spec import Engine
from fuseval.strict import Name, Strict
from fuseval.target import Target


class ModelSpec(Strict):
    """A model that is there already: exactly one of ``path``, ``hub`` and ``endpoint``.

    With ``adapter_of`` it is a LoRA adapter's folder or repository, and the model is that other one with it on.
    """

    name: Name
    path: str | None = None  # a folder of safetensors, or a GGUF file
    hub: str | None = None  # a repository id on the Hugging Face hub
    revision: str | None = None  # of the hub repository
    endpoint: Endpoint | None = None
    adapter_of: str | None = None  # the name of the model that the adapter is laid over
    engine: Engine | None = None  # of its own, beside the experiment's
    chat_template: str | None = None  # a Jinja file that says how its chats are written; None: the model's own
    evaluate: bool = True  # false: only a judge, a base or a source
    strip_thinking: bool = False  # take <think>…</think> and the like out of its replies; they are kept beside them
    family: str | None = None  # for the judges' audit: does a judge prefer its own kind? None: guessed from the name

    @model_validator(mode="after")
    def _one_source(self) -> ModelSpec:
        if sum(x is not None for x in (self.path, self.hub, self.endpoint)) != 1:
            raise ValueError(f"model {self.name!r} needs exactly one of path, hub and endpoint")
        if self.adapter_of and self.endpoint:
            raise ValueError(f"model {self.name!r} is an endpoint and cannot be an adapter: leave adapter_of out")
        if self.chat_template and self.endpoint:
            raise ValueError(f"model {self.name!r} is an endpoint, whose server has the chat template: leave it out")
        if self.engine and self.endpoint:
            raise ValueError(f"model {self.name!r} is an endpoint and runs in no engine of ours: leave engine out")
        if self.engine and self.engine.kind == "endpoints" and self.chat_template:
            raise ValueError(f"model {self.name!r} runs at servers, which have the chat template: leave it out")
        return self


Layers = Annotated[list[int], Field(min_length=2, max_length=2)]  # the first, and the one after the last


class SliceSpec(Strict):
    """Consecutive layers of a merge's result, and the layers of the base and of each source that they are made from."""

    base: Layers
    sources: Annotated[list[Layers | None], Field(min_length=1)]  # null: takes no part
    params: dict[str, Any] = Field(default_factory=dict)  # over the merge's

    @model_validator(mode="after")
    def _same_length(self) -> SliceSpec:
        ranges = [self.base, *(layers for layers in self.sources if layers)]
        if any(not 0 <= start < stop for start, stop in ranges):
            raise ValueError("layers are the first and the one after the last, like [0, 16]")
        if len({stop - start for start, stop in ranges}) > 1:
            raise ValueError("the base and all sources of a slice need the same number of layers")
        if len(ranges) == 1:
            raise ValueError("a slice needs a source that is not null")
        return self


class MergeSettings(Strict):
    """How models are merged; see fusion.settings for what a setting may be."""

    method: Any  # a key of fusion.methods.METHODS, or a mapping of globs on tensor names to such
    params: dict[str, Any] = Field(default_factory=dict)  # the method's keyword arguments, as settings
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # None: the base's
    tokenizer: str = "base"  # whose vocabulary the result has: base, union, or one of the sources (or its number)
    slices: list[SliceSpec] = Field(default_factory=list)  # none: all layers of the base
    seed: Annotated[int, Field(ge=0)] = 0  # of the methods that draw at random

    @field_validator("tokenizer", mode="before")
    @classmethod
    def _a_number_too(cls, given: Any) -> Any:
        return str(given) if isinstance(given, int) and not isinstance(given, bool) else given


class Merge(MergeSettings):
    """A model made by merging ``sources`` onto ``base`` in weight space."""

    name: Name
    base: str
    sources: Annotated[list[str], Field(min_length=1)]
    evaluate: bool = True
    strip_thinking: bool = False  # as a model's

    @property
    def tokenizer_of(self) -> str:
        """Whose vocabulary the result has, as fusion.recipe.MergeRecipe says it: base, union, or a source's number."""
        if self.tokenizer in ("base", self.base):
            return "base"
        return str(self.sources.index(self.tokenizer) + 1) if self.tokenizer in self.sources else self.tokenizer


class Fusion(Strict):
    """What is made before anything is asked: first the targets, then the merges."""

    targets: list[Target] = Field(default_factory=list)
    merges: list[Merge] = Field(default_factory=list)


class BenchmarkSpec(Strict):
    """A benchmark by name (``starter``, ``arena_hard@v2.0``), or ``limit`` of its questions."""

    name: str
    limit: Annotated[int, Field(ge=1)] | None = None  # spread over the categories, of each the first
    seed: Annotated[int, Field(ge=0)] | None = None  # of each category random ones instead
    options: dict[str, Any] = Field(default_factory=dict)  # the benchmark's own; see docs/benchmarks.md

    @model_validator(mode="before")
    @classmethod
    def _plain_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given


class JudgeSpec(Strict):
    """A judge: one of the experiment's models, by name."""

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None  # of a reply; None: what the benchmark asks for
    attempts: Annotated[int, Field(ge=1)] = 1  # replies asked for, in all, until one can be read
    structured: bool = False  # JSON with an explanation and a verdict, where the server can bound replies to that


class PanelSpec(Strict):
    """Several judges as one."""

    name: Name
    judges: Annotated[list[str], Field(min_length=1)]  # of the experiment's judges
    how: Literal["mean", "majority", "weighted", "by_category"] = "mean"
    weights: dict[str, float] = Field(default_factory=dict)  # by judge, of "weighted"
    categories: dict[str, str | list[str]] = Field(default_factory=dict)  # a category's judges, of "by_category"
    quorum: Annotated[int, Field(ge=1)] | None = None  # verdicts that it takes; None: every judge's


class AuditSpec(Strict):
    """What judges are asked besides, so that one can tell how far to trust them: questions of each benchmark."""

    controls: Annotated[int, Field(ge=0)] = 0  # a constant answer and another question's answer must lose
    retest: Annotated[int, Field(ge=0)] = 0  # asked the same once more
    people: str | None = None  # file of people's votes on MT-Bench answers, to hold judges against


class SamplingSpec(Strict):
    """Overrides the benchmarks' own sampling; what is None stays the benchmark's."""

    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: list[str] | None = None


class Accelerate(Strict):
    """How several processes train the targets together: what `accelerate launch` is told. See docs/fusing.md."""

    config: str  # a file of accelerate's; examples/accelerate has some
    arguments: list[str] = Field(default_factory=list)  # of accelerate launch, over those of the file
    through: list[str] = Field(default_factory=list)  # a command that starts it on every machine: [srun, …]


class Experiment(Strict):
    """Everything that `fuseval run` does, in one file."""

    name: Name = "experiment"
    models: Annotated[list[ModelSpec], Field(min_length=1)]
    fusion: Fusion = Field(default_factory=Fusion)
    baseline: str | None = None  # compared with; None: the first model
    benchmarks: Annotated[list[BenchmarkSpec], Field(min_length=1)]
    judges: list[JudgeSpec] = Field(default_factory=list)
    panels: list[PanelSpec] = Field(default_factory=list)
    audit: AuditSpec = Field(default_factory=AuditSpec)
    budget: Annotated[float, Field(gt=0)] | None = None  # US dollars, what the ledger holds included: "20 USD"
    prices: str | None = None  # a price table of one's own; see docs/judging.md
    sampling: SamplingSpec = Field(default_factory=SamplingSpec)
    engine: Engine = Field(default_factory=Engine)
    accelerate: Accelerate | None = None  # or the file alone; None: one process trains
    seed: Annotated[int, Field(ge=0)] = 0
    ledger: str = "fuseval.duckdb"
    report: str | None = "report.html"  # null: no page
    checkpoints: str = "checkpoints"  # where fused models are written
    coverage: Annotated[float, Field(ge=0, le=1)] = 0.95  # exit code 3 below this share of answers or verdicts
    notes: list[str] = Field(default_factory=list)  # shown at the top of the report

    @field_validator("accelerate", mode="before")
    @classmethod
    def _the_file_alone(cls, given: Any) -> Any:
        return {"config": given} if isinstance(given, str) else given

    @field_validator("budget", mode="before")
    @classmethod
    def _dollars(cls, given: Any) -> Any:
        if isinstance(given, str):
            match = re.fullmatch(r"\s*\$?\s*(\d+(?:\.\d+)?)\s*(?:USD|\$)?\s*", given, re.IGNORECASE)
            if not match:
                raise ValueError(f"budget {given!r} is no sum of dollars: write 20 USD")
            return float(match[1])
        return float(given) if isinstance(given, int) and not isinstance(given, bool) else given

    @property
    def base(self) -> str:
        """The name of the model that the others are compared with."""
        return self.baseline or self.models[0].name

    def endpoint_of(self, spec: ModelSpec, *, tokenizer: str | None = None) -> Endpoint | None:
        """Return where a model is asked over HTTP: its own endpoint, or the servers that its engine names."""
        engine = spec.engine or self.engine
        if spec.endpoint or engine.kind != "endpoints":
            return spec.endpoint
        return engine.endpoint(spec.name, tokenizer=tokenizer)
