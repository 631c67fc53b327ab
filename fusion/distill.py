"""Light fine-tuning on fused targets: λ · CLM + (1 − λ) · fusion on what the assistant says.

FuseLLM (arXiv:2401.10491) and FuseChat (2408.07990). Differences from FuseAI@7d9a307: a target keeps its likeliest
tokens and its tail, and is never spread over the vocabulary; positions at which nothing counts cost no logits.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fusion.checkpoints import Checkpoint, copy_companions, whole_folder
from fusion.distill_trainer import DistillStep, last_checkpoint, make_trainer
from fusion.errors import CheckpointError, RecipeError, need
from fusion.hashes import content_hash
from fusion.lessons import Collator, Lengths, write_lessons
from fusion.losses import KINDS, TAIL_POLICIES
from fusion.parquet_shards import key_of
from fusion.quiet import quiet_libraries
from fusion.sft import SftParams
from fusion.target_shards import Targets, read_targets

__all__ = ["DistillParams", "DistillStep", "distill", "read_steps"]

_LESSONS = "lessons.arrow"


@dataclass(frozen=True, slots=True)
class DistillParams(SftParams):
    """How to train; the defaults are FuseChat's (arXiv:2408.07990), but for the batch, which was 128."""

    lm_weight: float = 0.9  # λ: what the text itself counts in the loss, and 1 − λ the fused targets; 1: plain SFT
    loss: str = "ce"  # of the fused targets: one of fusion.losses.KINDS
    tail_policy: str = "renormalise"  # what becomes of the mass that is not listed: one of losses.TAIL_POLICIES
    temperature: float = 1.0  # of the fused targets; above 1 flattens them
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0  # a longer gradient is shortened to this
    lora_rank: int | None = None  # None: all weights are trained; else low-rank changes of the linear layers
    lora_alpha: float | None = None  # the change is scaled by alpha / rank; None: twice the rank
    lora_targets: tuple[str, ...] | None = None  # names of layers, such as q_proj; None: all linear ones but the head
    checkpoint_every: int = 100  # steps from which a killed training goes on; 0: none. The result is the same

    def __post_init__(self) -> None:
        SftParams(**{field.name: getattr(self, field.name) for field in fields(SftParams)})  # checks its own
        for name, allowed in _ALLOWED.items():
            value = getattr(self, name)
            if not allowed[0](value):
                raise RecipeError(f"{name} of the distillation is {value!r}; it must be {allowed[1]}")


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
    recipe_text = _json(_told(params, recipe or {}))
    work = folder.with_name(f"{folder.name}.work") / "training"
    heard: list[DistillStep] = []
    with quiet_libraries():
        args = _arguments(params, work)
        main = args.process_index == 0
        with args.main_process_first(local=False):
            if main:
                lengths = _prepare(work, base, opened, params, resume=resume)
        trainer = _trainer(base, params, args, heard=heard, on_step=on_step if main else None, k=opened.k)
        if params.lora_rank and _sharded(trainer):
            raise RecipeError("lora_rank goes with one process or plain data parallelism, not with FSDP or DeepSpeed")
        last = last_checkpoint(work)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        with _written(trainer, folder, base, params) as made:
            if made is not None:
                steps = _json({**asdict(lengths), "steps": [asdict(step) for step in heard]})
                texts = {"recipe.json": recipe_text, "README.md": card, "training.json": steps, **(beside or {})}
                for name, text in texts.items():
                    (made / name).write_text(text, encoding="utf-8")
        if main:
            shutil.rmtree(work)
            with suppress(OSError):  # what the models said is kept there, where no other place was given
                work.parent.rmdir()
        _free(trainer)
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
    key = key_of(decisive, content_hash(base), shards, list(targets.chats), _versions())
    known = work / "key.txt"
    if work.exists() and not (resume and known.is_file() and known.read_text(encoding="utf-8") == key):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    known.write_text(key, encoding="utf-8")
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
        peft_config=_lora(params),
    )


def _lora(params: DistillParams) -> Any:
    if params.lora_rank is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=params.lora_rank,
        lora_alpha=params.lora_alpha if params.lora_alpha is not None else 2 * params.lora_rank,
        target_modules=list(params.lora_targets) if params.lora_targets else "all-linear",
        task_type="CAUSAL_LM",
    )


