"""The recipe file of `fuseval merge`, ours or mergekit's, read as an experiment of one merge, or of a grid of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from fuseval.config import ConfigError, locate, read_mapping, validated
from fuseval.experiment import BenchmarkSpec, Experiment, Fusion, Merge, MergeSettings, ModelSpec
from fuseval.mergekit import TranslatedRecipe, is_mergekit, translate
from fuseval.mistakes import is_bare_adapter, mistakes
from fusion.recipe import Grid

# org/name or org/name@revision, as the hub has them; what begins with a dot or a slash is a path.
_HUB = re.compile(r"(?P<hub>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")


class MergeRecipeFile(MergeSettings):
    """What `fuseval merge` reads.

    A model is a folder of safetensors, a GGUF file, ``package:NAME/FILE``, a hub id ``org/name[@revision]``, a LoRA
    adapter's folder (laid over the base), or one of these with an adapter on it: ``model+adapter``.
    """

    base: str
    sources: Annotated[list[str], Field(min_length=1)]
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] | None = None  # one parameter, and its values

    @field_validator("grid")
    @classmethod
    def _one_parameter(cls, given: dict[str, list[Any]] | None) -> dict[str, list[Any]] | None:
        if given is None:
            return None
        if len(given) != 1:
            raise ValueError(
                f"a grid is of one parameter, and here are {len(given)}; merge once for each of the others"
            )
        [(parameter, values)] = given.items()
        for value in values:
            if not isinstance(value, str | int | float):
                raise ValueError(f"a grid's values are constants, not {value!r}; write that as a recipe of its own")
        if len(set(map(repr, values))) != len(values):
            raise ValueError(f"a value of {parameter!r} is written twice; write each once")
        return given

    @model_validator(mode="after")
    def _not_twice(self) -> MergeRecipeFile:
        for parameter in self.grid or ():
            if parameter in self.params:
                raise ValueError(f"{parameter!r} is in params and in grid; leave it out of one of them")
        return self


@dataclass(slots=True)
class _Models:
    """The recipe's models by name, and the place in the file that each one's path stands at."""

    folder: Path
    specs: list[ModelSpec] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    reserved: frozenset[str] = frozenset()  # names that the merges bear
    names: dict[str, str] = field(default_factory=dict)  # by what was written

    def add(self, text: str, place: str, *, base: str | None = None) -> str:
        """Add the model that ``text`` is, and return what it is called; one that is there already keeps its name.

        An adapter alone is laid over the model called ``base``.
        """
        if text in self.names:
            return self.names[text]
        under, plus, adapter = text.partition("+")
        if not plus or self._is_there(text):
            path = self._path(text)
            alone = path is not None and is_bare_adapter(path)
            name = self._add(text, place, adapter_of=base if alone else None)
        elif not under or not adapter or "+" in adapter:
            raise ConfigError(f"{text!r} is no model with an adapter; write it as model+adapter ({place})")
        else:
            name = self._add(adapter, place, adapter_of=self.add(under, place))
        self.names[text] = name
        return name

    def _add(self, text: str, place: str, *, adapter_of: str | None) -> str:
        name = self._name(text)
        found = None if self._is_there(text) or self._looks_local(text) else _HUB.fullmatch(text)
        given = found.groupdict() if found else {"path": text}
        self.specs.append(ModelSpec(name=name, adapter_of=adapter_of, **given))
        self.places.append(place)
        return name

    def _name(self, text: str) -> str:
        """Return what people call the model: the last part of its path or id, told apart from others by a number."""
        last = Path(text.partition("@")[0]).name.removesuffix(".gguf")
        plain = re.sub(r"[^A-Za-z0-9._+-]+", "-", last).strip("._+-")[:80] or "model"
        taken = {spec.name for spec in self.specs} | self.reserved
        numbered = (f"{plain}-{number}" for number in itertools.count(2))
        return next(name for name in itertools.chain([plain], numbered) if name not in taken)

    def _looks_local(self, text: str) -> bool:
        return text.endswith(".gguf") or (self.folder / Path(text).parts[0]).is_dir()

    def _is_there(self, text: str) -> bool:
        path = self._path(text)
        return text.startswith("package:") or (path is not None and path.exists())

    def _path(self, text: str) -> Path | None:
        try:
            return locate(text, beside=self.folder)
        except ConfigError:  # of a package that is not installed: said with the other mistakes
            return None


def load_merge(file: Path, *, name: str) -> tuple[Experiment, Grid | None]:
    """Read a merge recipe as an experiment of one merge called ``name``; raises ConfigError.

    With a grid, which is returned, it has one merge a value, called ``PARAMETER-VALUE``. What there is to say of the
    reading stands in the experiment's notes.
    """
    given = read_mapping(file, "merge recipe")
    translated = translate(given, file=file.name) if is_mergekit(given) else None
    recipe = _ours(translated) if translated else validated(MergeRecipeFile, given, file)
    places = translated.places if translated else {}
    models = _Models(file.parent, reserved=frozenset(_titles(recipe, name)))
    try:
        base = models.add(recipe.base, places.get("base", "base"))
        sources = [
            models.add(text, places.get(place, place), base=base)
            for place, text in ((f"sources[{i}]", text) for i, text in enumerate(recipe.sources))
        ]
    except ConfigError as error:
        raise ConfigError(f"{str(error).removesuffix(')')} in {file.name})") from None
    merges = list(_merges(recipe, name=name, base=base, sources=sources, names=models.names, file=file))
    experiment = Experiment(
        models=models.specs,
        fusion=Fusion(merges=merges),
        benchmarks=[BenchmarkSpec(name="starter")],
        notes=list(translated.notices) if translated else [],
    )
    found = [
        f"{text} ({_place(place, text, recipe, models, foreign=translated is not None)} in {file.name})"
        for place, text in mistakes(experiment, file.parent)
    ]
    if found:
        raise ConfigError("\n".join(dict.fromkeys(found)))
    return experiment, _grid(recipe)


def _ours(translated: TranslatedRecipe) -> MergeRecipeFile:
    slices = [
        {"base": list(one.base), "sources": [list(layers) if layers else None for layers in one.sources],
         "params": dict(one.params)}
        for one in translated.slices
    ]  # fmt: skip
    keys = {key: getattr(translated, key) for key in ("method", "base", "params", "dtype", "tokenizer")}
    return MergeRecipeFile.model_validate({**keys, "sources": list(translated.sources), "slices": slices})


def _merges(
    recipe: MergeRecipeFile, *, name: str, base: str, sources: Sequence[str], names: Mapping[str, str], file: Path
) -> Iterator[Merge]:
    given = recipe.model_dump(exclude={"grid"}) | {
        "base": base,
        "sources": list(sources),
        "tokenizer": names.get(recipe.tokenizer, recipe.tokenizer),
    }
    if not recipe.grid:
        yield Merge.model_validate({**given, "name": name})
        return
    [(parameter, values)] = recipe.grid.items()
    for value, title in zip(values, _titles(recipe, name), strict=True):
        yield validated(Merge, {**given, "name": title, "params": {**recipe.params, parameter: value}}, file)


def _grid(recipe: MergeRecipeFile) -> Grid | None:
    if not recipe.grid:
        return None
    [(parameter, values)] = recipe.grid.items()
    return Grid(parameter, tuple(values))


def _titles(recipe: MergeRecipeFile, name: str) -> list[str]:
    """Return the names of the merges: ``name``, or of a grid one a value."""
    if not recipe.grid:
        return [name]
    [(parameter, values)] = recipe.grid.items()
    return [f"{parameter}-{str(value).lower() if isinstance(value, bool) else value}" for value in values]


def _place(place: str, text: str, recipe: MergeRecipeFile, models: _Models, *, foreign: bool) -> str:
    """Return where in the recipe file stands what was said of an experiment that nobody wrote."""
    if found := re.match(r"models\[(\d+)\]", place):
        return models.places[int(found[1])]
    found = re.match(r"fusion\.merges\[(\d+)\]\.?(.*)", place)
    if not found:
        return place
    number, inside = int(found[1]), found[2]
    if foreign:
        return {"method": "merge_method", "sources": "models"}.get(inside, "parameters")
    if recipe.grid and inside == "params" and any(repr(parameter) in text for parameter in recipe.grid):
        return f"grid.{next(iter(recipe.grid))}[{number}]"
    return inside
