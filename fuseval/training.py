"""Targets: what trains each kind, where its conversations are, and what its training logged."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.records import TrainingPoint
from fuseval.config import ConfigError, locate
from fuseval.experiment import Target

if TYPE_CHECKING:
    from fuseval.models import Candidate, Watch

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


def params_of(kind: str) -> type[Any]:
    """Return the dataclass that a target's params are the fields of."""
    if kind == "explicit":
        from fusion.explicit import ExplicitParams

        return ExplicitParams
    from fusion.sft import SftParams

    return SftParams


def target_recipe(target: Target, known: Mapping[str, Candidate], *, data: Path) -> dict[str, object]:
    """Return what a target's identity is made of."""
    recipe: dict[str, object] = {
        "kind": target.kind,
        "base": known[target.base].id,
        "data": hashlib.sha256(data.read_bytes()).hexdigest(),
        "params": asdict(params_of(target.kind)(**target.params)),
    }
    return recipe | ({"sources": [known[source].id for source in target.sources]} if target.sources else {})


def train(candidate: Candidate, target: Target, models: Mapping[str, Candidate], *, watch: Watch) -> None:
    """Make a target's weights; those of its base and sources are there."""
    base = models[target.base]
    assert base.folder is not None and candidate.folder is not None and candidate.data is not None
    recipe = {**json.loads(candidate.model.recipe), "name": candidate.name, "base_name": base.name}
    stage = f"train {candidate.name}"
    watch(stage, 0, 0)
    if target.kind == "explicit":
        _explicit(candidate, target, models, watch=watch, recipe=recipe)
        return
    from fusion.sft import SftParams, Step, fine_tune

    def on_step(step: Step) -> None:
        watch(stage, step.step, step.total)

    fine_tune(
        base.folder,
        candidate.data,
        candidate.folder,
        SftParams(**target.params),
        on_step=on_step,
        recipe=recipe,
        card=f"# {candidate.name}\n\n{base.name}, fine-tuned by fuseval on {candidate.data.name}; see recipe.json.\n",
    )


def training_points(candidate: Candidate) -> tuple[TrainingPoint, ...]:
    """Return what the training that made the candidate logged; nothing for one that was not trained, or not yet."""
    if not candidate.target or candidate.folder is None or not candidate.folder.exists():
        return ()
    from fusion.sft import read_steps

    steps = read_steps(candidate.folder)
    return tuple(TrainingPoint(candidate.id, s.step, s.loss, s.learning_rate, s.tokens) for s in steps)


def _explicit(
    candidate: Candidate,
    target: Target,
    models: Mapping[str, Candidate],
    *,
    watch: Watch,
    recipe: Mapping[str, object],
) -> None:
    raise NotImplementedError
