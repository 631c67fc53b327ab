"""lm-eval's tasks by name or YAML file: how each is defined, and the task itself over the hub's data or local files.

Follows lm_eval 0.4.13. A task's own definition is used as it is; local files take the place of its dataset, and nothing
else of it changes. Code that comes with data (``trust_remote_code``) is never run.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from evals.assets import AssetError
from evals.lm_needs import lacking_package, lacking_words
from evals.lm_options import TaskOptions

_NAMED = re.compile(
    rb"^[\"']?(?:task|group)[\"']?:[ \t]*[\"']?([^\s\"'#\[{-][^\s\"'#]*)[\"']?[ \t]*(?:#.*)?$", re.MULTILINE
)
_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


_RUNS_TEXT = re.compile(rb"\b(?:parse_expr|sympify)\(|(?<![\w.`])(?:eval|exec)\(")


@dataclass(frozen=True)
class Definition:
    """One task as its YAML file defines it; ``given`` is what a group that holds it says otherwise."""

    name: str
    file: Path
    given: Mapping[str, Any]

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The whole definition, functions as text."""
        return {**_read(self.file), **self.given}

    @property
    def runs_text(self) -> bool:
        """Tell whether Python beside the task evaluates text, as sympy's parser does: a model's would run here."""
        return any(_RUNS_TEXT.search(file.read_bytes()) for file in self.file.parent.glob("*.py"))

    @property
    def evaluated(self) -> str | None:
        """The split whose documents are asked about."""
        return self.config.get("test_split") or self.config.get("validation_split")

    def shots(self, options: TaskOptions) -> int:
        """Return how many examples stand before a question: a task that says 0 keeps that, as in lm-eval."""
        own = self.config.get("num_fewshot")
        return own if own == 0 or (options.num_fewshot is None and own) else options.num_fewshot or 0

    def generation(self, options: TaskOptions) -> dict[str, Any]:
        """Return how replies are drawn, in lm-eval's words."""
        if self.config.get("output_type", "generate_until") != "generate_until":
            return {}
        own = self.config.get("generation_kwargs") or {"until": [self.config.get("fewshot_delimiter", "\n\n")]}
        return {**own, **options.gen_kwargs}

    def digest(self) -> str:
        """Return a hash of the definition and of the Python files beside it, wherever they lie."""
        text = json.dumps(dict(self.config), sort_keys=True, default=str).replace(str(self.file.parent), "")
        code = [file.read_bytes() for file in sorted(self.file.parent.glob("*.py"))]
        return hashlib.sha256(b"\0".join([text.encode(), *code])).hexdigest()


def find_definitions(given: str) -> tuple[str, Sequence[Definition]]:
    """Return the name and the tasks of a task or group of lm-eval's catalogue, or of a YAML file; raises ValueError."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(f"lm_eval:{given} needs lm-eval: pip install 'fuseval[bench]'")
    if given.endswith((".yaml", ".yml")):
        file = Path(given)
        if not file.is_file():
            raise ValueError(f"there is no lm-eval task file {file}")
    elif (file := _catalogue().get(given, Path())) == Path():
        near = difflib.get_close_matches(given, _catalogue(), n=3)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise ValueError(f"lm-eval has no task {given!r}{hint}. A task of your own is named by its YAML file")
    config = _read(file)
    name = config.get("group") or config.get("task")
    if not isinstance(name, str):
        raise ValueError(f"{file} names no task: an lm-eval task file says task: NAME")
    found = list(_leaves(name, file, {}))
    if not found:
        raise ValueError(f"lm_eval:{name} holds no tasks: name one of them, or see {file}")
    return name, found


def _leaves(name: str, file: Path, given: Mapping[str, Any]) -> Iterator[Definition]:
    config = _read(file)
    if "group" not in config:
        yield Definition(name, file, given)
    else:
        yield from _members(name, config.get("task") or (), given)


def _members(group: str, members: Sequence[Any], given: Mapping[str, Any]) -> Iterator[Definition]:
    """Yield the tasks of a group's members: names of tasks, groups or tags, or mappings that say something besides."""
    for member in members:
        told = {"task": member} if isinstance(member, str) else dict(member)
        inside = told.pop("task", None)
        if isinstance(inside, list):  # a group that is defined right here
            yield from _members(told.get("group", group), inside, given)
            continue
        name = inside or told.pop("group", None)
        files = {name: _catalogue()[name]} if name in _catalogue() else _tagged(str(name))
        if not files:
            raise ValueError(
                f"group {group!r} holds {member!r}, which is no task of lm-eval's catalogue: name its tasks"
            )
        for child, file in files.items():
            yield from _leaves(child, file, {**given, **told})


