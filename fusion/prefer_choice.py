"""The better of a training's last two checkpoints, by examples that it never saw.

FuseChat-3.0 (arXiv:2503.04222) takes the better of the last two and does not say by what; here it is the one whose loss
on held-out examples is lower.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fusion.errors import RecipeError
from fusion.prefer_lessons import Examples
from fusion.training_resume import step_of, whole_checkpoints

CHOICES = ("last", "best")
HELD_OUT = 0.05
"""The share of the prompts that is held out, where none is given."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a checkpoint makes of the held-out examples; means over them, as in fusion.prefer_trainer's steps."""

    step: int
    loss: float
    accuracy: float
    margin: float


@dataclass(frozen=True, slots=True)
class Choice:
    """Which checkpoint was taken; ``examples`` that were held out decided."""

    examples: int
    checkpoints: tuple[HeldOut, ...]  # one or two, in the order of their steps
    step: int

    def told(self) -> str:
        """Return it as a paragraph of a model card."""
        each = "; ".join(
            f"step {one.step}: loss {one.loss:.4f}, accuracy {100 * one.accuracy:.1f} %, margin {one.margin:.4f}"
            for one in self.checkpoints
        )
        return f"Checkpoint of step {self.step}, chosen by {self.examples} held-out examples ({each}).\n"


def hold_out(examples: Examples, *, share: float, seed: int) -> tuple[Examples, Examples]:
    """Return the examples to train on and those to choose by, which are of other prompts; RecipeError if none is left.

    The same prompts are held out whatever the order of the examples.
    """

    def drawn(prompt: str) -> bytes:
        return hashlib.sha256(f"{seed} {prompt}".encode()).digest()

    prompts = sorted({example.prompt.id for example in examples}, key=drawn)
    count = math.ceil(share * len(prompts))
    if count >= len(prompts):
        raise RecipeError(
            f"held_out is {share}, which leaves none of {len(prompts)} prompts to train on; lower it, or choose: last"
        )
    out = set(prompts[:count])
    kept: Any = [example for example in examples if example.prompt.id not in out]
    held: Any = [example for example in examples if example.prompt.id in out]
    return kept, held


def choose(trainer: Any, work: Path, lessons: Sequence[dict[str, Any]]) -> Choice:
    """Measure the last two checkpoints in ``work``; leave the trainer with the better one, of equal ones the last."""
    measured = []
    folders = whole_checkpoints(work)[-2:]
    for folder in folders:
        _load(trainer, folder)
        measured.append(HeldOut(step_of(folder), *trainer.held_out(lessons)))
    best = min(reversed(measured), key=lambda one: (math.isnan(one.loss), one.loss))
    if best is not measured[-1]:
        _load(trainer, folders[measured.index(best)])
    return Choice(len(lessons), tuple(measured), best.step)


def _load(trainer: Any, checkpoint: Path) -> None:
    """Load weights as transformers does where it loads the best model at the end of a training."""
    model = trainer.model_wrapped if trainer.is_fsdp_enabled else trainer.model
    trainer._load_from_checkpoint(str(checkpoint), model=model)


def read_choice(folder: Path) -> Choice | None:
    """Return how the model in ``folder`` was chosen, or None where it is what the last step left."""
    told = json.loads((folder / "training.json").read_text(encoding="utf-8")).get("choice")
    if told is None:
        return None
    return Choice(told["examples"], tuple(HeldOut(**one) for one in told["checkpoints"]), told["step"])


def as_json_value(choice: Choice | None) -> dict[str, Any]:
    """Return what training.json has of it."""
    return {} if choice is None else {"choice": asdict(choice)}
