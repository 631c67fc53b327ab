"""A work folder whose checkpoints a killed training goes on from, and the steps that it tells."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fusion.errors import FusionError

if TYPE_CHECKING:
    from fusion.sft import Step

S = TypeVar("S", bound="Step")

_WHOLE = "whole"  # a file in a checkpoint that was written to its end


def claim_work(work: Path, key: str, *, resume: bool = True) -> None:
    """Make the work folder of the training that ``key`` stands for; it loses the checkpoints of another one."""
    known = work / "key.txt"
    if work.exists() and not (resume and known.is_file() and known.read_text(encoding="utf-8") == key):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    known.write_text(key, encoding="utf-8")


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint in ``folder`` that was written to its end."""
    return next(reversed(whole_checkpoints(folder)), None)


def whole_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in ``folder`` that were written to their end, the newest last."""
    return sorted((path.parent for path in folder.glob(f"checkpoint-*/{_WHOLE}")), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return after which step a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def watch(
    trainer: Any,
    heard: list[S],
    on_step: Callable[[S], None] | None,
    make: Callable[[Mapping[str, Any], int, int], S],
    *,
    keep: int = 1,
) -> Any:
    """Return a callback that fills ``heard`` with the steps that ``make`` makes of (log, step, total).

    The newest ``keep`` checkpoints stay; of more than one, the last is that of the last step.
    """
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        """Turns the trainer's log into steps, and keeps whole checkpoints."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            heard[:] = [make(logs, logs["step"], state.max_steps) for logs in state.log_history if "loss" in logs]
            if heard:  # trl begins to count anew
                trainer._total_train_tokens = heard[-1].tokens

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            if state.global_step >= state.max_steps:
                control.should_save = keep > 1  # else the result itself is about to be written

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
            if not logs or "loss" not in logs:
                return  # the summary at the end
            step = make(logs, state.global_step, state.max_steps)
            if not math.isfinite(step.loss):
                raise FusionError(
                    f"the loss is {step.loss} at step {step.step}; lower learning_rate (now {step.learning_rate})"
                )
            heard.append(step)
            if on_step is not None:
                on_step(step)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            trainer.accelerator.wait_for_everyone()  # each process writes a part
            if not state.is_world_process_zero:
                return
            newest = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (newest / _WHOLE).touch()
            kept = whole_checkpoints(newest.parent)[-keep:]
            for folder in newest.parent.glob("checkpoint-*"):
                if folder not in kept:
                    shutil.rmtree(folder)

    return Watch()