def _tagged(tag: str) -> dict[str, Path]:
    near = {name: file for name, file in _catalogue().items() if tag.encode() in file.read_bytes()}
    tags = {name: _read(file).get("tag") or () for name, file in near.items()}
    return {name: near[name] for name, found in tags.items() if tag in ([found] if isinstance(found, str) else found)}


@cache
def _catalogue() -> Mapping[str, Path]:
    """Return the files of lm-eval's tasks and groups by name; its own index reads all as YAML, which takes 20 s."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None and spec.submodule_search_locations
    found: dict[str, Path] = {}
    for file in sorted((Path(next(iter(spec.submodule_search_locations))) / "tasks").rglob("*.yaml")):
        for match in _NAMED.finditer(file.read_bytes()):
            found.setdefault(match[1].decode("utf-8", "replace"), file)
    return found


@cache
def _read(file: Path) -> Mapping[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        found: dict[str, Any] = load_yaml(file, resolve_func=False)
    except Exception as error:  # of YAML, of a file that is included, of one that is no mapping
        raise ValueError(f"{file} cannot be read as an lm-eval task: {error}") from error
    return found


def version_of(definitions: Sequence[Definition], options: TaskOptions) -> str:
    """Return a version that changes with all that changes a score: definition, options, and lm-eval's own version.

    It reads like ``3.0-5shot-chat-1a2b3c4d``. Another backend than the engine is part of it, so that its answers are
    not taken for the engine's. Local data are not: they are held against the questions.
    """
    metadata = definitions[0].config.get("metadata")
    own = metadata.get("version", "0") if isinstance(metadata, Mapping) else "0"
    told = [importlib.metadata.version("lm_eval"), options.identity(), [each.digest() for each in definitions]]
    shots = sorted({each.shots(options) for each in definitions})
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:8]
    middle = [f"{'to'.join(dict.fromkeys(map(str, (shots[0], shots[-1]))))}shot"]
    middle += ["chat"] if options.apply_chat_template else []
    middle += [options.backend] if options.backend != "engine" else []
    return "-".join([str(own), *middle, digest])


def build(definition: Definition, options: TaskOptions) -> Any:
    """Return the ``lm_eval.api.task.Task``, its data loaded; raises AssetError where they cannot be had."""
    import logging

    import datasets
    from lm_eval.tasks._factory import TaskFactory
    from lm_eval.tasks._index import TaskIndex

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    overrides = {**definition.given, "task": definition.name, **_local_data(definition, options)}
    try:
        with contextlib.redirect_stdout(sys.stderr):  # tasks print what they download, and ours is for tables
            task = TaskFactory().build(TaskIndex.entry_from_path(definition.file), overrides=overrides, registry={})
    except ImportError as error:
        raise AssetError(lacking_package(definition.name, error)) from error
    except Exception as error:  # datasets, the hub and the task's own functions raise whatever they like
        raise AssetError(_no_data(definition, options, error)) from error
    if lacking := lacking_words(definition.name, definition.file.parent.glob("*.py")):
        raise AssetError(lacking)
    if getattr(task, "MULTIMODAL", False):
        raise AssetError(f"lm_eval:{definition.name} shows pictures or sounds, and models are asked in text here")
    _configure(task, definition, options)
    return task


def _configure(task: Any, definition: Definition, options: TaskOptions) -> None:
    """Say to a task what lm-eval's simple_evaluate would say."""
    task.set_config(key="num_fewshot", value=definition.shots(options))
    if options.gen_kwargs and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value=dict(options.gen_kwargs), update=True)
    task.set_fewshot_seed(seed=options.fewshot_seed)


