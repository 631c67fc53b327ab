"""Targets: what trains each kind, where its conversations are, and what its training logged."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.records import TrainingPoint
from fuseval.config import ConfigError, did_you_mean, locate
from fuseval.target import Target

if TYPE_CHECKING:
    from fuseval.models import Candidate, Watch
    from fuseval.sampling import Asker
    from fusion.explicit import Progress
    from fusion.prefer_choice import Choice

_HUB = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[^@]+?)(?:@(?P<revision>[\w./-]+))?")


def on_hub(data: str) -> bool:
    """Tell whether a target's data is a file of a hub dataset."""
    return data.startswith("hub:")


def find_data(data: str, *, beside: Path) -> Path:
    """Return a target's conversations, downloaded once from the hub where they are there; ConfigError without them."""
    if not on_hub(data):
        return locate(data, beside=beside)
    match = _HUB.fullmatch(data)
    if not match:
        raise ConfigError(f"data {data!r} is no file of a hub dataset: write hub:ORG/NAME/FILE, perhaps with @REVISION")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = hf_hub_download(match["repo"], match["file"], repo_type="dataset", revision=match["revision"])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ConfigError(
            f"cannot get {match['file']} of the dataset {match['repo']} from the hub ({error}); check the name, log in "
            "with `hf auth login` where it is gated, or give the path of a local copy as data"
        ) from error
    return Path(found)


def read_params(kind: str, given: Mapping[str, Any], what: str) -> Any:
    """Return a target's params as its kind's own record; ValueError, TypeError or FusionError where they are wrong.

    Parts that are records themselves (``teachers`` and ``training`` of explicit fusion) are mappings in the file.
    """
    if kind == "explicit":
        from fusion.explicit import ExplicitParams

        return _record(ExplicitParams, given, what)
    if kind == "implicit":
        from fusion.implicit import ImplicitParams

        return _record(ImplicitParams, given, what)
    from fusion.sft import SftParams

    return _record(SftParams, given, what)


def _record(kind: type[Any], given: Mapping[str, Any], what: str) -> Any:
    parts = {f.name: f for f in fields(kind)}
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in parts:
            raise ValueError(f"{what} takes no {key!r}; it takes {', '.join(parts)}.{did_you_mean(key, parts)}")
        part: Any = parts[key].default_factory
        if is_dataclass(part) and isinstance(part, type) and isinstance(value, Mapping):
            values[key] = _record(part, value, f"{key} of {what}")
        else:
            values[key] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def target_params(target: Target) -> Any:
    """Return a target's params as :func:`read_params` does.

    Where correctness alone is the reward, every gap between a right and a wrong response is 1, and none is filtered
    unless the target says otherwise.
    """
    given: dict[str, Any] = dict(target.params)
    if target.kind == "implicit" and not (target.reward.model or target.reward.judge):
        data = given.get("data", {})
        given["data"] = {"gap_kinds": [], **data} if isinstance(data, Mapping) else data
    return read_params(target.kind, given, f"{target.kind} of {target.name!r}")


def target_recipe(target: Target, known: Mapping[str, Candidate], *, data: Path, seed: int) -> dict[str, object]:
    """Return what a target's identity is made of; ``seed`` is the experiment's."""
    recipe: dict[str, object] = {
        "kind": target.kind,
        "base": known[target.base].id,
        "data": hashlib.sha256(data.read_bytes()).hexdigest(),
        "params": _params_told(target),
    }
    if target.kind == "implicit":
        from fuseval.implicit import implicit_recipe

        recipe |= implicit_recipe(target, known, seed=seed)
    return recipe | ({"sources": [known[source].id for source in target.sources]} if target.sources else {})


def _params_told(target: Target) -> dict[str, Any]:
    """Return the params as an identity holds them: without what is newer and not used, so that older ones stay."""
    told = asdict(target_params(target))
    if target.kind == "implicit" and told["preference"]["choose"] == "last":
        del told["preference"]["choose"], told["preference"]["held_out"]
    return told


def train(
    candidate: Candidate, target: Target, models: Mapping[str, Candidate], *, watch: Watch, asker: Asker | None
) -> None:
    """Make a target's weights; those of its base and sources are there. ``asker`` asks models, as implicit needs."""
    recipe = {**json.loads(candidate.model.recipe), "name": candidate.name, "base_name": target.base}
    if target.kind == "implicit":
        from fuseval.implicit import fuse_implicit

        assert asker is not None
        fuse_implicit(candidate, target, models, asker=asker, params=target_params(target), recipe=recipe)
    elif target.kind == "explicit":
        _explicit(candidate, target, models, watch=watch, recipe=recipe)
    else:
        _sft(candidate, target, models, watch=watch, recipe=recipe)


