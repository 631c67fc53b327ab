"""Targets of kind implicit: their sources asked through the ledger, and what they say handed to the fusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.keys import content_key
from evals.records import Model
from fuseval.config import ConfigError
from fuseval.rewarding import Sampled, scored
from fuseval.sampling import Asker, Draw, draws, own_draw, sample
from fuseval.target import Target
from fusion.hashes import content_hash

if TYPE_CHECKING:
    from fuseval.models import Candidate
    from fusion.implicit import Progress
    from fusion.preference_records import Response
    from fusion.prompts import Task

_SHOWN = {"sft": "fine-tune", "preference": "train"}


def fuse_implicit(
    candidate: Candidate,
    target: Target,
    models: Mapping[str, Candidate],
    *,
    asker: Asker,
    params: Any,
    recipe: Mapping[str, object],
) -> None:
    """Make the weights of a target of kind implicit; those of its base and sources are there.

    Every response, judgment and reward is stored as it comes, and not asked or computed again.
    """
    from fusion.implicit import fuse_implicitly
    from fusion.prompts import read_tasks

    base = models[target.base]
    assert base.folder is not None and candidate.folder is not None and candidate.data is not None
    cache = candidate.folder.with_name(".fusion")

    def respond(tasks: Sequence[Task], own: Path | None) -> Sequence[Response]:
        drawn = draws(target, models, seed=asker.seed)
        if own is not None:
            tuned = _fine_tuned(candidate, base, own, cache=cache)
            asker.ledger.add(tuned.model)
            drawn = [own_draw(target, tuned, seed=asker.seed)]
        responses = _responses(drawn, tasks, target, models, replace(asker, launch=candidate.launch))
        asker.engines.close()  # the training needs the memory
        return responses

    def heard(progress: Progress) -> None:
        asker.watch(f"{_SHOWN[progress.stage]} {candidate.name}", progress.done, progress.total)

    fuse_implicitly(
        base.folder,
        read_tasks(candidate.data),
        candidate.folder,
        params,
        respond=respond,
        watch=heard,
        recipe=recipe,
        card=(
            f"# {candidate.name}\n\n{base.name}, taught by fuseval the best of what {', '.join(target.sources)} say to "
            f"{candidate.data.name}; see recipe.json and data.md.\n"
        ),
        cache=cache,
        launch=candidate.launch,
    )


def implicit_recipe(target: Target, models: Mapping[str, Candidate], *, seed: int) -> dict[str, object]:
    """Return what else a target of kind implicit is made of: how its sources are sampled, and what rewards them."""
    spec = target.reward
    by = spec.model or spec.judge
    reward: dict[str, object] = {"kind": "model" if spec.model else "judge" if spec.judge else "correct"}
    reward["by"] = by and models[by].id
    if spec.model and spec.judge:
        reward = {"kind": "sum", "by": [models[spec.model].id, models[spec.judge].id], "weights": spec.weights}
    return {
        "draws": [
            {"source": d.candidate.id, "title": d.title, "samples": d.samples, "sampling": asdict(d.sampling)}
            for d in [*draws(target, models, seed=seed), own_draw(target, models[target.base], seed=seed)]
        ],
        "reward": reward,
    }


def _responses(
    drawn: Sequence[Draw], tasks: Sequence[Task], target: Target, models: Mapping[str, Candidate], asker: Asker
) -> list[Response]:
    """Return what the sources say to the tasks, rewarded."""
    prompts = [task.prompt for task in tasks]
    sampled = []
    for draw in drawn:
        answers = sample(draw, prompts, asker)
        sampled += [
            Sampled(task, draw.title, number, answer)
            for task in tasks
            for number, answer in enumerate(answers[task.prompt.id])
        ]
    if not sampled:
        raise ConfigError(
            f"none of the sources of {target.name!r} responded to a prompt; the ledger's table failures says why"
        )
    return scored(sampled, target.reward, models, asker)


def _fine_tuned(candidate: Candidate, base: Candidate, folder: Path, *, cache: Path) -> Candidate:
    """Return the fine-tuned base as a model that can be asked."""
    identity = content_key("fine-tuned", content_hash(folder, cache=cache))
    model = Model(identity, f"{candidate.name}-sft", "sft", str(folder), parent=base.id)
    return replace(
        base, model=model, folder=folder, endpoint=None, gguf=None, adapter=None, adapter_of=None, template=None,
        evaluate=False,
    )  # fmt: skip
