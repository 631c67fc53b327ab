"""Experiment: everything that one YAML file may say, and what each key means. Nothing here reads a file."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, ValidationInfo, field_validator, model_validator

from evals.engine import EngineSettings
from fuseval.strict import Name, Strict
from fuseval.target import Target


class PriceSpec(Strict):
    """What an endpoint charges, in US dollars per million tokens."""

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]
    cached_input: Annotated[float, Field(ge=0)] | None = None  # of prompt tokens that it has at hand; None: as input
    batch: Annotated[float, Field(ge=0)] = 0.5  # the factor on all of it in batch mode


class Endpoint(Strict):
    """A model behind an OpenAI-compatible server."""

    model: str  # as the server calls it
    base_url: str | None = None  # None: OpenAI's own
    replicas: list[str] = Field(default_factory=list)  # base URLs of more servers of the very same model
    api_key_env: str | None = None  # the NAME of the environment variable that holds the key
    extra_body: dict[str, Any] | None = None  # fields added to every request; null drops one that we would send
    concurrency: Annotated[int, Field(ge=1)] = 64  # requests in flight a server, at most; found by trying
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None  # None: found by trying, or told by the server
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    timeout: Annotated[float, Field(gt=0)] = 120.0  # seconds for one reply
    max_attempts: Annotated[int, Field(ge=1)] = 5
    mode: Literal["chat", "batch"] = "chat"  # batch: OpenAI's Batch API, at half the price, within a day
    poll: Annotated[float, Field(gt=0)] = 60.0  # seconds between two looks at a batch
    price: PriceSpec | None = None  # None: from the price table, which knows OpenAI's and a few others'
    tokenizer: str | None = None  # folder of a tokenizer, for --dry-run; None: OpenAI's own, or an estimate

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, given: str | None) -> str | None:
        if given is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", given):
            raise ValueError("api_key_env is the NAME of an environment variable, never the key: export the key there")
        return given

    @field_validator("base_url", "replicas")
    @classmethod
    def _urls(cls, given: str | list[str] | None, info: ValidationInfo) -> str | list[str] | None:
        for url in [given] if isinstance(given, str) else given or ():
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"{info.field_name}: {url!r} must begin with http:// or https:// and name a host")
            if set(parse_qs(parts.query)) - {"api-version"}:
                raise ValueError(f"{info.field_name} must hold nothing behind a ?: a key is named as api_key_env")
            if parts.username or parts.password:
                raise ValueError(
                    f"{info.field_name} must hold no user or password: name the key's environment variable as "
                    "api_key_env"
                )
        return given

    @model_validator(mode="after")
    def _replicas_of_a_url(self) -> Endpoint:
        if self.replicas and self.base_url is None:
            raise ValueError("replicas are servers beside the one at base_url: give base_url too")
        if self.replicas and self.mode == "batch":
            raise ValueError("a batch goes to one server: leave replicas out, or mode")
        return self


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


class Engine(Strict):
    """The vLLM engine of this machine; see evals.engine.EngineSettings for what each field means."""

    max_model_len: Annotated[int, Field(ge=16)] = 4096
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    kv_cache_gib: Annotated[float, Field(gt=0)] = 1.0
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    max_num_seqs: Annotated[int, Field(ge=1)] | None = None

    def settings(self) -> EngineSettings:
        """Return these as plain settings."""
        return EngineSettings(**{f.name: getattr(self, f.name) for f in fields(EngineSettings)})


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
    seed: Annotated[int, Field(ge=0)] = 0
    ledger: str = "fuseval.duckdb"
    report: str | None = "report.html"  # null: no page
    checkpoints: str = "checkpoints"  # where fused models are written
    coverage: Annotated[float, Field(ge=0, le=1)] = 0.95  # exit code 3 below this share of answers or verdicts
    notes: list[str] = Field(default_factory=list)  # shown at the top of the report

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
