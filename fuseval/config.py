"""Experiment: the YAML schema. The only file that knows YAML.

Inputs (models, data) are looked for beside the experiment file, outputs are written relative to the current folder,
and ``package:NAME/FILE`` names a file inside an installed package. Nothing here runs a model or opens a network.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from evals.catalog import UnknownBenchmark, find_benchmark
from evals.engine import EngineSettings


class ConfigError(ValueError):
    """The experiment file says something that cannot be done; one line a mistake, each with place and next step."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=100)]


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
    """A model that is there already: exactly one of ``path``, ``hub`` and ``endpoint``."""

    name: Name
    path: str | None = None  # a folder of safetensors, or a GGUF file
    hub: str | None = None  # a repository id on the Hugging Face hub
    revision: str | None = None  # of the hub repository
    endpoint: Endpoint | None = None
    evaluate: bool = True  # false: only a judge, a base or a source

    @model_validator(mode="after")
    def _one_source(self) -> ModelSpec:
        if sum(x is not None for x in (self.path, self.hub, self.endpoint)) != 1:
            raise ValueError(f"model {self.name!r} needs exactly one of path, hub and endpoint")
        return self


class Target(_Strict):
    """A model made by training: ``sft`` is supervised fine-tuning of ``base`` on the conversations in ``data``."""

    name: Name
    kind: Literal["sft"]
    base: str
    data: str  # JSONL of {"messages": [{"role": ..., "content": ...}, ...]}
    params: dict[str, Any] = Field(default_factory=dict)  # fields of fusion.sft.SftParams
    evaluate: bool = True


class Merge(_Strict):
    """A model made by merging ``sources`` onto ``base`` in weight space."""

    name: Name
    method: str  # a key of fusion.methods.METHODS
    base: str
    sources: Annotated[list[str], Field(min_length=1)]
    params: dict[str, Any] = Field(default_factory=dict)  # the method's keyword arguments
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # None: the base's
    evaluate: bool = True


class Fusion(_Strict):
    """What is made before anything is asked: first the targets, then the merges."""

    targets: list[Target] = Field(default_factory=list)
    merges: list[Merge] = Field(default_factory=list)


class BenchmarkSpec(_Strict):
    """A benchmark by name (``starter``, ``starter@1``), or the first ``limit`` of its questions."""

    name: str
    limit: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given


class JudgeSpec(_Strict):
    """A judge: one of the experiment's models, by name."""

    model: str


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
    given = _mapping(file, "experiment file")
    try:
        experiment = Experiment.model_validate(given)
    except ValidationError as error:
        raise ConfigError("\n".join(_line(mistake, file, Experiment) for mistake in error.errors())) from None
    _refuse(experiment, file)
    return experiment


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but a key that is written twice is a mistake and not the last one's."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is written twice", node.start_mark)
        return dict(super().construct_mapping(node, deep=deep))


