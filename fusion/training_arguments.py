"""What every training here tells trl, and what it writes about itself."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusion.sft import SftParams


def training_arguments(params: SftParams, work: Path, *, checkpoint_every: int, **more: Any) -> Any:
    """Return the SFTConfig of a training in the folder ``work``; 0 ``checkpoint_every``: nothing is kept meanwhile.

    On a CPU all is float32, on a GPU the arithmetic is bfloat16 and the weights float32.
    """
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
        warmup_steps=params.warmup_ratio,  # below 1 it is a share
        lr_scheduler_type=params.scheduler,
        weight_decay=params.weight_decay,
        seed=params.seed,
        data_seed=params.seed,
        gradient_checkpointing=params.gradient_checkpointing,
        use_cpu=not gpu,
        bf16=gpu,  # three times slower than float32 on a CPU without AMX
        dataloader_pin_memory=gpu,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps" if checkpoint_every else "no",
        save_steps=max(1, checkpoint_every),
        report_to=[],
        disable_tqdm=True,
        **more,
    )


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide what a training gives."""
    return {name: importlib.metadata.version(name) for name in ("fuseval", "torch", "transformers", "trl")}


def as_json(value: object) -> str:
    """Return the text of a JSON file."""
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"