def _sft(
    candidate: Candidate,
    target: Target,
    models: Mapping[str, Candidate],
    *,
    watch: Watch,
    recipe: Mapping[str, object],
) -> None:
    from fusion.launch import together
    from fusion.sft import SftParams, Step, fine_tune

    base, data = models[target.base], candidate.data
    assert base.folder is not None and candidate.folder is not None and data is not None
    stage = f"train {candidate.name}"
    watch(stage, 0, 0)

    def on_step(step: Step) -> None:
        watch(stage, step.step, step.total)

    tune = together(fine_tune, candidate.launch)
    tune(
        base.folder,
        data,
        candidate.folder,
        SftParams(**target.params),
        on_step=on_step,
        recipe=recipe,
        card=f"# {candidate.name}\n\n{base.name}, fine-tuned by fuseval on {data.name}; see recipe.json.\n",
    )


def plan_target(
    candidate: Candidate, target: Target, models: Mapping[str, Candidate], *, watch: Watch
) -> dict[str, Any]:
    """Return how the tokens of an explicit fusion's models align and what it takes, without running any model."""
    from fusion.explicit import plan_explicitly

    return plan_explicitly(**_explicit_parts(candidate, target, models, watch=watch))


def _explicit(
    candidate: Candidate,
    target: Target,
    models: Mapping[str, Candidate],
    *,
    watch: Watch,
    recipe: Mapping[str, object],
) -> None:
    from fusion.explicit import ask_teachers, fuse_explicitly
    from fusion.launch import together

    parts = _explicit_parts(candidate, target, models, watch=watch)
    assert candidate.folder is not None
    if candidate.launch and parts["params"].engine == "vllm":
        ask_teachers(**parts)
    together(fuse_explicitly, candidate.launch)(
        **parts,
        folder=candidate.folder,
        recipe=recipe,
        card=(
            f"# {candidate.name}\n\n{parts['title']}, taught by fuseval what {', '.join(target.sources)} would say "
            f"next on {parts['data'].name}; see recipe.json and alignment.md.\n"
        ),
    )


def _explicit_parts(
    candidate: Candidate, target: Target, models: Mapping[str, Candidate], *, watch: Watch
) -> dict[str, Any]:
    """Return what planning an explicit fusion and making it are both given."""
    base, data = models[target.base], candidate.data
    sources = {name: models[name].folder for name in target.sources}
    assert base.folder is not None and candidate.folder is not None and data is not None
    shown = {"map": "map vocabularies", "plan": "align", "targets": "align and fuse", "training": "train"}

    def heard(progress: Progress) -> None:
        what = f"ask {progress.model}" if progress.stage == "teacher" else shown[progress.stage]
        watch(f"{what} for {candidate.name}", progress.done, progress.total)

    return {
        "base": base.folder,
        "sources": {name: folder for name, folder in sources.items() if folder is not None},
        "data": data,
        "params": target_params(target),
        "watch": heard,
        "title": base.name,
        "cache": candidate.folder.with_name(".fusion"),  # of all targets here: a model is asked once about a text
    }


def training_points(candidate: Candidate) -> tuple[TrainingPoint, ...]:
    """Return what the training that made the candidate logged; nothing for one that was not trained, or not yet."""
    if not candidate.target or candidate.folder is None or not candidate.folder.exists():
        return ()
    if candidate.target.kind == "explicit":
        from fusion.distill import read_steps as read_fused

        return tuple(
            TrainingPoint(candidate.id, s.step, s.loss, s.learning_rate, s.tokens, _terms(clm=s.clm, fusion=s.fusion))
            for s in read_fused(candidate.folder)
        )
    if candidate.target.kind == "implicit":
        from fusion.prefer import PreferStep
        from fusion.prefer import read_steps as read_preferred
        from fusion.prefer_choice import read_choice
        from fusion.sft import Step

        choice = read_choice(candidate.folder)
        own = [field.name for field in fields(PreferStep) if field.name not in {f.name for f in fields(Step)}]
        return tuple(
            TrainingPoint(
                candidate.id, s.step, s.loss, s.learning_rate, s.tokens,
                _terms(**{name: getattr(s, name) for name in own}) + _chosen(choice, s.step),
            )
            for s in read_preferred(candidate.folder)
        )  # fmt: skip
    from fusion.sft import read_steps

    steps = read_steps(candidate.folder)
    return tuple(TrainingPoint(candidate.id, s.step, s.loss, s.learning_rate, s.tokens) for s in steps)


def _terms(**losses: float | None) -> tuple[tuple[str, float], ...]:
    return tuple((name, value) for name, value in losses.items() if value is not None)


def _chosen(choice: Choice | None, step: int) -> tuple[tuple[str, float], ...]:
    """Return what a checkpoint that could be chosen made of the held-out examples, and whether it was."""
    measured = [one for one in choice.checkpoints if one.step == step] if choice else []
    return tuple(
        (f"held_out_{name}", value)
        for one in measured
        for name, value in (
            ("loss", one.loss),
            ("accuracy", one.accuracy),
            ("margin", one.margin),
            ("chosen", float(choice is not None and one.step == choice.step)),
        )
    )