def _mapping(file: Path, what: str) -> dict[str, Any]:
    try:
        given = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506
    except FileNotFoundError:
        raise ConfigError(f"there is no {what} {file}") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ConfigError(f"{file} is not YAML: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"{file} holds no mapping of keys to values; see examples/ for how to begin")
    return given


def _refuse(experiment: Experiment, file: Path) -> None:
    mistakes = [f"{text} ({place} in {file.name})" for place, text in _mistakes(experiment, file.parent)]
    if mistakes:
        raise ConfigError("\n".join(mistakes))


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


def _mistakes(experiment: Experiment, folder: Path) -> Iterator[tuple[str, str]]:
    yield from _wrong_names(experiment)
    seen: list[str] = []
    for number, benchmark in enumerate(experiment.benchmarks):
        try:
            yield from _taken(f"benchmarks[{number}]", find_benchmark(benchmark.name).name, seen)
        except UnknownBenchmark as error:
            yield f"benchmarks[{number}]", str(error)
    files = [(f"models[{i}].path", m.path) for i, m in enumerate(experiment.models) if m.path]
    files += [(f"fusion.targets[{i}].data", t.data) for i, t in enumerate(experiment.fusion.targets)]
    for place, given in files:
        try:
            if not (found := locate(given, beside=folder)).exists():
                yield place, f"there is no file or folder {found}"
        except ConfigError as error:
            yield place, str(error)
    for place, output in (("report", experiment.report), ("ledger", experiment.ledger)):
        if output and Path(output).expanduser().is_dir():
            yield place, f"{output!r} is a folder: name a file in it"
    yield from _wrong_params(experiment)


def _wrong_names(experiment: Experiment) -> Iterator[tuple[str, str]]:
    known: list[str] = []
    uses: list[tuple[str, str, Sequence[str]]] = []
    for i, model in enumerate(experiment.models):
        yield from _taken(f"models[{i}].name", model.name, known)
    # A target or merge may only use what stands before it: so no circle can be written.
    for i, target in enumerate(experiment.fusion.targets):
        uses.append((f"fusion.targets[{i}].base", target.base, tuple(known)))
        yield from _taken(f"fusion.targets[{i}].name", target.name, known)
    for i, merge in enumerate(experiment.fusion.merges):
        uses.append((f"fusion.merges[{i}].base", merge.base, tuple(known)))
        uses += [(f"fusion.merges[{i}].sources[{j}]", s, tuple(known)) for j, s in enumerate(merge.sources)]
        yield from _taken(f"fusion.merges[{i}].name", merge.name, known)
    uses += [(f"judges[{i}].model", judge.model, tuple(known)) for i, judge in enumerate(experiment.judges)]
    if experiment.baseline is not None:
        uses.append(("baseline", experiment.baseline, tuple(known)))
    for place, name, before in uses:
        if name not in before:
            yield place, f"no model is called {name!r} here; there are {', '.join(before)}.{did_you_mean(name, before)}"
    endpoints = {model.name for model in experiment.models if model.endpoint}
    for place, name, _ in uses:
        if place.startswith("fusion") and name in endpoints:
            yield place, f"{name!r} is an endpoint: its weights are not here to be trained or merged"


def _taken(place: str, name: str, known: list[str]) -> Iterator[tuple[str, str]]:
    if name in known:
        yield place, f"the name {name!r} is used twice"
    known.append(name)


def _wrong_params(experiment: Experiment) -> Iterator[tuple[str, str]]:
    from fusion.errors import FusionError

    for i, target in enumerate(experiment.fusion.targets):
        from fusion.sft import SftParams

        try:
            SftParams(**_known_fields(target.params, SftParams, f"sft of {target.name!r}"))
        except (FusionError, ValueError, TypeError) as error:
            yield f"fusion.targets[{i}].params", str(error)
    for i, merge in enumerate(experiment.fusion.merges):
        from fusion.methods import check_params

        try:
            check_params(merge.method, merge.params, sources=len(merge.sources))
        except FusionError as error:
            yield f"fusion.merges[{i}].params" if merge.method in str(error) else f"fusion.merges[{i}]", str(error)


def _known_fields(given: dict[str, Any], kind: type[Any], what: str) -> dict[str, Any]:
    names = [f.name for f in fields(kind)]
    for key in given:
        if key not in names:
            raise ValueError(f"{what} takes no {key!r}; it takes {', '.join(names)}.{did_you_mean(key, names)}")
    return given


class MergeRecipeFile(_Strict):
    """What `fuseval merge` reads: a method and the checkpoints (folders of safetensors, or GGUF files) it takes."""

    method: str
    base: str
    sources: Annotated[list[str], Field(min_length=1)]
    params: dict[str, Any] = Field(default_factory=dict)
    dtype: Literal["float32", "bfloat16", "float16"] | None = None


def load_merge(file: Path, *, name: str) -> Experiment:
    """Read a merge recipe as an experiment of one merge called ``name``; raises ConfigError."""
    given = _mapping(file, "merge recipe")
    if "merge_method" in given:
        raise ConfigError(f"{file} is mergekit's YAML, which is not read yet: write method, base, sources and params")
    try:
        recipe = MergeRecipeFile.model_validate(given)
    except ValidationError as error:
        raise ConfigError("\n".join(_line(mistake, file, MergeRecipeFile) for mistake in error.errors())) from None
    sources = [f"source-{i}" for i in range(1, len(recipe.sources) + 1)]
    paths = dict(zip(("base", *sources), (recipe.base, *recipe.sources), strict=True))
    merge = Merge(
        name=name, method=recipe.method, base="base", sources=sources, params=recipe.params, dtype=recipe.dtype
    )
    experiment = Experiment(
        models=[ModelSpec(name=key, path=path) for key, path in paths.items()],
        fusion=Fusion(merges=[merge]),
        benchmarks=[BenchmarkSpec(name="starter")],
    )
    try:
        _refuse(experiment, file)
    except ConfigError as error:  # said of an experiment that nobody wrote: in the recipe's own places
        text = str(error).replace("(models[0].path", "(base").replace("(fusion.merges[0].params", "(params")
        text = re.sub(r"\(models\[(\d+)\]\.path", lambda found: f"(sources[{int(found[1]) - 1}]", text)
        raise ConfigError(text.replace("(fusion.merges[0] in", "(method in")) from None
    return experiment