def _no_data(definition: Definition, options: TaskOptions, error: Exception) -> str:
    said = " ".join(str(error).split())[:300]
    if options.data is not None:
        return f"lm_eval:{definition.name} cannot be made of {options.data}: {type(error).__name__}: {said}"
    return (
        f"the data of lm_eval:{definition.name} ({definition.config.get('dataset_path')}) cannot be had: "
        f"{type(error).__name__}: {said}. Log in with `hf auth login` where they are gated, or give a local copy: "
        "options: {data: FOLDER}"
    )


def _local_data(definition: Definition, options: TaskOptions) -> dict[str, Any]:
    """Return what puts local files in the place of the task's dataset, and splits that there are of those that lack."""
    splits = {key: definition.config.get(key) for key in _SPLITS}
    told: dict[str, Any] = {}
    if options.data is not None:
        asked = definition.evaluated
        assert asked is not None or definition.config, definition.name
        files = data_files(options.data, evaluated=asked or "test")
        if asked not in files:
            raise AssetError(
                f"lm_eval:{definition.name} asks about split {asked!r}, and {options.data} holds {', '.join(files)}: "
                f"name the file, data: {{{asked}: FILE}}"
            )
        told = {
            "dataset_path": _builder(files),
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(file) for split, file in files.items()}},
            **{key: None for key in _SPLITS[:3] if splits[key] not in files},
        }
    elif options.fewshot_split is None:
        return {}
    return told | _fewshot_split(definition, options, told)


def _fewshot_split(definition: Definition, options: TaskOptions, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return from where examples are taken; of local data without that split only where none is needed."""
    config, own = definition.config, definition.config.get("fewshot_config") or {}
    if own.get("samples"):
        return {}
    there = told.get("dataset_kwargs", {}).get("data_files")
    wanted = options.fewshot_split or own.get("split") or config.get("fewshot_split") or config.get("training_split")
    if there is not None and wanted not in there:
        if definition.shots(options):
            raise AssetError(
                f"lm_eval:{definition.name} takes its {definition.shots(options)} examples from split {wanted!r}, "
                f"which {options.data} lacks: add that file, or say num_fewshot: 0, or fewshot_split: "
                f"{definition.evaluated} (the question itself is never among its examples)"
            )
        wanted = definition.evaluated
    return {"fewshot_split": wanted, **({"fewshot_config": {**own, "split": wanted}} if own else {})}


def data_files(data: str | Mapping[str, str], *, evaluated: str) -> dict[str, Path]:
    """Return files by split: a folder's by their names, a single file as the ``evaluated`` one; raises AssetError."""
    if isinstance(data, Mapping):
        found = {split: Path(file) for split, file in data.items()}
    else:
        path = Path(data)
        several = [f for f in sorted(path.iterdir()) if f.suffix in _BUILDERS] if path.is_dir() else [path]
        found = {evaluated: several[0]} if len(several) == 1 else {file.stem: file for file in several}
        if len(several) == 1 and several[0].stem in ("train", "validation", "test", "dev"):
            found = {several[0].stem: several[0]}
    for file in found.values():
        if not file.is_file() or file.suffix not in _BUILDERS:
            raise AssetError(f"{file} is no file of data: give one of {', '.join(_BUILDERS)}")
    if not found:
        raise AssetError(f"{data} holds no file of data: put test.jsonl (or .json, .parquet, .csv) there")
    return found


def _builder(files: Mapping[str, Path]) -> str:
    kinds = {_BUILDERS[file.suffix] for file in files.values()}
    if len(kinds) > 1:
        names = ", ".join(str(file) for file in files.values())
        raise AssetError(f"one task's data must be of one kind, and these are {', '.join(sorted(kinds))}: {names}")
    return kinds.pop()
