"""Experiment: the YAML schema. The only file that knows YAML.

Inputs (models, data) are looked for beside the experiment file, outputs are written relative to the current folder,
and ``package:NAME/FILE`` names a file inside an installed package. Nothing here runs a model or opens a network.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import typing
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from evals.engine import EngineSettings

_Model = TypeVar("_Model", bound=BaseModel)


class ConfigError(ValueError):
    """The experiment file says something that cannot be done; one line a mistake, each with place and next step."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
Name = Annotated[str, Field(pattern=rf"^{NAME.pattern}$")]


class Endpoint(_Strict):
    """A model behind an OpenAI-compatible server."""

    model: str  # as the server calls it
    base_url: str | None = None  # None: OpenAI's own
    api_key_env: str | None = None  # the NAME of the environment variable that holds the key
    extra_body: dict[str, Any] | None = None  # fields added to every request; null drops one that we would send
    concurrency: Annotated[int, Field(ge=1)] = 16
    timeout: Annotated[float, Field(gt=0)] = 120.0  # seconds for one reply
    max_attempts: Annotated[int, Field(ge=1)] = 5

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, given: str | None) -> str | None:
        if given is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", given):
            raise ValueError("api_key_env is the NAME of an environment variable, never the key: export the key there")
        return given

    @field_validator("base_url")
    @classmethod
    def _a_url(cls, given: str | None) -> str | None:
        if given is None:
            return given
        parts = urlsplit(given)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url must begin with http:// or https:// and name a host")
        if parts.username or parts.password:
            raise ValueError(
                "base_url must hold no user or password: name the key's environment variable as api_key_env"
            )
        return given


class ModelSpec(_Strict):
    """A model that is there already: exactly one of ``path``, ``hub`` and ``endpoint``.

    With ``adapter_of`` it is a LoRA adapter's folder or repository, and the model is that other one with it on.
    """

    name: Name
    path: str | None = None  # a folder of safetensors, or a GGUF file
    hub: str | None = None  # a repository id on the Hugging Face hub
    revision: str | None = None  # of the hub repository
    endpoint: Endpoint | None = None
    adapter_of: str | None = None  # the name of the model that the adapter is laid over
    evaluate: bool = True  # false: only a judge, a base or a source

    @model_validator(mode="after")
    def _one_source(self) -> ModelSpec:
        if sum(x is not None for x in (self.path, self.hub, self.endpoint)) != 1:
            raise ValueError(f"model {self.name!r} needs exactly one of path, hub and endpoint")
        if self.adapter_of and self.endpoint:
            raise ValueError(f"model {self.name!r} is an endpoint and cannot be an adapter: leave adapter_of out")
        return self


class Target(_Strict):
    """A model made by training: ``sft`` is supervised fine-tuning of ``base`` on the conversations in ``data``."""

    name: Name
    kind: Literal["sft"]
    base: str
    data: str  # JSONL of {"messages": [{"role": ..., "content": ...}, ...]}
    params: dict[str, Any] = Field(default_factory=dict)  # fields of fusion.sft.SftParams
    evaluate: bool = True


Layers = Annotated[list[int], Field(min_length=2, max_length=2)]  # the first, and the one after the last


class SliceSpec(_Strict):
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


class MergeSettings(_Strict):
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

    @property
    def tokenizer_of(self) -> str:
        """Whose vocabulary the result has, as fusion.recipe.MergeRecipe says it: base, union, or a source's number."""
        if self.tokenizer in ("base", self.base):
            return "base"
        return str(self.sources.index(self.tokenizer) + 1) if self.tokenizer in self.sources else self.tokenizer


class Fusion(_Strict):
    """What is made before anything is asked: first the targets, then the merges."""

    targets: list[Target] = Field(default_factory=list)
    merges: list[Merge] = Field(default_factory=list)


class BenchmarkSpec(_Strict):
    """A benchmark by name (``starter``, ``arena_hard@v2.0``), or ``limit`` of its questions."""

    name: str
    limit: Annotated[int, Field(ge=1)] | None = None  # spread over the categories, of each the first
    seed: Annotated[int, Field(ge=0)] | None = None  # of each category random ones instead
    options: dict[str, Any] = Field(default_factory=dict)  # the benchmark's own; see docs/benchmarks.md

    @model_validator(mode="before")
    @classmethod
    def _plain_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given


class JudgeSpec(_Strict):
    """A judge: one of the experiment's models, by name."""

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None  # of a reply; None: what the benchmark asks for


