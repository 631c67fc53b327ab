"""Preference training: DPO, length-normalised DPO, SimPO and WRPO of a model on pairs or quadruples of responses.

FuseChat-3.0 (arXiv:2503.04222), WRPO (arXiv:2412.03187); the losses are those of :mod:`fusion.preference_losses`.
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
from fusion.crew import crew
from fusion.errors import CheckpointError, RecipeError, need
from fusion.hashes import content_hash
from fusion.parquet_shards import key_of
from fusion.prefer_choice import CHOICES, HELD_OUT, as_json_value, choose, hold_out
from fusion.prefer_lessons import PAIR, QUADRUPLE, Examples, PreferCollator, add_reference, lessons_of
from fusion.prefer_trainer import PreferStep, make_prefer_trainer
from fusion.preference_losses import check_preference_loss
from fusion.preference_records import Quadruple
from fusion.quiet import quiet_libraries
from fusion.sft import need_template
from fusion.trained import free, lora_config, sharded, written
from fusion.training_arguments import as_json, training_arguments, versions
from fusion.training_params import SKIP_PREPARING, Allowed, TrainingParams, check_fields, is_within
from fusion.training_resume import claim_work, last_checkpoint

__all__ = ["PreferParams", "PreferStep", "prefer", "read_steps"]

_BETAS = {"dpo": 0.01, "ln_dpo": 10.0, "simpo": 2.0, "wrpo": 0.01}
_ALPHA, _GAMMA = 0.1, 1.0


@dataclass(frozen=True, slots=True)
class PreferParams(TrainingParams):
    """How to train; the defaults are FuseChat-3.0's for Llama-3.1-8B, but for the batch, which was 128.

    What a kind of loss needs and is not given is as published: β 10 of ln_dpo, 0.01 of dpo and wrpo, 2 of simpo with
    γ 1, and wrpo's α 0.1, which is reached at the last step.
    """

    learning_rate: float = 8e-7
    epochs: float = 1.0
    warmup_ratio: float = 0.1
    kind: str = "ln_dpo"  # one of fusion.preference_losses.PREFERENCE_KINDS
    beta: float = 0.0  # 0: the kind's own
    gamma: float | None = None  # simpo's margin
    alpha: float | None = None  # wrpo's weight of the source's response, at the end
    choose: str = "last"  # or "best": the better of the last two checkpoints, by examples that are held out
    held_out: float | None = None  # of choose: best, the share of the prompts; None: 0.05
    label_smoothing: float = 0.0  # the share of pairs that are taken to be the wrong way round

    def __post_init__(self) -> None:
        TrainingParams.__post_init__(self)
        if self.beta == 0 and self.kind in _BETAS:
            object.__setattr__(self, "beta", _BETAS[self.kind])
        if self.gamma is None and self.kind == "simpo":
            object.__setattr__(self, "gamma", _GAMMA)
        if self.alpha is None and self.kind == "wrpo":
            object.__setattr__(self, "alpha", _ALPHA)
        if self.held_out is None and self.choose == "best":
            object.__setattr__(self, "held_out", HELD_OUT)
        check_fields(self, _ALLOWED, "preference training")
        if self.choose == "last" and self.held_out is not None:
            raise RecipeError("held_out is for choosing a checkpoint: say choose: best, or leave it out")
        if self.choose == "best" and not self.checkpoint_every:
            raise RecipeError("choose: best chooses a checkpoint, and checkpoint_every is 0; raise it")
        given = {"beta": self.beta, "gamma": self.gamma, "alpha": self.alpha}
        check_preference_loss(self.kind, **given, label_smoothing=self.label_smoothing)  # type: ignore[arg-type]

    @property
    def parts(self) -> tuple[str, ...]:
        """The responses of an example, by name."""
        return QUADRUPLE if self.kind == "wrpo" else PAIR


def prefer(
    base: Path,
    examples: Examples,
    folder: Path,
    params: PreferParams,
    *,
    on_step: Callable[[PreferStep], None] | None = None,
    recipe: Mapping[str, object] | None = None,
    card: str = "",
    beside: Mapping[str, str] | None = None,
) -> tuple[PreferStep, ...]:
    """Train ``base`` on pairs, or on quadruples of kind wrpo, and write ``folder``; return every step.

    ``base`` is also the reference, whose log-probabilities are computed once, before the first step. Checkpoints lie in
    ``folder``'s name + ".work": a killed training goes on from the last one, and on a CPU gives the same bytes as one
    that was not killed. Otherwise as :func:`fusion.distill.distill`; training.json also has how many examples were left
    out because a response is longer than max_length. RecipeError where the examples are not of the loss's kind.
    """
    need("trl", "datasets", "accelerate", *(["peft"] if params.lora_rank else []), extra="train")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists already; remove it or choose another name")
    if not examples or any(isinstance(example, Quadruple) != (params.kind == "wrpo") for example in examples):
        wanted = "quadruples" if params.kind == "wrpo" else "pairs"
        raise RecipeError(f"{params.kind} learns from {wanted} of responses, and there are none, or others among them")
    Checkpoint(base)  # its files are there and whole
    work = folder.with_name(f"{folder.name}.work") / "training"
    told = as_json({"kind": "prefer", "params": asdict(params), **versions(), **(recipe or {})})
    heard: list[PreferStep] = []
    main = crew().main
    with quiet_libraries():
        lessons, held, lengths = _lessons(base, examples, params, work)
        args = training_arguments(
            params, work, checkpoint_every=params.checkpoint_every, **params.optimiser(), **SKIP_PREPARING
        )
        trainer = _trainer(base, lessons, params, args, heard=heard, on_step=on_step if main else None)
        if params.lora_rank and sharded(trainer):
            raise RecipeError("lora_rank goes with one process or plain data parallelism, not with FSDP or DeepSpeed")
        if held and trainer.is_deepspeed_enabled:
            raise RecipeError("choose: best goes with one process, data parallelism and FSDP, not with DeepSpeed")
        last = last_checkpoint(work)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        choice = choose(trainer, work, held) if held else None
        with written(trainer, folder, base, dtype=params.dtype, adapter=params.lora_rank is not None) as made:
            if made is not None:
                steps = as_json({**lengths, **as_json_value(choice), "steps": [asdict(step) for step in heard]})
                whole_card = card if choice is None else f"{card}\n{choice.told()}"
                for name, text in {
                    "recipe.json": told, "README.md": whole_card, "training.json": steps, **(beside or {}),
                }.items():  # fmt: skip
                    (made / name).write_text(text, encoding="utf-8")
        if main:
            shutil.rmtree(work)
            with suppress(OSError):  # the fine-tuned model is kept there, where no other place was given
                work.parent.rmdir()
        free(trainer)
    return tuple(heard)


def read_steps(folder: Path) -> tuple[PreferStep, ...]:
    """Return the steps of the training that made the checkpoint in ``folder``."""
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return tuple(PreferStep(**step) for step in training["steps"])


def _lessons(
    base: Path, examples: Examples, params: PreferParams, work: Path
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, int]]:
    """Return the examples to train on and to choose by, as tokens with the reference's log-probabilities; and counts.

    All processes share the reference's work, before trl is told how the model is spread over them for training.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    need_template(tokenizer, base)
    apart: Examples = []
    if params.held_out:
        examples, apart = hold_out(examples, share=params.held_out, seed=params.seed)
    lessons, kept = lessons_of(examples, tokenizer, max_length=params.max_length)
    held = lessons_of(apart, tokenizer, max_length=params.max_length)[0] if apart else []
    together = crew()
    if together.main:
        decisive = {name: value for name, value in asdict(params).items() if name != "checkpoint_every"}
        claim_work(work, key_of("prefer", decisive, content_hash(base), [*lessons, *held], versions()))
    together.wait()
    if params.kind != "simpo":
        add_reference([*lessons, *held], base, work, parts=params.parts, pad=_padding(tokenizer), together=together)
    return lessons, held, asdict(kept)


def _padding(tokenizer: Any) -> int:
    """Return a token to pad with, which is never looked at."""
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(found or 0)


def _trainer(
    base: Path,
    lessons: list[dict[str, Any]],
    params: PreferParams,
    args: Any,
    *,
    heard: list[PreferStep],
    on_step: Callable[[PreferStep], None] | None,
) -> Any:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.utils import disable_dropout_in_model

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    disable_dropout_in_model(model)  # or the reference would be another model
    return make_prefer_trainer(
        params,
        params.parts,
        heard,
        on_step,
        model=model,
        args=args,
        train_dataset=Dataset.from_list(lessons),
        data_collator=PreferCollator(_padding(tokenizer), params.parts),
        processing_class=tokenizer,
        peft_config=lora_config(params),
    )


_ALLOWED: Allowed = {
    "choose": (lambda value: value in CHOICES, "last or best"),
    "held_out": (lambda value: value is None or (is_within(value, 0, 1) and value not in (0, 1)), "a number in (0, 1)"),
}
