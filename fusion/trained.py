"""A trained model: the adapter that it may be trained by, and how it becomes a checkpoint."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion.checkpoints import copy_companions, whole_folder
from fusion.training_arguments import as_json

if TYPE_CHECKING:
    from fusion.training_params import TrainingParams


def lora_config(params: TrainingParams) -> Any:
    """Return peft's configuration of the adapter, or None where all weights are trained."""
    if params.lora_rank is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=params.lora_rank,
        lora_alpha=params.lora_alpha if params.lora_alpha is not None else 2 * params.lora_rank,
        target_modules=list(params.lora_targets) if params.lora_targets else "all-linear",
        task_type="CAUSAL_LM",
    )


@contextmanager
def written(trainer: Any, folder: Path, base: Path, *, dtype: str, adapter: bool = False) -> Iterator[Path | None]:
    """Give the main process a folder that holds the trained model and takes its name at the end; the others None."""
    import torch

    accelerator, stored = trainer.accelerator, getattr(torch, dtype)
    state = accelerator.get_state_dict(trainer.model_wrapped) if sharded(trainer) else None  # all give their part
    model = accelerator.unwrap_model(trainer.model)
    if not accelerator.is_main_process:
        yield None
        accelerator.wait_for_everyone()
        return
    with ExitStack() as whole:
        made = whole.enter_context(whole_folder(folder))
        if adapter:
            _write_adapter(model, folder.with_name(f"{folder.name}.adapter"))
            model = model.merge_and_unload()
        if state is None:
            model.to(stored).save_pretrained(made)
        else:
            model.save_pretrained(made, state_dict={name: tensor.to(stored) for name, tensor in state.items()})
        copy_companions(base, made, dtype=dtype)
        yield made
    accelerator.wait_for_everyone()


def sharded(trainer: Any) -> bool:
    """Tell whether no process has the whole model."""
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
        file.write_text(as_json(config), encoding="utf-8")


def free(trainer: Any) -> None:
    """Give the memory of a training back."""
    import torch

    trainer.accelerator.free_memory()
    trainer.model = trainer.model_wrapped = trainer.optimizer = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