class SamplingSpec(_Strict):
    """Overrides the benchmarks' own sampling; what is None stays the benchmark's."""

    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: list[str] | None = None


class Engine(_Strict):
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


class Experiment(_Strict):
    """Everything that `fuseval run` does, in one file."""

    name: Name = "experiment"
    models: Annotated[list[ModelSpec], Field(min_length=1)]
    fusion: Fusion = Field(default_factory=Fusion)
    baseline: str | None = None  # compared with; None: the first model
    benchmarks: Annotated[list[BenchmarkSpec], Field(min_length=1)]
    judges: list[JudgeSpec] = Field(default_factory=list)
    sampling: SamplingSpec = Field(default_factory=SamplingSpec)
    engine: Engine = Field(default_factory=Engine)
    seed: Annotated[int, Field(ge=0)] = 0
    ledger: str = "fuseval.duckdb"
    report: str | None = "report.html"  # null: no page
    checkpoints: str = "checkpoints"  # where fused models are written
    coverage: Annotated[float, Field(ge=0, le=1)] = 0.95  # exit code 3 below this share of answers or verdicts
    notes: list[str] = Field(default_factory=list)  # shown at the top of the report

    @property
    def base(self) -> str:
        """The name of the model that the others are compared with."""
        return self.baseline or self.models[0].name


def load_experiment(file: Path) -> Experiment:
    """Read and check ``file`` wholly; raises ConfigError with one line for each mistake."""
    from fuseval.mistakes import mistakes

    experiment = validated(Experiment, read_mapping(file, "experiment file"), file)
    if found := [f"{text} ({place} in {file.name})" for place, text in mistakes(experiment, file.parent)]:
        raise ConfigError("\n".join(found))
    return experiment


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but a key that is written twice is a mistake and not the last one's."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is written twice", node.start_mark)
        return dict(super().construct_mapping(node, deep=deep))


def validated(kind: type[_Model], given: Any, file: Path) -> _Model:
    """Return what was given as a record of the schema, or raise ConfigError with one line for each mistake."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise ConfigError("\n".join(_line(mistake, file, kind) for mistake in error.errors())) from None


def read_mapping(file: Path, what: str) -> dict[str, Any]:
    """Read a YAML file of keys and values."""
    try:
        given = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506
    except FileNotFoundError:
        raise ConfigError(f"there is no {what} {file}") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ConfigError(f"{file} is not YAML: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"{file} holds no mapping of keys to values; see examples/ for how to begin")
    return given


def locate(given: str, *, beside: Path) -> Path:
    """Return the path that ``given`` names: absolute, beside the experiment file, or ``package:NAME/FILE``."""
    if not given.startswith("package:"):
        return (beside / Path(given).expanduser()).resolve()
    package, _, rest = given.removeprefix("package:").partition("/")
    try:
        # Found, not imported: a package that only carries files may need others to import.
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"the package {package!r} of {given!r} is not installed: pip install --no-deps {package.replace('_', '-')}"
        )
    return Path(next(iter(spec.submodule_search_locations))) / rest


def did_you_mean(given: object, known: typing.Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known name, or nothing."""
    near = difflib.get_close_matches(str(given), list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _line(mistake: Any, file: Path, root: type[BaseModel]) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in mistake["loc"]).lstrip(".")
    text, given = str(mistake["msg"]).removeprefix("Value error, "), mistake["input"]
    if mistake["type"] == "missing":
        return f"{mistake['loc'][-1]!r} is missing ({place} in {file.name})"
    if mistake["type"] == "extra_forbidden":
        key, known = mistake["loc"][-1], _keys_at(root, mistake["loc"][:-1])
        text = f"there is no {key!r} here; there are {', '.join(known)}.{did_you_mean(key, known)}"
    elif mistake["type"] != "value_error":
        text = f"{text}, not {given!r}"
        if isinstance(given, str) and re.fullmatch(r"[+-]?\d+e[+-]?\d+", given, re.IGNORECASE):
            text += f": YAML reads {given} as text, write {given.lower().replace('e', '.0e')}"
    return f"{text} ({place or 'top level'} in {file.name})"


def _keys_at(root: Any, loc: Sequence[str | int]) -> list[str]:
    """Return the keys that the schema has at this place."""
    kind = root
    for part in loc:
        if isinstance(part, str) and part in kind.model_fields:
            inside = [kind.model_fields[part].annotation]
            while inside and not (isinstance(inside[0], type) and issubclass(inside[0], BaseModel)):
                inside = [*typing.get_args(inside[0]), *inside[1:]]
            kind = inside[0] if inside else kind
    return list(kind.model_fields)
