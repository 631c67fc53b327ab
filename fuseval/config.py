"""Experiment files, read and checked. The only file that knows YAML.

Inputs (models, data) are looked for beside the experiment file, outputs are written relative to the current folder,
and ``package:NAME/FILE`` names a file inside an installed package. Nothing here runs a model or opens a network.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from evals.lm_options import PREFIX
from fuseval.experiment import Experiment

_Model = TypeVar("_Model", bound=BaseModel)
_Experiment = TypeVar("_Experiment", bound=Experiment)


class ConfigError(ValueError):
    """The experiment file says something that cannot be done; one line a mistake, each with place and next step."""


def load_experiment(file: Path) -> Experiment:
    """Read and check ``file`` wholly; raises ConfigError with one line for each mistake."""
    from fuseval.mistakes import mistakes

    experiment = with_task_files(validated(Experiment, read_mapping(file, "experiment file"), file), file)
    if found := [f"{text} ({place} in {file.name})" for place, text in mistakes(experiment, file.parent)]:
        raise ConfigError("\n".join(found))
    return experiment


def with_task_files(experiment: _Experiment, file: Path) -> _Experiment:
    """Return the experiment with the files of its lm-eval tasks, which lie beside ``file``, named in full."""

    def found(given: object, number: int) -> object:
        if isinstance(given, str):
            try:
                return str(locate(given, beside=file.parent))
            except ConfigError as error:
                raise ConfigError(f"{error} (benchmarks[{number}] in {file.name})") from None
        return {split: found(each, number) for split, each in given.items()} if isinstance(given, Mapping) else given

    specs = []
    for number, spec in enumerate(experiment.benchmarks):
        changed: dict[str, Any] = {}
        given = spec.name.removeprefix(PREFIX)
        if spec.name.startswith(PREFIX) and given.endswith((".yaml", ".yml")):
            changed["name"] = f"{PREFIX}{found(given, number)}"
        if spec.name.startswith(PREFIX) and spec.options.get("data") is not None:
            changed["options"] = {**spec.options, "data": found(spec.options["data"], number)}
        specs.append(spec.model_copy(update=changed))
    return experiment.model_copy(update={"benchmarks": specs})


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
