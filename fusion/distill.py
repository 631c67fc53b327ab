"""Light fine-tuning on fused targets: λ · CLM + (1 − λ) · fusion on what the assistant says.

FuseLLM (arXiv:2401.10491) and FuseChat (2408.07990). Differences from FuseAI@7d9a307: a target keeps its likeliest
tokens and its tail, and is never spread over the vocabulary; positions at which nothing counts cost no logits.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fusion.checkpoints import Checkpoint
from fusion.distill_trainer import DistillStep, make_trainer
from fusion.errors import CheckpointError, RecipeError, need
from fusion.hashes import content_hash
from fusion.lessons import Collator, Lengths, write_lessons
from fusion.losses import KINDS, TAIL_POLICIES
from fusion.parquet_shards import key_of
from fusion.quiet import quiet_libraries
from fusion.target_shards import Targets, read_targets
from fusion.trained import free, lora_config, sharded, written
from fusion.training_arguments import as_json, training_arguments, versions
from fusion.training_params import SKIP_PREPARING, Allowed, TrainingParams, check_fields, is_positive, is_within
from fusion.training_resume import claim_work, last_checkpoint

__all__ = ["DistillParams", "DistillStep", "distill", "read_steps"]

_LESSONS = "lessons.arrow"


@dataclass(frozen=True, slots=True)
class DistillParams(TrainingParams):
    """How to train; the defaults are FuseChat's (arXiv:2408.07990), but for the batch, which was 128."""

    lm_weight: float = 0.9  # λ: what the text itself counts in the loss, and 1 − λ the fused targets; 1: plain SFT
    loss: str = "ce"  # of the fused targets: one of fusion.losses.KINDS
    tail_policy: str = "renormalise"  # what becomes of the mass that is not listed: one of losses.TAIL_POLICIES
    temperature: float = 1.0  # of the fused targets; above 1 flattens them

    def __post_init__(self) -> None:
        TrainingParams.__post_init__(self)
        check_fields(self, _ALLOWED, "distillation")


def distill(
    base: Path,
    targets: Path,
    folder: Path,
    params: DistillParams,
    *,
    on_step: Callable[[DistillStep], None] | None = None,
    recipe: Mapping[str, object] | None = None,
    card: str = "",
    beside: Mapping[str, str] | None = None,
    resume: bool = True,
) -> tuple[DistillStep, ...]:
    """Train ``base`` on the fused ``targets`` (of :mod:`fusion.target_shards`) and write ``folder``; return every step.

    Training is in float32 on a CPU, and in bfloat16 with float32 weights on a GPU; where `accelerate launch` started
    the process, in as many processes, and with FSDP or DeepSpeed, as its configuration says. Checkpoints lie in
    ``folder``'s name + ".work": a killed training goes on from the last one, if ``resume``, and on a CPU gives the
    same bytes as one that was not killed. A LoRA adapter is merged into what is written, and kept in ``folder``'s name
    + ".adapter". The folder also gets training.json: the steps, and how many conversations were cut or left out; and
    the texts that ``beside`` holds by file name.
    """
    need("trl", "datasets", "accelerate", *(["peft"] if params.lora_rank else []), extra="train")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists already; remove it or choose another name")
    Checkpoint(base)  # its files are there and whole
    opened = read_targets(targets)
    recipe_text = as_json(_told(params, recipe or {}))
    work = folder.with_name(f"{folder.name}.work") / "training"
    heard: list[DistillStep] = []
    with quiet_libraries():
        args = _arguments(params, work)
        main = args.process_index == 0
        with args.main_process_first(local=False):
            if main:
                lengths = _prepare(work, base, opened, params, resume=resume)
        trainer = _trainer(base, params, args, heard=heard, on_step=on_step if main else None, k=opened.k)
        if params.lora_rank and sharded(trainer):
            raise RecipeError("lora_rank goes with one process or plain data parallelism, not with FSDP or DeepSpeed")
        last = last_checkpoint(work)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        with written(trainer, folder, base, dtype=params.dtype, adapter=params.lora_rank is not None) as made:
            if made is not None:
                steps = as_json({**asdict(lengths), "steps": [asdict(step) for step in heard]})
                texts = {"recipe.json": recipe_text, "README.md": card, "training.json": steps, **(beside or {})}
                for name, text in texts.items():
                    (made / name).write_text(text, encoding="utf-8")
        if main:
            shutil.rmtree(work)
            with suppress(OSError):  # what the models said is kept there, where no other place was given
                work.parent.rmdir()
        free(trainer)
    return tuple(heard)


def read_steps(folder: Path) -> tuple[DistillStep, ...]:
    """Return the steps of the training that made the checkpoint in ``folder``."""
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return tuple(DistillStep(**step) for step in training["steps"])


def _prepare(work: Path, base: Path, targets: Targets, params: DistillParams, *, resume: bool) -> Lengths:
    """Fill the work folder, which loses the checkpoints of another training than this one."""
    from transformers import AutoConfig

    decisive = {name: value for name, value in asdict(params).items() if name != "checkpoint_every"}
    shards = [shard.sha256 for shard in targets.manifest.shards]
    key = key_of(decisive, content_hash(base), shards, list(targets.chats), versions())
    claim_work(work, key, resume=resume)
    vocabulary = AutoConfig.from_pretrained(base).get_text_config().vocab_size
    return write_lessons(targets, work / _LESSONS, k=targets.k, max_length=params.max_length, vocabulary=vocabulary)


def _trainer(
    base: Path,
    params: DistillParams,
    args: Any,
    *,
    heard: list[DistillStep],
    on_step: Callable[[DistillStep], None] | None,
    k: int,
) -> Any:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return make_trainer(
        params,
        heard,
        on_step,
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        args=args,
        train_dataset=Dataset.from_file(str(Path(args.output_dir) / _LESSONS)),
        data_collator=Collator(pad or 0, k, targets=params.lm_weight != 1),  # a padding token is never looked at
        processing_class=tokenizer,
        peft_config=lora_config(params),
    )


def _arguments(params: DistillParams, work: Path) -> Any:
    return training_arguments(
        params, work, checkpoint_every=params.checkpoint_every, **params.optimiser(), **SKIP_PREPARING
    )


def _told(params: DistillParams, recipe: Mapping[str, object]) -> dict[str, object]:
    return {"kind": "distill", "params": asdict(params), **versions(), **recipe}


_ALLOWED: Allowed = {
    "lm_weight": (lambda value: is_within(value, 0, 1), "a number in [0, 1]"),
    "loss": (lambda value: value in KINDS, f"one of {', '.join(KINDS)}"),
    "tail_policy": (lambda value: value in TAIL_POLICIES, f"one of {', '.join(TAIL_POLICIES)}"),
    "temperature": (is_positive, "a number above 0"),
}
