"""Who is who: the experiment's models with their identities, and their weights made when they are first needed.

A model's identity is a hash of what it is: of a checkpoint's files, an endpoint's address, or a recipe and the
identities of what goes into it. So a target or merge has its identity, and its scores are found, before it is made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from evals.keys import content_key
from evals.records import Coefficient, Model
from fuseval.config import ConfigError, locate
from fuseval.endpoint_spec import Endpoint
from fuseval.engine_spec import Engine
from fuseval.experiment import Experiment, Merge, ModelSpec
from fuseval.launching import launch_of, processes_of
from fuseval.target import Target
from fuseval.training import find_data, target_recipe, train
from fusion.hashes import content_hash
from fusion.settings import ordered

if TYPE_CHECKING:
    from torch import Tensor

    from fuseval.sampling import Asker
    from fusion.launch import Launch


class Watch(Protocol):
    """What is told how a stage gets on; a total of 0 is not known yet, and a note is shown beside it."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Hear of it."""


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template, and the model that it is laid over."""

    text: str
    of: Candidate


@dataclass(frozen=True, slots=True)
class Stream:
    """Weights that are never written: named tensors, as a checkpoint of the same shape as ``like`` would hold them."""

    like: Path  # a checkpoint folder, whose tokenizer the model has
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model of the experiment: its ledger record, where its weights are or will be, or its endpoint.

    One that servers hold which the experiment names has both.
    """

    model: Model
    evaluate: bool
    folder: Path | None  # None for an endpoint
    endpoint: Endpoint | None = None
    gguf: Path | None = None  # converted into ``folder`` when needed
    adapter: Path | None = None  # a LoRA adapter's folder, laid over ``adapter_of`` into ``folder`` when needed
    adapter_of: str | None = None
    target: Target | None = None
    merge: Merge | None = None
    data: Path | None = None  # a target's conversations
    launch: Launch | None = None  # what starts the processes that train a target; None: this one trains it
    template: Template | None = None  # another chat template than its files have
    family: str | None = None  # as the experiment says; None: to be guessed
    strip_thinking: bool = False  # out of what it says, which makes another model of it
    engine: Engine | None = None  # of its own; None: the experiment's
    stream: Stream | None = None  # where to take its weights from as long as ``folder`` is not there

    @property
    def id(self) -> str:
        """The model's identity."""
        return self.model.id

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name


def resolve(experiment: Experiment, *, beside: Path, cache: Path) -> dict[str, Candidate]:
    """Return the experiment's models by name, with their identities; nothing is made, converted or asked."""
    found: dict[str, Candidate] = {}
    for spec in experiment.models:
        there = _existing(spec, found, beside=beside, cache=cache)
        if spec.chat_template:
            there = _under_template(there, locate(spec.chat_template, beside=beside), cache=cache)
        if there.endpoint is None:
            served = experiment.endpoint_of(spec, tokenizer=str(there.folder))
            there = replace(there, endpoint=served, engine=None if served else spec.engine)
        found[spec.name] = replace(there, family=spec.family)
    folder = Path(experiment.checkpoints).expanduser()
    for target in experiment.fusion.targets:
        found[target.name] = _target(target, experiment, found, beside=beside, folder=folder)
    for merge in experiment.fusion.merges:
        found[merge.name] = merge_candidate(merge, found, folder=folder)
    specs: list[ModelSpec | Target | Merge] = [
        *experiment.models,
        *experiment.fusion.targets,
        *experiment.fusion.merges,
    ]
    for made in specs:
        if made.strip_thinking:
            found[made.name] = without_thinking(found[made.name])
    names: dict[str, str] = {}
    for name, candidate in found.items():
        if other := names.get(candidate.id):
            raise ConfigError(
                f"{name!r} and {other!r} are the very same model: keep one, and use its name wherever it is needed "
                "(a model may be base, source and judge at once)"
            )
        names[candidate.id] = name
    return found


def is_at_hand(candidate: Candidate) -> bool:
    """Tell whether the weights are there, or are in a GGUF file that only has to be converted."""
    if candidate.template:
        return is_at_hand(candidate.template.of)
    return candidate.folder is not None and (candidate.folder.exists() or candidate.gguf is not None)


