"""Preference training: it starts from the reference, lowers the loss, goes on where it was killed, and WRPO is DPO."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from fusion.checkpoints import content_hash
from fusion.errors import CheckpointError, FusionError, RecipeError
from fusion.prefer import PreferParams, PreferStep, prefer, read_steps
from fusion.prefer_lessons import PAIR, PreferCollator, add_reference, lessons_of
from fusion.preference_records import Pair, Prompt, Quadruple, Response
from tests.fusion.tiny_models import conversations, model_folder

QUICK = PreferParams(learning_rate=1e-3, epochs=2, batch_size=3, dtype="float32", checkpoint_every=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("tiny") / "base")


def said(text: str, sample: int) -> Response:
    return Response("p", "s", sample, text, 1.0 - sample / 10)


def quadruples(count: int = 8) -> list[Quadruple]:
    texts = [chat[-1]["content"] for chat in conversations(4 * count)]
    return [
        Quadruple(Prompt(str(n), [{"role": "user", "content": texts[n]}], "chat"),
                  said(texts[n + count], 0), said(texts[n + 2 * count], 1), said(texts[n + 3 * count], 2), 0.1)
        for n in range(count)
    ]  # fmt: skip


def pairs(count: int = 8) -> list[Pair]:
    return [Pair(q.prompt, q.target_best, q.rejected, q.gap) for q in quadruples(count)]


def trained(base: Path, folder: Path, params: PreferParams, examples=None) -> tuple[PreferStep, ...]:
    return prefer(base, examples or (quadruples() if params.kind == "wrpo" else pairs()), folder, params)


def changed(**values: object) -> PreferParams:
    fresh = {"beta": 0.0, "gamma": None, "alpha": None} if "kind" in values else {}
    return dataclasses.replace(QUICK, **{**fresh, **values})


def test_what_is_not_given_is_as_published():
    assert (QUICK.kind, QUICK.beta) == ("ln_dpo", 10.0)
    assert [changed(kind=kind).beta for kind in ("dpo", "wrpo", "simpo")] == [0.01, 0.01, 2.0]
    assert changed(kind="wrpo").alpha == 0.1 and changed(kind="simpo").gamma == 1.0


SLOW = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ln_dpo", "wrpo", pytest.param("dpo", marks=SLOW), pytest.param("simpo", marks=SLOW)])
def test_training_begins_at_the_reference_and_learns_the_preference(base, tmp_path, kind):
    steps = trained(base, tmp_path / "made", changed(kind=kind, epochs=6, beta=0.5 if kind != "ln_dpo" else 10.0))
    assert len(steps) == 18 and [step.step for step in steps] == list(range(1, 19))
    if kind != "simpo":
        assert steps[0].loss == pytest.approx(math.log(2), abs=1e-4)
        assert steps[0].margin == pytest.approx(0, abs=1e-4) and steps[0].kl == pytest.approx(0, abs=1e-5)
        assert abs(steps[-1].kl) > 1e-4
    assert steps[-1].loss < steps[0].loss and steps[-1].accuracy == 1
    assert steps[-1].chosen_reward > steps[-1].rejected_reward
    assert steps[-1].margin == pytest.approx(steps[-1].chosen_reward - steps[-1].rejected_reward, rel=1e-4)
    assert read_steps(tmp_path / "made") == steps
    assert not (tmp_path / "made.work").exists()
    recipe = json.loads((tmp_path / "made" / "recipe.json").read_text())
    assert recipe["params"]["kind"] == kind and recipe["trl"]


@SLOW
def test_wrpos_weight_of_the_source_rises_over_all_steps(base, tmp_path):
    steps = trained(base, tmp_path / "made", changed(kind="wrpo", alpha=0.6))
    assert [step.alpha for step in steps] == pytest.approx([0.6 * n / 6 for n in range(6)])
    for step in steps:
        mean = step.alpha * step.source_reward + (1 - step.alpha) * step.target_reward
        assert step.chosen_reward == pytest.approx(mean, abs=1e-5)


@SLOW
def test_wrpo_without_the_source_is_dpo(base, tmp_path):
    # A batch has the source's response too, whose rows change sums in their last digits.
    wrpo = trained(base, tmp_path / "wrpo", changed(kind="wrpo", alpha=0.0, beta=0.5))
    dpo = trained(base, tmp_path / "dpo", changed(kind="dpo", beta=0.5))
    assert [step.loss for step in wrpo] == pytest.approx([step.loss for step in dpo], abs=2e-5)
    assert [step.margin for step in wrpo] == pytest.approx([step.margin for step in dpo], abs=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ln_dpo", pytest.param("wrpo", marks=SLOW)])
def test_a_killed_training_goes_on_and_gives_the_same_bytes(base, tmp_path, kind):
    params = changed(kind=kind)
    whole = trained(base, tmp_path / "whole", params)

    def stop(step: PreferStep) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    examples = quadruples() if kind == "wrpo" else pairs()
    with pytest.raises(KeyboardInterrupt):
        prefer(base, examples, tmp_path / "killed", params, on_step=stop)
    assert not (tmp_path / "killed").exists()
    later: list[int] = []
    steps = prefer(base, examples, tmp_path / "killed", params, on_step=lambda step: later.append(step.step))
    assert later == [3, 4, 5, 6]
    assert steps == whole
    assert content_hash(tmp_path / "killed") == content_hash(tmp_path / "whole")


def test_the_reference_is_the_models_own_and_computed_once(base, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    lessons, kept = lessons_of(pairs(5), tokenizer, max_length=512)
    assert dataclasses.asdict(kept) == {"examples": 5, "left_out": 0}
    file = tmp_path / "reference-0.jsonl"
    add_reference(lessons, base, tmp_path, parts=PAIR, pad=3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    for lesson in lessons:
        for part, value in zip(PAIR, lesson["reference"], strict=True):
            ids, labels = (torch.tensor(lesson[f"{part}_{what}"]) for what in ("ids", "labels"))
            with torch.inference_mode():
                logprobs = model(ids[None]).logits[0, :-1].log_softmax(-1)
            counted = labels[1:] != -100
            expected = logprobs[counted].gather(1, ids[1:][counted][:, None]).sum().item()
            assert value == pytest.approx(expected, abs=1e-3)
    text = file.read_text()
    file.write_text(text[: text.rindex("\n", 0, -1) + 9])  # killed within the last line
    again = [{key: value for key, value in lesson.items() if key != "reference"} for lesson in lessons]
    add_reference(again, base, tmp_path, parts=PAIR, pad=3)
    assert [lesson["reference"] for lesson in again] == [pytest.approx(lesson["reference"]) for lesson in lessons]
    monkeypatch.setattr("fusion.prefer_lessons._Reference", lambda *_: pytest.fail("computed again"))
    add_reference(again, base, tmp_path, parts=PAIR, pad=3)


def test_only_the_response_counts_and_a_long_example_is_left_out_whole(base):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    [lesson], _ = lessons_of(pairs(1), tokenizer, max_length=512)
    counted = [
        token for token, label in zip(lesson["chosen_ids"], lesson["chosen_labels"], strict=True) if label != -100
    ]
    assert tokenizer.decode(counted) == f"{pairs(1)[0].chosen.text}<|im_end|>\n"
    every, _ = lessons_of(pairs(8), tokenizer, max_length=512)
    lengths = sorted(max(len(one["chosen_ids"]), len(one["rejected_ids"])) for one in every)
    lessons, kept = lessons_of(pairs(8), tokenizer, max_length=lengths[3])
    assert len(lessons) == 8 - kept.left_out == sum(length <= lengths[3] for length in lengths)
    with pytest.raises(RecipeError, match="max_length is 3: none of the 8 examples is that short"):
        lessons_of(pairs(8), tokenizer, max_length=3)


def test_a_batch_holds_its_parts_one_after_the_other(base):
    def lesson(chosen: list[int], rejected: list[int], *reference: float) -> dict[str, object]:
        labels = {"chosen_labels": [-100, *chosen[1:]], "rejected_labels": [-100, *rejected[1:]]}
        return {"chosen_ids": chosen, "rejected_ids": rejected, **labels, "reference": list(reference)}

    lessons = [lesson([1, 2], [1], -1.0, -2.0), lesson([4], [4, 5], -3.0, -4.0)]
    batch = PreferCollator(9, PAIR)(lessons)
    assert batch["input_ids"].tolist() == [[1, 2], [4, 9], [1, 9], [4, 5]]
    assert batch["labels"].tolist() == [[-100, 2], [-100, -100], [-100, -100], [-100, 5]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0], [1, 0], [1, 1]]
    assert batch["reference"].tolist() == [-1.0, -3.0, -2.0, -4.0]


@SLOW
def test_an_adapter_is_merged_into_the_model(base, tmp_path):
    steps = trained(base, tmp_path / "made", changed(lora_rank=2, epochs=1, learning_rate=1e-2))
    assert len(steps) == 3 and steps[0].loss == pytest.approx(math.log(2), abs=1e-4)
    assert (tmp_path / "made.adapter" / "adapter_config.json").is_file()
    assert content_hash(tmp_path / "made") != content_hash(base)


@SLOW
def test_accumulated_batches_are_one_batch(base, tmp_path):
    whole = trained(base, tmp_path / "whole", changed(batch_size=4, epochs=1))
    parts = trained(base, tmp_path / "parts", changed(batch_size=2, gradient_accumulation=2, epochs=1))
    assert [step.loss for step in parts] == pytest.approx([step.loss for step in whole], abs=1e-5)
    assert [step.margin for step in parts] == pytest.approx([step.margin for step in whole], abs=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"kind": "dppo"}, "Did you mean 'dpo'"), ({"beta": -1.0}, "beta"), ({"gamma": 1.0}, "only simpo"),
     ({"kind": "wrpo", "alpha": 2.0}, "alpha"), ({"learning_rate": 0.0}, "learning_rate"),
     ({"lora_rank": 0}, "lora_rank"), ({"label_smoothing": 0.5}, "label_smoothing")],
)  # fmt: skip
def test_parameters_that_make_no_sense_are_named(values, message):
    with pytest.raises(RecipeError, match=message):
        changed(**values)


def test_wrong_examples_and_a_folder_that_is_there_are_refused(base, tmp_path):
    with pytest.raises(RecipeError, match="wrpo learns from quadruples"):
        trained(base, tmp_path / "made", changed(kind="wrpo"), pairs())
    with pytest.raises(RecipeError, match="dpo learns from pairs"):
        trained(base, tmp_path / "made", changed(kind="dpo"), quadruples())
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "x").touch()
    with pytest.raises(CheckpointError, match="exists already"):
        trained(base, tmp_path / "made", QUICK)


@SLOW
def test_a_loss_that_is_no_number_stops_the_training(base, tmp_path):
    with pytest.raises(FusionError, match="lower learning_rate"):
        trained(base, tmp_path / "made", changed(learning_rate=1e30, epochs=4, max_grad_norm=1e30))
