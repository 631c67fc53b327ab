"""The better of the last two checkpoints: by examples that were not learnt, and it is what is written."""

from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fusion.errors import RecipeError
from fusion.prefer import PreferParams, PreferStep, prefer
from fusion.prefer_choice import Choice, HeldOut, choose, hold_out, read_choice
from fusion.preference_records import Pair
from tests.fusion.test_prefer import QUICK, pairs
from tests.fusion.tiny_models import model_folder

BEST = dataclasses.replace(QUICK, choose="best", held_out=0.4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("tiny") / "base")


def test_no_prompt_is_learnt_and_held_out_and_the_draw_is_the_examples_own():
    kept, held = hold_out(pairs(10), share=0.25, seed=0)
    assert len(held) == 3 and {e.prompt.id for e in kept} | {e.prompt.id for e in held} == set("0123456789")
    again = hold_out(list(reversed(pairs(10))), share=0.25, seed=0)[1]
    assert {e.prompt.id for e in again} == {e.prompt.id for e in held}
    assert {e.prompt.id for e in hold_out(pairs(10), share=0.25, seed=1)[1]} != {e.prompt.id for e in held}
    with pytest.raises(RecipeError, match="leaves none of 1 prompts"):
        hold_out(pairs(1), share=0.1, seed=0)


def alike(count: int = 8) -> list[Pair]:
    """Pairs of as many prompts that say the same, so that what is learnt of some is right for all."""
    first = pairs(1)[0]
    return [dataclasses.replace(first, prompt=dataclasses.replace(first.prompt, id=str(n))) for n in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize(("examples", "better"), [(pairs(), 2), (alike(), 4)])  # random texts teach nothing of others
def test_the_better_of_the_last_two_is_written_and_told(base, tmp_path, examples, better):
    folder, seen = tmp_path / "made", {}

    def look(step: PreferStep) -> None:
        seen.update(
            {file.parent.name: load_file(file) for file in folder.parent.glob("made.work/*/*/model.safetensors")}
        )

    steps = prefer(base, examples, folder, BEST, card="# made\n", on_step=look)
    choice = read_choice(folder)
    assert choice is not None and choice.examples == 4 and len(steps) == 4
    assert [one.step for one in choice.checkpoints] == [2, 4] and choice.step == better
    assert better == min(choice.checkpoints, key=lambda one: one.loss).step
    made, second = load_file(folder / "model.safetensors"), seen["checkpoint-2"]
    assert all(torch.equal(made[name], second[name]) for name in made) == (better == 2)
    assert choice.told() in (folder / "README.md").read_text()
    assert json.loads((folder / "training.json").read_text())["examples"] == 4
    assert not (tmp_path / "made.work").exists()


def test_a_checkpoint_that_diverged_is_never_the_better_one(tmp_path):
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "whole").touch()
    losses = iter([0.5, float("nan")])
    trainer = types.SimpleNamespace(
        is_fsdp_enabled=False,
        model=None,
        _load_from_checkpoint=lambda *_, **__: None,
        held_out=lambda _: (next(losses), 0.5, 0.0),
    )
    assert choose(trainer, tmp_path, []).step == 2


def test_a_card_says_what_was_chosen_and_by_what():
    told = Choice(3, (HeldOut(2, 0.5, 1.0, 0.2), HeldOut(4, 0.4, 1.0, 0.3)), 4).told()
    assert "step 4, chosen by 3 held-out examples" in told and "step 2: loss 0.5000, accuracy 100.0 %" in told


@pytest.mark.parametrize(
    ("given", "message"),
    [({"choose": "first"}, "last or best"), ({"held_out": 0.1}, "choose: best"),
     ({"choose": "best", "held_out": 1.0}, r"\(0, 1\)"), ({"choose": "best", "checkpoint_every": 0}, "raise it")],
)  # fmt: skip
def test_choices_that_make_no_sense_are_refused(given, message):
    with pytest.raises(RecipeError, match=message):
        PreferParams(**given)