def make(
    candidate: Candidate,
    models: Mapping[str, Candidate],
    *,
    watch: Watch,
    asker: Asker | None = None,
    cluster: str | None = None,
) -> None:
    """Make the candidate's weights and those that go into it, where they are missing; a stream's own are not written.

    ``asker`` asks the sources of implicit fusions, and must be there for those. ``cluster`` is the address of a Ray
    cluster that merges; None: this process does. Raises FusionError.
    What was made before is never made again; a stopped making leaves nothing under the name.
    """
    if candidate.template:
        make(candidate.template.of, models, watch=watch)  # which its files are links to
    if candidate.folder is None or candidate.folder.exists():
        return
    for name in inputs(candidate, models):
        make(models[name], models, watch=watch, asker=asker, cluster=cluster)
    if candidate.template:
        from fusion.chat_template import with_template

        under = candidate.template.of.folder
        assert under is not None
        with_template(under, candidate.template.text, candidate.folder)
    elif candidate.gguf:
        from fusion.checkpoints import from_gguf

        watch(f"convert {candidate.name}", 0, 1)
        from_gguf(candidate.gguf, candidate.folder)
        watch(f"convert {candidate.name}", 1, 1)
    elif candidate.target:
        train(candidate, candidate.target, models, watch=watch, asker=asker)
    elif candidate.adapter and candidate.adapter_of:
        from fuseval.merging import lay_over

        lay_over(candidate, models[candidate.adapter_of], watch=watch)
    elif candidate.merge and not candidate.stream:
        from fuseval.merging import Where, merge_weights

        merge_weights([candidate], models, watch=watch, where=Where(cluster))


def merge_coefficients(candidate: Candidate) -> tuple[Coefficient, ...]:
    """Return what the merge that made the candidate used of every tensor; nothing for other models, or not yet."""
    if not candidate.merge or candidate.folder is None or not candidate.folder.exists():
        return ()
    from fusion.publish import read_coefficients

    # By the titles that the models had when it was made.
    told = json.loads((candidate.folder / "recipe.json").read_text(encoding="utf-8"))["sources"]

    def identity(source: str | None) -> str | None:
        return told[source] if source is not None else None

    found = read_coefficients(candidate.folder)
    return tuple(
        Coefficient(candidate.id, tensor, identity(source), name, value) for tensor, source, name, value in found
    )


def inputs(candidate: Candidate, models: Mapping[str, Candidate]) -> tuple[str, ...]:
    """Return the names of the models whose weights it takes to make the candidate's."""
    if candidate.template:
        return inputs(candidate.template.of, models)
    if candidate.target:
        rewards = filter(None, (candidate.target.reward.model, candidate.target.reward.judge))
        return tuple(dict.fromkeys([candidate.target.base, *candidate.target.sources, *rewards]))
    if candidate.merge:
        from fuseval.merging import laid_over

        sources = (name for name in candidate.merge.sources if not laid_over(models[name], candidate.merge))
        return (candidate.merge.base, *sources)
    if candidate.adapter_of:
        return (candidate.adapter_of,)
    return ()


def _existing(spec: ModelSpec, known: Mapping[str, Candidate], *, beside: Path, cache: Path) -> Candidate:
    if spec.endpoint:
        url = spec.endpoint.base_url
        identity = content_key("endpoint", url and url.rstrip("/"), spec.endpoint.model)
        if told := {name: value for name, value in (spec.endpoint.extra_body or {}).items() if value is not None}:
            identity = content_key("with", identity, json.dumps(told, sort_keys=True))  # it answers otherwise
        source = f"{spec.endpoint.model} at {spec.endpoint.base_url or 'the OpenAI API'}"
        model, endpoint = Model(identity, spec.name, "endpoint", source), spec.endpoint
        if endpoint.tokenizer:
            endpoint = endpoint.model_copy(update={"tokenizer": str(locate(endpoint.tokenizer, beside=beside))})
        return Candidate(model, spec.evaluate, None, endpoint=endpoint)
    if spec.hub:
        path, source = _from_hub(spec), f"hub:{spec.hub}" + (f"@{spec.revision}" if spec.revision else "")
    else:
        path, source = locate(str(spec.path), beside=beside), str(spec.path)
    identity = content_hash(path, cache=cache)
    if spec.adapter_of:
        under = known[spec.adapter_of]
        identity = content_key({"kind": "adapter", "adapter": identity, "base": under.id})
        model = Model(identity, spec.name, "checkpoint", f"{source} on {under.name}", parent=under.id)
        return Candidate(model, spec.evaluate, cache / "adapters" / identity, adapter=path, adapter_of=spec.adapter_of)
    model = Model(identity, spec.name, "checkpoint", source)
    if path.is_dir():
        return Candidate(model, spec.evaluate, path)
    if path.suffix != ".gguf":
        raise ConfigError(f"model {spec.name!r}: {path} is neither a folder of safetensors nor a .gguf file")
    return Candidate(model, spec.evaluate, cache / "gguf" / identity, gguf=path)