def _arguments(params: DistillParams, work: Path) -> Any:
    import torch
    from trl import SFTConfig

    gpu = torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(work),
        learning_rate=params.learning_rate,
        num_train_epochs=params.epochs,
        per_device_train_batch_size=params.batch_size,
        gradient_accumulation_steps=params.gradient_accumulation,
        max_length=None,  # cut already
        dataset_kwargs={"skip_prepare_dataset": True},
        warmup_steps=params.warmup_ratio,  # below 1 it is a share
        lr_scheduler_type=params.scheduler,
        weight_decay=params.weight_decay,
        adam_beta1=params.adam_beta1,
        adam_beta2=params.adam_beta2,
        max_grad_norm=params.max_grad_norm,
        seed=params.seed,
        data_seed=params.seed,
        gradient_checkpointing=params.gradient_checkpointing,
        use_cpu=not gpu,
        bf16=gpu,  # three times slower than float32 on a CPU without AMX
        dataloader_pin_memory=gpu,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps" if params.checkpoint_every else "no",
        save_steps=max(1, params.checkpoint_every),
        report_to=[],
        disable_tqdm=True,
    )


@contextmanager
def _written(trainer: Any, folder: Path, base: Path, params: DistillParams) -> Iterator[Path | None]:
    """Give the main process a folder that holds the trained model and takes its name at the end; the others None."""
    import torch

    accelerator, dtype = trainer.accelerator, getattr(torch, params.dtype)
    state = accelerator.get_state_dict(trainer.model_wrapped) if _sharded(trainer) else None  # all give their part
    model = accelerator.unwrap_model(trainer.model)
    if not accelerator.is_main_process:
        yield None
        accelerator.wait_for_everyone()
        return
    with ExitStack() as whole:
        made = whole.enter_context(whole_folder(folder))
        if params.lora_rank is not None:
            _write_adapter(model, folder.with_name(f"{folder.name}.adapter"))
            model = model.merge_and_unload()
        if state is None:
            model.to(dtype).save_pretrained(made)
        else:
            model.save_pretrained(made, state_dict={name: tensor.to(dtype) for name, tensor in state.items()})
        copy_companions(base, made, dtype=params.dtype)
        yield made
    accelerator.wait_for_everyone()


def _sharded(trainer: Any) -> bool:
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def _write_adapter(model: Any, folder: Path) -> None:
    """Write the adapter alone, without the path of its base on this machine."""
    if (folder / "adapter_config.json").is_file():
        shutil.rmtree(folder)  # of a process that was killed right after it
    with whole_folder(folder) as made:
        model.save_pretrained(made)
        (made / "README.md").unlink(missing_ok=True)
        file = made / "adapter_config.json"
        config = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": None}
        file.write_text(_json(config), encoding="utf-8")


def _free(trainer: Any) -> None:
    import torch

    trainer.accelerator.free_memory()
    trainer.model = trainer.model_wrapped = trainer.optimizer = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _told(params: DistillParams, recipe: Mapping[str, object]) -> dict[str, object]:
    return {"kind": "distill", "params": asdict(params), **_versions(), **recipe}


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("fuseval", "torch", "transformers", "trl")}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def _number(value: object, low: float, high: float) -> bool:
    """Tell whether the value is a number in [low, high]; true, false and NaN are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _whole(value: object, low: int) -> bool:
    return isinstance(value, int) and _number(value, low, math.inf)


def _positive(value: object) -> bool:
    return _number(value, 0, math.inf) and value not in (0, math.inf)


_ALLOWED: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "lm_weight": (lambda value: _number(value, 0, 1), "a number in [0, 1]"),
    "loss": (lambda value: value in KINDS, f"one of {', '.join(KINDS)}"),
    "tail_policy": (lambda value: value in TAIL_POLICIES, f"one of {', '.join(TAIL_POLICIES)}"),
    "temperature": (_positive, "a number above 0"),
    "adam_beta1": (lambda value: _number(value, 0, 1) and value != 1, "a number in [0, 1)"),
    "adam_beta2": (lambda value: _number(value, 0, 1) and value != 1, "a number in [0, 1)"),
    "max_grad_norm": (_positive, "a number above 0"),
    "lora_rank": (lambda value: value is None or _whole(value, 1), "a whole number, 1 or more, or nothing"),
    "lora_alpha": (lambda value: value is None or _positive(value), "a number above 0, or nothing"),
    "lora_targets": (
        lambda value: (
            value is None
            or (isinstance(value, tuple) and bool(value) and all(isinstance(name, str) and name for name in value))
        ),
        "a list of layers' names, or nothing",
    ),
    "checkpoint_every": (lambda value: _whole(value, 0), "a whole number, 0 or more"),
}
