"""Implicit fusion: a target learns the best of what sources say to prompts, whatever their tokenizers.

FuseChat-3.0 (arXiv:2503.04222) and WRPO (arXiv:2412.03187): sources respond to prompts, the responses are rewarded; on
one share of the prompts the target is fine-tuned on the best response, on the others it learns a preference between
responses of one source, or (WRPO) between its own, with a source's best beside them. What asks and rewards is a
callable of the caller's; each stage leaves its work in a folder by the content of what it was made from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fusion.errors import CheckpointError, RecipeError, need
from fusion.hashes import content_hash
from fusion.launch import Launch, together
from fusion.parquet_shards import key_of
from fusion.prefer import PreferParams, PreferStep, prefer
from fusion.preference_dataset import write_dataset
from fusion.preference_pairs import build
from fusion.preference_records import Built, PairParams, Response
from fusion.preference_report import as_markdown, report
from fusion.preference_split import PREFERENCE, split
from fusion.prompts import Task
from fusion.sft import SftParams, Step, fine_tune

OWN = "self"
"""What WRPO's target is called as a source of responses."""

Respond = Callable[[Sequence[Task], Path | None], Sequence[Response]]
"""Prompts → the rewarded responses of all sources, or of the model in a folder, as the source OWN."""


@dataclass(frozen=True, slots=True)
class BestOfParams(SftParams):
    """How to fine-tune on the best responses; the defaults are FuseChat-3.0's for Llama-3.1-8B, but for the batch."""

    warmup_ratio: float = 0.1


@dataclass(frozen=True, slots=True)
class ImplicitParams:
    """How to fuse; the defaults are FuseChat-3.0's for Llama-3.1-8B, but for the batch, which was 128.

    ``data`` are the fields of PairParams; what is not given is FuseChat-3.0's, or of kind wrpo WRPO's.
    """

    data: PairParams | Mapping[str, Any] = field(default_factory=dict)
    sft: BestOfParams = field(default_factory=BestOfParams)
    preference: PreferParams = field(default_factory=PreferParams)

    def __post_init__(self) -> None:
        given = self.data
        if isinstance(given, Mapping):
            if "target" in given:
                raise RecipeError("data of an implicit fusion has a target; it is the model itself: leave it out")
            make = PairParams if self.preference.kind != "wrpo" else _wrpo
            object.__setattr__(self, "data", make(**given))

    @property
    def pairs(self) -> PairParams:
        """The rules by which examples are chosen."""
        assert isinstance(self.data, PairParams)
        return self.data


def _wrpo(**given: Any) -> PairParams:
    return PairParams.wrpo(OWN, **given)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is, in steps: "sft" or "preference"."""

    stage: str
    done: int
    total: int


def fuse_implicitly(
    base: Path,
    tasks: Sequence[Task],
    folder: Path,
    params: ImplicitParams,
    *,
    respond: Respond,
    watch: Callable[[Progress], None] | None = None,
    recipe: Mapping[str, object] | None = None,
    card: str = "",
    cache: Path | None = None,
    launch: Launch | None = None,
) -> tuple[PreferStep, ...]:
    """Fuse what ``respond`` brings into ``base``; write ``folder``, and return every step of the preference training.

    ``folder`` gets what :func:`fusion.prefer.prefer` writes, and data.json and data.md, the report on what was learnt
    from; that itself is a dataset in ``folder``'s name + ".data" (:mod:`fusion.preference_dataset`). The fine-tuned
    model, with its training.json, is kept in ``cache``, or beside ``folder`` in its name + ".work", and used again by
    whoever fine-tunes the same base on the same responses. ``launch`` starts the processes of the trainings; without
    one they are done here.
    RecipeError where nothing is left to be learnt, with what was dropped and why.
    """
    need("trl", "datasets", "accelerate", extra="train")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists already; remove it or choose another name")
    cache = cache or folder.with_name(f"{folder.name}.work")
    tell = watch or _nobody
    prompts = [task.prompt for task in tasks]
    responses = list(respond(tasks, None))
    built = build(prompts, responses, params.pairs)
    start = _fine_tuned(base, built, params.sft, cache, tell=tell, launch=launch) if built.sft else base
    if params.preference.kind == "wrpo":
        sides = split(prompts, params.pairs)
        own = respond([task for task in tasks if sides[task.prompt.id] == PREFERENCE], start)
        built = build(prompts, [*responses, *own], params.pairs)
    found = report(built)
    examples = built.quadruples if params.preference.kind == "wrpo" else built.pairs
    if not examples:
        raise RecipeError(f"no preference is left to be learnt:\n{as_markdown(found)}")
    data = folder.with_name(f"{folder.name}.data")
    if data.exists():  # of a run that was killed; there may be more responses now
        shutil.rmtree(data)
    write_dataset(built, data, title=folder.name)
    told = {"kind": "implicit", "params": asdict(params), "prompts": len(tasks), **(recipe or {})}
    return together(prefer, launch)(
        start,
        examples,
        folder,
        params.preference,
        on_step=lambda step: tell(Progress("preference", step.step, step.total)),
        recipe=told,
        card=card,
        beside={"data.json": _json(found), "data.md": as_markdown(found)},
    )


def _fine_tuned(
    base: Path,
    built: Built,
    params: SftParams,
    cache: Path,
    *,
    tell: Callable[[Progress], None],
    launch: Launch | None,
) -> Path:
    """Return the folder of the base, fine-tuned on the best responses: as it is there, or made."""
    chats = [
        {"messages": [*example.prompt.messages, {"role": "assistant", "content": example.best.text}]}
        for example in built.sft
    ]
    text = "".join(json.dumps(chat, ensure_ascii=False) + "\n" for chat in chats)
    processes = (launch.processes,) if launch and launch.processes > 1 else ()  # which decide the size of a batch
    key = key_of("sft", content_hash(base), text, asdict(params), *processes)[:16]
    folder, data = cache / "sft" / key, cache / "sft" / f"{key}.jsonl"
    if folder.exists():
        return folder
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(text, encoding="utf-8")

    def on_step(step: Step) -> None:
        tell(Progress("sft", step.step, step.total))

    tune = together(fine_tune, launch)
    tune(base, data, folder, params, on_step=on_step, recipe={"prompts": len(chats)}, card=_SFT_CARD)
    return folder


_SFT_CARD = "# Fine-tuned\n\nA stage of an implicit fusion by fuseval: fine-tuned on the sources' best responses.\n"


def _nobody(_: Progress) -> None:
    """Hear, and say nothing."""


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"