def _under_template(candidate: Candidate, file: Path, *, cache: Path) -> Candidate:
    from fusion.chat_template import read_template

    text = read_template(file)
    identity = content_key("chat template", candidate.id, text)
    model = replace(candidate.model, id=identity, source=f"{candidate.model.source} with {file.name}")
    return Candidate(model, candidate.evaluate, cache / "templates" / identity, template=Template(text, candidate))


def without_thinking(candidate: Candidate) -> Candidate:
    """Return the model whose thinking is taken out of what it says: another model of the same weights."""
    identity = content_key("without thinking", candidate.id)
    return replace(candidate, model=replace(candidate.model, id=identity), strip_thinking=True)


def _from_hub(spec: ModelSpec) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # What a model is made of; pickled weights are left where they are.
    wanted = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
    try:
        return Path(snapshot_download(str(spec.hub), revision=spec.revision, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ConfigError(
            f"model {spec.name!r}: cannot get {spec.hub!r} from the hub ({error}); check the id and revision, "
            "log in with `hf auth login` for a gated model, or give the folder of a local copy as path"
        ) from error


def _target(
    target: Target, experiment: Experiment, known: Mapping[str, Candidate], *, beside: Path, folder: Path
) -> Candidate:
    data = find_data(target.data, beside=beside)
    recipe = target_recipe(target, known, data=data, seed=experiment.seed)
    processes = processes_of(experiment.accelerate, beside=beside)
    if processes > 1:  # a batch is so many times as large
        recipe["processes"] = processes
    place = (folder / f"{target.name}-{content_key(recipe)[:8]}").absolute()
    return Candidate(
        _made(target.name, target.kind, recipe, parent=known[target.base].id, folder=folder), target.evaluate, place,
        target=target, data=data, launch=launch_of(experiment.accelerate, beside=beside, target=place),
    )  # fmt: skip


def merge_candidate(merge: Merge, known: Mapping[str, Candidate], *, folder: Path) -> Candidate:
    """Return the merge as a model, with the identity that its recipe gives it."""
    from fusion.recipe import VERSION

    recipe = {
        "kind": "merge",
        "method": ordered(merge.method),
        "version": VERSION,
        "params": {name: ordered(setting) for name, setting in merge.params.items()},
        "dtype": merge.dtype,
        "tokenizer": merge.tokenizer_of,
        "slices": [
            part.model_dump() | {"params": {name: ordered(setting) for name, setting in part.params.items()}}
            for part in merge.slices
        ],
        "seed": merge.seed,
        "base": known[merge.base].id,
        "sources": [known[source].id for source in merge.sources],
    }
    return Candidate(
        _made(merge.name, "merge", recipe, parent=known[merge.base].id, folder=folder), merge.evaluate,
        (folder / f"{merge.name}-{content_key(recipe)[:8]}").absolute(), merge=merge,
    )  # fmt: skip


def _made(name: str, kind: str, recipe: Mapping[str, object], *, parent: str, folder: Path) -> Model:
    identity = content_key(recipe)
    text = json.dumps(recipe, ensure_ascii=False, sort_keys=True)
    return Model(identity, name, kind, str(folder / f"{name}-{identity[:8]}"), parent, text)
