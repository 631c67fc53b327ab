from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fusion.checkpoints import content_hash
from fusion.errors import CheckpointError, FusionError, RecipeError
from fusion.publish import merge_to_folder
from fusion.recipe import MergeRecipe
from fusion.sft import SftParams, Step, fine_tune, read_steps

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def lines(path: Path, *values: object) -> Path:
    path.write_text("".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in values), encoding="utf-8")
    return path


def messages(*turns: tuple[object, object]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("learning_rate", 0, "a number above 0"),
        ("learning_rate", "1e-5", "a number above 0"),
        ("epochs", float("nan"), "a number above 0"),
        ("batch_size", 0, "a whole number, 1 or more"),
        ("batch_size", 1.5, "a whole number, 1 or more"),
        ("max_length", True, "a whole number, 1 or more"),
        ("warmup_ratio", 1, "a number in [0, 1)"),
        ("scheduler", "cosin", "one of constant, constant_with_warmup, cosine, linear"),
        ("dtype", "int8", "bfloat16 or float32"),
        ("seed", -1, "a whole number from 0"),
        ("gradient_checkpointing", 1, "true or false"),
    ],
)
def test_a_wrong_parameter_is_told_what_it_must_be(field: str, value: object, wanted: str):
    with pytest.raises(RecipeError) as error:
        SftParams(**{field: value})  # type: ignore[arg-type]
    assert f"{field} of the fine-tuning is {value!r}; it must be {wanted}" in str(error.value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("5e-6", " (YAML needs 5.0e-6 for a number)"),
        ("1E5", " (YAML needs 1.0e+5 for a number)"),
        ("1.5e-5", " (YAML needs 1.5e-5 for a number)"),
        ("0.1", " (written without quotes)"),
        ("fast", ""),
    ],
)
def test_a_number_that_yaml_took_for_text_is_told_how_to_write_it(text: str, hint: str):
    with pytest.raises(RecipeError) as error:
        SftParams(learning_rate=text)  # type: ignore[arg-type]
    assert str(error.value).endswith(f"is {text!r}; it must be a number above 0{hint}")


def test_packages_that_are_not_installed_are_named_with_the_extra_that_brings_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(FusionError, match=r"this needs trl, not installed here: pip install 'fuseval\[train\]'"):
        fine_tune(tmp_path, tmp_path, tmp_path / "out", SftParams(), on_step=None, recipe={}, card="")


def test_bad_data_and_a_bad_model_are_found_before_anything_is_loaded(tmp_path: Path):
    good, bad = lines(tmp_path / "good.jsonl", GOOD), lines(tmp_path / "bad.jsonl", "{")
    for data, error in ((bad, RecipeError), (good, CheckpointError)):
        with pytest.raises(error):
            fine_tune(tmp_path / "no", data, tmp_path / "out", SftParams(), on_step=None, recipe={}, card="")
    assert not (tmp_path / "out").exists()


TRAIN = """
import sys
from pathlib import Path
from fusion.sft import SftParams, fine_tune
base, data, folder = map(Path, sys.argv[1:])
fine_tune(base, data, folder, SftParams(learning_rate=1e-4, epochs=1, max_length=60, warmup_ratio=0), on_step=None,
          recipe={"title": "t"}, card="# t")
from huggingface_hub.utils import _telemetry
assert _telemetry._TELEMETRY_THREAD is None
"""


@pytest.mark.slow
def test_three_steps_lower_the_loss_and_the_result_merges_and_talks(smollm2: Path, tmp_path: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sums = [messages(("user", f"{a}+{b}?"), ("assistant", f"{a}+{b}={a + b}. Done!")) for a in range(6) for b in (1, 2)]
    too_long = messages(("user", "word " * 100), ("assistant", "yes"))
    cut = messages(("user", "Count."), ("assistant", "one two three " * 40))
    data = lines(tmp_path / "data.jsonl", *sums[:10], cut, too_long, sums[11])
    heard: list[Step] = []
    params = SftParams(learning_rate=1e-4, epochs=1, max_length=60, warmup_ratio=0)
    steps = fine_tune(
        smollm2, data, tmp_path / "tuned", params, on_step=heard.append, recipe={"title": "t"}, card="# t"
    )
    assert [step.step for step in steps] == [1, 2, 3]
    assert steps == tuple(heard) == read_steps(tmp_path / "tuned")
    assert steps[-1].loss < steps[0].loss
    training = json.loads((tmp_path / "tuned/training.json").read_text())
    assert (training["conversations"], training["cut"], training["left_out"]) == (13, 1, 1)

    # Again, in a process of its own: the same bytes, and not a word on the terminal.
    command = [sys.executable, "-c", TRAIN, smollm2, data, tmp_path / "again"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert content_hash(tmp_path / "again") == content_hash(tmp_path / "tuned") != content_hash(smollm2)

    sources = (tmp_path / "tuned", smollm2)
    merge_to_folder(MergeRecipe("sce", smollm2, sources, {"select_topk": 0.1}), tmp_path / "merged", title="m")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    assert "Paris" in tokenizer.decode(model.generate(**ids, max_new_tokens=5, do_sample=False)[0])
