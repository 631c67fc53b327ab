"""What an experiment of the right form says that cannot be done: names, files and parameters, before it starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from evals.catalog import UnknownBenchmark, find_benchmark
from fuseval.config import ConfigError, did_you_mean, locate
from fuseval.experiment import Experiment, Merge, PanelSpec
from fuseval.target import Target
from fuseval.training import on_hub, target_params


def mistakes(experiment: Experiment, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the place and the text of every mistake; ``folder`` is the one that inputs are looked for in."""
    yield from _wrong_names(experiment)
    seen: list[str] = []
    for number, benchmark in enumerate(experiment.benchmarks):
        try:
            known = find_benchmark(benchmark.name, asset=_not_now, options=benchmark.options)
            yield from _taken(f"benchmarks[{number}]", f"{known.name}@{known.version}", seen)
        except UnknownBenchmark as error:
            yield f"benchmarks[{number}]", str(error)
    files = [(f"models[{i}].path", m.path) for i, m in enumerate(experiment.models) if m.path]
    files += [
        (f"fusion.targets[{i}].data", t.data) for i, t in enumerate(experiment.fusion.targets) if not on_hub(t.data)
    ]
    files += [("prices", experiment.prices)] if experiment.prices else []
    files += [("accelerate.config", experiment.accelerate.config)] if experiment.accelerate else []
    files += [("audit.people", experiment.audit.people)] if experiment.audit.people else []
    for i, model in enumerate(experiment.models):
        if model.endpoint and model.endpoint.tokenizer:
            files.append((f"models[{i}].endpoint.tokenizer", f"{model.endpoint.tokenizer}/tokenizer.json"))
    for place, given in files:
        try:
            if not (found := locate(given, beside=folder)).exists():
                yield place, f"there is no file or folder {found}"
        except ConfigError as error:
            yield place, str(error)
    for place, output in (("report", experiment.report), ("ledger", experiment.ledger)):
        if output and Path(output).expanduser().is_dir():
            yield place, f"{output!r} is a folder: name a file in it"
    yield from _wrong_engine(experiment)
    yield from _wrong_adapters(experiment, folder)
    yield from _wrong_templates(experiment, folder)
    yield from _wrong_params(experiment)
    for i, merge in enumerate(experiment.fusion.merges):
        for inside, text in _wrong_merge(merge):
            yield f"fusion.merges[{i}].{inside}", text


