"""Explicit fusion, stage 1 of FuseChat: source models of any tokenizer, and what they expect next, taught to a target.

Conversations are written with the target's template; every model says of each position what it expects next; that is
aligned to the target's tokens, projected on its vocabulary, fused, reported, and learnt. FuseLLM (arXiv:2401.10491),
FuseChat (2402.16107, 2408.07990). Each stage leaves its work in a folder by the content of what it was made from, so
that a killed run goes on, and another run uses what is the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fusion.alignment_report import Cost, as_markdown, report
from fusion.corpus import ALIGNMENTS, VOCABULARY_MAPS, Reader, Scene, open_scene
from fusion.crew import crew
from fusion.distill import DistillParams, DistillStep, distill
from fusion.errors import CheckpointError, RecipeError, did_you_mean, need
from fusion.fuser import Fuser, fused_targets
from fusion.parquet_shards import key_of
from fusion.quiet import quiet_libraries
from fusion.targets import FUSIONS, LEVELS
from fusion.teachers import Teacher, TeacherParams, distributions

ENGINES = ("transformers", "vllm")


@dataclass(frozen=True, slots=True)
class ExplicitParams:
    """How to fuse; the defaults are FuseChat's, but for the map of the vocabularies."""

    how: str = "min_ce"  # one of fusion.targets.FUSIONS: the model that the text surprises least, or a weighted mean
    level: str = "sequence"  # one of LEVELS: decided once a conversation, or at each position
    vocabulary: str = "first_piece"  # one of VOCABULARY_MAPS; FuseChat's is "statistics"
    alignment: str = "bytes"  # one of ALIGNMENTS; FuseChat's is "dtw", which is slow and often wrong
    k: int | None = None  # tokens kept in a fused distribution; None: as many as the teachers keep
    engine: str = "transformers"  # one of ENGINES, which runs the teachers
    examples: int = 2  # of each kind of position, in the report
    teachers: TeacherParams = field(default_factory=TeacherParams)
    training: DistillParams = field(default_factory=DistillParams)

    def __post_init__(self) -> None:
        choices = {"how": FUSIONS, "level": LEVELS, "vocabulary": VOCABULARY_MAPS, "alignment": ALIGNMENTS}
        for name, known in {**choices, "engine": ENGINES}.items():
            value = getattr(self, name)
            if value not in known:
                hint = did_you_mean(str(value), known)
                raise RecipeError(f"{name} of the fusion is {value!r}; it must be one of {', '.join(known)}.{hint}")
        for name, least in (("k", 1), ("examples", 0)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
            if not whole and not (name == "k" and value is None):
                raise RecipeError(f"{name} of the fusion is {value!r}; it must be a whole number, {least} or more")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is: "map" (of models), "teacher" (of ``model``, in texts), "plan" and "targets" (in chats), or
    "training" (in steps).
    """

    stage: str
    done: int
    total: int
    model: str | None = None
    step: DistillStep | None = None  # of the training


Watch = Callable[[Progress], None]


def fuse_explicitly(
    base: Path,
    sources: Mapping[str, Path],
    data: Path,
    folder: Path,
    params: ExplicitParams,
    *,
    watch: Watch | None = None,
    recipe: Mapping[str, object] | None = None,
    card: str = "",
    title: str | None = None,
    cache: Path | None = None,
) -> tuple[DistillStep, ...]:
    """Fuse ``sources``, by name, into ``base`` on the conversations of ``data``; write ``folder``, return every step.

    ``folder`` gets what :func:`fusion.distill.distill` writes, and alignment.json and alignment.md, the report that
    was made before the training. What the models said and the fused targets are kept in ``cache``, or beside
    ``folder`` in its name + ".work"; ``title`` is the base's name in the report. Processes that :mod:`fusion.launch`
    starts share the teachers' work and the training. RecipeError and CheckpointError name what does not fit.
    """
    need("trl", "datasets", "accelerate", extra="train")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists already; remove it or choose another name")
    cache = cache or folder.with_name(f"{folder.name}.work")
    together = crew()
    tell = watch if watch is not None and together.main else _nobody
    with quiet_libraries():
        scene, teachers = _taught({title or base.name: base}, sources, data, params, cache=cache, tell=tell)
        fuser = Fuser(scene, teachers, how=params.how, level=params.level, k=params.k)
        found = None
        if together.main:
            found = _with_training(
                fused_targets(
                    fuser, cache, examples=params.examples, on_chat=lambda *done: tell(Progress("targets", *done))
                ),
                scene,
                params,
            )
        together.wait()
    told = {
        "kind": "explicit",
        "params": asdict(params),
        "base": {scene.target.name: scene.target.identity},
        "sources": {source.name: source.identity for source in scene.sources},
        "conversations": len(scene.chats),
        **(recipe or {}),
    }
    return distill(
        base,
        fuser.folder(cache),
        folder,
        params.training,
        on_step=lambda step: tell(Progress("training", step.step, step.total, step=step)),
        recipe=told,
        card=card,
        beside={} if found is None else {"alignment.json": _json(found), "alignment.md": as_markdown(found)},
    )


def ask_teachers(
    base: Path,
    sources: Mapping[str, Path],
    data: Path,
    params: ExplicitParams,
    *,
    cache: Path,
    watch: Watch | None = None,
    title: str | None = None,
) -> None:
    """Do the first part of :func:`fuse_explicitly`, which then finds in ``cache`` what the models say.

    For vLLM's engines, which begin process groups of their own, where those that train together have one already.
    """
    with quiet_libraries():
        _taught({title or base.name: base}, sources, data, params, cache=cache, tell=watch or _nobody)


def plan_explicitly(
    base: Path,
    sources: Mapping[str, Path],
    data: Path,
    params: ExplicitParams,
    *,
    cache: Path,
    watch: Watch | None = None,
    title: str | None = None,
) -> dict[str, Any]:
    """Return the report on the alignment and the cost, JSON values, without running any model.

    What the models say, and so who wins and how much mass is kept, is None there. The maps of the vocabularies are
    kept in ``cache`` for the fusion itself. ``fusion.alignment_report.as_markdown`` writes it out.
    """
    tell = watch or _nobody
    with quiet_libraries():
        scene = _scene({title or base.name: base}, sources, data, params, cache=cache, tell=tell)
        survey = scene.survey(examples=params.examples)
        for number, chat in enumerate(scene.chats, 1):
            tokens = scene.target.read(chat)
            theirs = [source.read(chat) for source in scene.sources]
            survey.add(chat, tokens, theirs, scene.align(tokens, theirs))
            tell(Progress("plan", number, len(scene.chats)))
    costs = {reader.name: Cost(parameters=reader.parameters) for reader in scene.readers}
    return _with_training(report(survey, costs), scene, params)


def _taught(
    base: Mapping[str, Path],
    sources: Mapping[str, Path],
    data: Path,
    params: ExplicitParams,
    *,
    cache: Path,
    tell: Watch,
) -> tuple[Scene, list[Teacher]]:
    scene = _scene(base, sources, data, params, cache=cache, tell=tell)
    return scene, [_teacher(reader, scene, params, cache, tell) for reader in scene.readers]


def _scene(
    base: Mapping[str, Path],
    sources: Mapping[str, Path],
    data: Path,
    params: ExplicitParams,
    *,
    cache: Path,
    tell: Watch,
) -> Scene:
    def on_map(done: int, total: int) -> None:
        tell(Progress("map", done, total))

    how = {"vocabulary": params.vocabulary, "alignment": params.alignment}
    return open_scene(base, sources, data, **how, cache=cache, on_map=on_map)


def _teacher(reader: Reader, scene: Scene, params: ExplicitParams, cache: Path, tell: Watch) -> Teacher:
    import torch

    asked = params.teachers
    texts = len({chat.text for chat in scene.chats})
    done = 0

    def heard(_: str) -> None:
        nonlocal done
        done += 1
        tell(Progress("teacher", done, texts, model=reader.name))

    engine = None
    if params.engine == "vllm":
        from fusion.teachers_vllm import vllm_prompt_logprobs

        engine = vllm_prompt_logprobs(reader.folder, asked)
    where = "cuda" if torch.cuda.is_available() else "cpu"  # dtype "auto" is not the same on both
    how = (params.engine, where, asked.k, asked.max_length, asked.dtype, asked.temperature)
    # Of its own for other conversations: shards that a run does not need are removed.
    key = key_of(reader.identity, *how, sorted({chat.id for chat in scene.chats}))
    folder = cache / "teachers" / key[:16]
    return distributions(
        reader.folder, scene.chats, folder, asked, on_chat=heard, engine=engine, identity=reader.identity
    )


def _with_training(found: Mapping[str, Any], scene: Scene, params: ExplicitParams) -> dict[str, Any]:
    """Add what the training takes: 6 floating-point operations a parameter and token (arXiv:2001.08361)."""
    training = params.training
    tokens = int(found["models"][0]["tokens"] * training.epochs)
    batch = training.batch_size * training.gradient_accumulation
    return {
        **found,
        "training": {
            "epochs": training.epochs,
            "tokens": tokens,
            "steps": math.ceil(math.ceil(len(scene.chats) / batch) * training.epochs),  # on one device
            "flops": 6 * scene.target.parameters * tokens,
        },
    }


def _nobody(_: Progress) -> None:
    """Hear, and say nothing."""


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"