def _wrong_engine(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Yield what is made here and would have to be served by servers that run already."""
    if experiment.engine.kind == "endpoints":
        made: list[Target | Merge] = [*experiment.fusion.targets, *experiment.fusion.merges]
        if names := [each.name for each in made if each.evaluate]:
            text = (
                f"no server holds {', '.join(names)}, which are made here: take kind local or ray, and say kind "
                "endpoints in the engine of each model that is served"
            )
            yield "engine.kind", text
    engines = [experiment.engine, *(model.engine for model in experiment.models if model.engine)]
    if len(addresses := sorted({engine.address for engine in engines if engine.kind == "ray"})) > 1:
        yield "engine.address", f"a run joins one Ray cluster, and its engines name {' and '.join(addresses)}"


def _not_now(name: str) -> Path:
    raise AssertionError(f"{name} was asked for before anything is fetched")


def _wrong_names(experiment: Experiment) -> Iterator[tuple[str, str]]:
    known: list[str] = []
    uses: list[tuple[str, str, Sequence[str]]] = []
    for i, model in enumerate(experiment.models):
        if model.adapter_of is not None:
            uses.append((f"models[{i}].adapter_of", model.adapter_of, tuple(known)))
        yield from _taken(f"models[{i}].name", model.name, known)
    # A target or merge may only use what stands before it: so no circle can be written.
    for i, target in enumerate(experiment.fusion.targets):
        uses.append((f"fusion.targets[{i}].base", target.base, tuple(known)))
        uses += [(f"fusion.targets[{i}].sources[{j}]", s, tuple(known)) for j, s in enumerate(target.sources)]
        rewards = {"model": target.reward.model, "judge": target.reward.judge}
        uses += [(f"fusion.targets[{i}].reward.{key}", name, tuple(known)) for key, name in rewards.items() if name]
        yield from _taken(f"fusion.targets[{i}].name", target.name, known)
    for i, merge in enumerate(experiment.fusion.merges):
        uses.append((f"fusion.merges[{i}].base", merge.base, tuple(known)))
        uses += [(f"fusion.merges[{i}].sources[{j}]", s, tuple(known)) for j, s in enumerate(merge.sources)]
        yield from _taken(f"fusion.merges[{i}].name", merge.name, known)
    uses += [(f"judges[{i}].model", judge.model, tuple(known)) for i, judge in enumerate(experiment.judges)]
    judges = tuple(judge.model for judge in experiment.judges)
    seen = [(judge.model, judge.structured, judge.max_tokens) for judge in experiment.judges]
    for i, asked in enumerate(seen):
        if asked in seen[:i]:
            yield f"judges[{i}]", f"{asked[0]!r} is asked the same twice: name it once (audit has retest for that)"
    for i, panel in enumerate(experiment.panels):
        of_categories = [[names] if isinstance(names, str) else names for names in panel.categories.values()]
        named = [*panel.judges, *panel.weights, *(name for names in of_categories for name in names)]
        uses += [(f"panels[{i}]", name, judges) for name in dict.fromkeys(named)]
        yield from _taken(f"panels[{i}].name", panel.name, known)
        for name in panel.judges:
            if judges.count(name) > 1:
                yield f"panels[{i}].judges", f"{name!r} is a judge in two ways here, and a panel cannot tell which"
        yield from _wrong_panel(f"panels[{i}]", panel, judges)
    if experiment.baseline is not None:
        uses.append(("baseline", experiment.baseline, tuple(known)))
    for place, name, before in uses:
        if name not in before:
            there = ", ".join(before) or "none before it"
            what = "judge" if place.startswith("panels") else "model"
            yield place, f"no {what} is called {name!r} here; there are {there}.{did_you_mean(name, before)}"
    endpoints = {model.name for model in experiment.models if model.endpoint}
    targets = enumerate(experiment.fusion.targets)
    sampled = {f"fusion.targets[{i}]" for i, target in targets if target.kind == "implicit"}
    for place, name, _ in uses:
        if (place.rpartition(".")[0] in sampled and ".sources[" in place) or place.endswith(".reward.judge"):
            continue  # it is asked, wherever it is
        if (place.startswith("fusion") or place.endswith("adapter_of")) and name in endpoints:
            yield place, f"{name!r} is an endpoint: its weights are not here to be trained or merged"


def _wrong_panel(place: str, panel: PanelSpec, judges: Sequence[str]) -> Iterator[tuple[str, str]]:
    from fuseval.panels import panel_model
    from judges.panel import PanelError

    try:
        panel_model(panel, {name: name for name in judges})
    except PanelError as error:
        yield place, str(error)
    except KeyError:
        return  # a judge that is none, which is said elsewhere


def _taken(place: str, name: str, known: list[str]) -> Iterator[tuple[str, str]]:
    if name in known:
        yield place, f"the name {name!r} is used twice"
    known.append(name)


def _wrong_params(experiment: Experiment) -> Iterator[tuple[str, str]]:
    from fusion.errors import FusionError

    for i, target in enumerate(experiment.fusion.targets):
        try:
            target_params(target)
        except (FusionError, ValueError, TypeError) as error:
            yield f"fusion.targets[{i}].params", str(error)


def _wrong_adapters(experiment: Experiment, folder: Path) -> Iterator[tuple[str, str]]:
    adapters = {model.name for model in experiment.models if model.adapter_of}
    for i, model in enumerate(experiment.models):
        place = f"models[{i}].adapter_of"
        if model.adapter_of in adapters:
            yield place, f"{model.adapter_of!r} is an adapter itself; name the model under it"
        if not model.path:
            continue
        try:
            path = locate(model.path, beside=folder)
        except ConfigError:
            continue  # said of the path already
        if model.adapter_of and path.exists() and not (path / "adapter_config.json").is_file():
            yield place, f"{path} is no LoRA adapter's folder, which has an adapter_config.json; leave adapter_of out"
        if not model.adapter_of and is_bare_adapter(path):
            yield f"models[{i}].path", f"{path} is a LoRA adapter: say adapter_of, the name of the model that it is for"


def _wrong_templates(experiment: Experiment, folder: Path) -> Iterator[tuple[str, str]]:
    from fusion.chat_template import read_template
    from fusion.errors import RecipeError

    for i, model in enumerate(experiment.models):
        if model.chat_template:
            if experiment.endpoint_of(model):
                yield (
                    f"models[{i}].chat_template",
                    (
                        f"model {model.name!r} is asked at the servers of the experiment's engine, which have the chat "
                        "template: leave it out, or give the model an engine of kind local"
                    ),
                )
            try:
                read_template(locate(model.chat_template, beside=folder))
            except (ConfigError, RecipeError) as error:
                yield f"models[{i}].chat_template", str(error)


def is_bare_adapter(path: Path) -> bool:
    """Tell whether a folder holds a LoRA adapter and no model."""
    return (path / "adapter_config.json").is_file() and not (path / "config.json").is_file()


def _wrong_merge(merge: Merge) -> Iterator[tuple[str, str]]:
    """Yield what is wrong in a merge, and where in it."""
    from fusion.errors import RecipeError
    from fusion.settings import check_method, check_settings

    if not merge.tokenizer_of.isdigit():
        if merge.tokenizer_of not in ("base", "union"):
            known = ["base", "union", *merge.sources]
            more = did_you_mean(merge.tokenizer, known)
            yield "tokenizer", f"no tokenizer is called {merge.tokenizer!r}; there are {', '.join(known)}.{more}"
    elif not 1 <= int(merge.tokenizer_of) <= len(merge.sources):
        yield "tokenizer", f"there is no source {merge.tokenizer_of}; there are {len(merge.sources)}, from 1"
    if twice := sorted({name for name in merge.sources if merge.sources.count(name) > 1}):
        yield "sources", f"{twice[0]!r} is there twice; name it once, with the sum of its weights"
    try:
        check_method(merge.method)
    except RecipeError as error:
        yield "method", str(error)
        return
    parts = [("params", merge.params, len(merge.sources))]
    if merge.slices:
        parts = [
            (f"slices[{i}].params" if one.params else "params", {**merge.params, **one.params},
             sum(layers is not None for layers in one.sources))
            for i, one in enumerate(merge.slices)
        ]  # fmt: skip
    for i, one in enumerate(merge.slices):
        if len(one.sources) != len(merge.sources):
            text = f"there are layers of {len(one.sources)} sources for {len(merge.sources)} sources"
            yield f"slices[{i}].sources", f"{text}; give one entry a source, null for one that takes no part"
    for place, params, sources in parts:
        try:
            check_settings(merge.method, params, sources=sources)
        except RecipeError as error:
            # A wrong number of sources is a matter of no parameter.
            yield "sources" if re.search(r"and there are \d+", str(error)) else place, str(error)
