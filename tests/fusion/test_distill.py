from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion.checkpoints import content_hash
from fusion.distill import DistillParams, DistillStep, distill, read_steps
from fusion.errors import CheckpointError, RecipeError
from fusion.sparse import Sparse
from fusion.target_shards import TargetRow, read_targets, write_targets
from tests.fusion.tiny_models import conversations, model_folder

K = 5
QUICK = DistillParams(learning_rate=1e-3, epochs=2, batch_size=3, warmup_ratio=0, dtype="float32", checkpoint_every=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="module")
def targets(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(base, tmp_path_factory.mktemp("targets") / "targets", count=8)


def write(base: Path, folder: Path, *, count: int) -> Path:
    """Random targets on the second half of some chats' tokens, the next token among them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    draw = np.random.default_rng(0)

    def row(chat: str) -> TargetRow:
        ids = np.array(tokenizer.apply_chat_template(conversations(count)[int(chat)])["input_ids"], np.int32)
        supervised = np.arange(len(ids)) >= len(ids) // 2
        supervised[-1] = False
        top = np.stack([draw.permutation(len(tokenizer))[:K] for _ in ids]).astype(np.int32)
        fresh = (top[:-1] != ids[1:, None]).all(axis=1)
        top[:-1][fresh, 0] = ids[1:][fresh]
        probs = draw.dirichlet(np.ones(K + 1), len(ids)).astype(np.float32)
        return TargetRow(chat, ids, supervised, Sparse(top, probs[:, :K], 1 - probs[:, :K].sum(axis=1)))

    write_targets(folder, [str(number) for number in range(count)], row, k=K, settings={})
    return folder


def plain_sft(base: Path, targets: Path, folder: Path, params: DistillParams) -> list[float]:
    """The same training by trl's own trainer, collator and loss; return its losses."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
    from trl import SFTConfig, SFTTrainer

    rows = []
    for row in read_targets(targets):
        labels = np.full(len(row.ids), -100)
        labels[1:][row.supervised[:-1]] = row.ids[1:][row.supervised[:-1]]
        rows.append({"input_ids": row.ids.tolist(), "labels": labels.tolist()})
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        args=SFTConfig(
            output_dir=str(folder / "work"),
            learning_rate=params.learning_rate,
            num_train_epochs=params.epochs,
            per_device_train_batch_size=params.batch_size,
            gradient_accumulation_steps=params.gradient_accumulation,
            max_length=None,
            lr_scheduler_type=params.scheduler,
            seed=params.seed,
            data_seed=params.seed,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            dataloader_pin_memory=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.model.save_pretrained(folder)
    return [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def run(base: Path, targets: Path, folder: Path, params: DistillParams = QUICK) -> tuple[DistillStep, ...]:
    return distill(base, targets, folder, params)


@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_with_lambda_1_it_is_plain_fine_tuning_to_the_last_bit(
    base: Path, targets: Path, tmp_path: Path, accumulation: int
):
    params = dataclasses.replace(QUICK, lm_weight=1, gradient_accumulation=accumulation)
    steps = run(base, targets, tmp_path / "ours", params)
    losses = plain_sft(base, targets, tmp_path / "plain", params)
    assert [step.loss for step in steps] == losses == [step.clm for step in steps]
    assert {step.fusion for step in steps} == {None}
    ours, plain = tensors(tmp_path / "ours"), tensors(tmp_path / "plain")
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
    assert content_hash(tmp_path / "ours") != content_hash(base)


@pytest.mark.slow
def test_both_terms_are_what_a_dense_target_gives_and_both_fall(base: Path, targets: Path, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    params = dataclasses.replace(QUICK, lm_weight=0.3, batch_size=8, epochs=10, warmup_ratio=0)
    steps = run(base, targets, tmp_path / "out", params)
    model = AutoModelForCausalLM.from_pretrained(base)
    clm, fusion = [], []
    for row in read_targets(targets):
        with torch.no_grad():
            log_q = model(torch.tensor(row.ids[None]).long()).logits[0].log_softmax(-1)
        for t in np.flatnonzero(row.supervised):
            target = torch.zeros(log_q.shape[1])
            target[torch.tensor(row.sparse.ids[t]).long()] = torch.tensor(row.sparse.probs[t])
            clm.append(-log_q[t, row.ids[t + 1]].item())
            fusion.append(-(target / target.sum() * log_q[t]).sum().item())
    assert steps[0].clm == pytest.approx(np.mean(clm), rel=1e-4)
    assert steps[0].fusion == pytest.approx(np.mean(fusion), rel=1e-4)
    for step in steps:
        assert step.loss == pytest.approx(0.3 * step.clm + 0.7 * step.fusion, rel=1e-5)
    assert steps[-1].clm < steps[0].clm and steps[-1].fusion < steps[0].fusion
    assert steps == read_steps(tmp_path / "out")
    assert steps[0].tokens == sum(len(row.ids) for row in read_targets(targets))


@pytest.mark.slow
def test_parts_of_a_batch_are_the_batch(base: Path, targets: Path, tmp_path: Path):
    whole = dataclasses.replace(QUICK, batch_size=4)
    parts = dataclasses.replace(QUICK, batch_size=2, gradient_accumulation=2)
    for a, b in zip(run(base, targets, tmp_path / "a", whole), run(base, targets, tmp_path / "b", parts), strict=True):
        assert (a.clm, a.fusion, a.loss) == pytest.approx((b.clm, b.fusion, b.loss), rel=1e-4)
        assert (a.step, a.total, a.tokens) == (b.step, b.total, b.tokens)


@pytest.mark.slow
def test_a_killed_training_goes_on_and_gives_the_same_bytes(base: Path, targets: Path, tmp_path: Path):
    whole = run(base, targets, tmp_path / "whole")
    assert len(whole) == 6

    def die(step: DistillStep) -> None:
        if step.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(base, targets, tmp_path / "killed", QUICK, on_step=die)
    assert not (tmp_path / "killed").exists()
    (tmp_path / "killed.work/training/checkpoint-5").mkdir()  # begun, and not whole
    heard: list[DistillStep] = []
    steps = distill(base, targets, tmp_path / "killed", QUICK, on_step=heard.append)
    assert steps == whole and heard == list(whole[4:])
    assert content_hash(tmp_path / "killed") == content_hash(tmp_path / "whole")
    assert (tmp_path / "killed/training.json").read_bytes() == (tmp_path / "whole/training.json").read_bytes()
    assert not (tmp_path / "killed.work/training").exists()


@pytest.mark.slow
def test_checkpoints_of_another_training_are_not_gone_on_from(base: Path, targets: Path, tmp_path: Path):
    def die(step: DistillStep) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(base, targets, tmp_path / "out", QUICK, on_step=die)
    other = dataclasses.replace(QUICK, lm_weight=0.5)
    heard: list[DistillStep] = []
    distill(base, targets, tmp_path / "out", other, on_step=heard.append)
    assert heard[0].step == 1


@pytest.mark.slow
def test_an_adapter_is_merged_into_the_model_and_kept_beside_it(base: Path, targets: Path, tmp_path: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    params = dataclasses.replace(QUICK, lora_rank=4, lora_targets=("q_proj", "v_proj"))
    steps = run(base, targets, tmp_path / "out", params)
    config = json.loads((tmp_path / "out.adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8, None)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out.adapter")
    theirs = adapted.merge_and_unload().state_dict()
    before, after = tensors(base), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, theirs[name])
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj"}
    assert steps[-1].loss < steps[0].loss


@pytest.mark.slow
def test_the_checkpoint_has_the_bases_files_and_tells_what_it_is(base: Path, targets: Path, tmp_path: Path):
    params = dataclasses.replace(QUICK, max_length=30, epochs=1, dtype="bfloat16")
    distill(base, targets, tmp_path / "out", params, recipe={"title": "t"}, card="# t")
    training = json.loads((tmp_path / "out/training.json").read_text())
    lengths = [(len(row.ids), int(np.flatnonzero(row.supervised)[0])) for row in read_targets(targets)]
    out = sum(first >= 29 for _, first in lengths)
    assert (training["conversations"], training["left_out"]) == (8, out)
    assert training["cut"] == sum(n > 30 and first < 29 for n, first in lengths) > 0
    recipe = json.loads((tmp_path / "out/recipe.json").read_text())
    assert (recipe["kind"], recipe["title"], recipe["params"]["max_length"]) == ("distill", "t", 30)
    assert (tmp_path / "out/README.md").read_text() == "# t"
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert {tensor.dtype for tensor in tensors(tmp_path / "out").values()} == {torch.bfloat16}


def test_nothing_is_overwritten_and_tokens_of_another_model_are_refused(base: Path, targets: Path, tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(CheckpointError, match="exists already"):
        run(base, targets, tmp_path / "full")
    small = tmp_path / "small"
    shutil.copytree(base, small)
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(RecipeError, match="is not in the model's vocabulary of 100; make the targets"):
        run(small, targets, tmp_path / "out")
    with pytest.raises(RecipeError, match="max_length is 3: none of the 8 conversations has something to learn"):
        run(base, targets, tmp_path / "out", DistillParams(max_length=3))


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("lm_weight", 1.5, "of the distillation is 1.5; it must be a number in [0, 1]"),
        ("lm_weight", True, "a number in [0, 1]"),
        ("loss", "mse", "one of ce, kl, reverse_kl, jsd"),
        ("tail_policy", "keep", "one of renormalise, bucket, drop"),
        ("temperature", 0, "a number above 0"),
        ("adam_beta2", 1.0, "a number in [0, 1)"),
        ("max_grad_norm", float("nan"), "a number above 0"),
        ("lora_rank", 0, "a whole number, 1 or more, or nothing"),
        ("lora_targets", "q_proj", "a list of layers' names, or nothing"),
        ("checkpoint_every", -1, "a whole number, 0 or more"),
        ("learning_rate", 0, "of the fine-tuning is 0; it must be a number above 0"),
    ],
)
def test_a_wrong_parameter_is_told_what_it_must_be(field: str, value: object, wanted: str):
    with pytest.raises(RecipeError) as error:
        DistillParams(**{field: value})  # type: ignore[arg-type]
    assert str(error.value).startswith(field) and wanted in str(error.value)


def test_the_defaults_are_fusechats():
    params = DistillParams()
    assert (params.lm_weight, params.loss, params.temperature, params.tail_policy) == (0.9, "ce", 1.0, "renormalise")
    assert (params.learning_rate, params.epochs, params.scheduler) == (5e-6, 3, "cosine")
    assert (params.warmup_ratio, params.weight_decay, params.max_grad_norm) == (0.03, 0, 1)
    assert (params.adam_beta1, params.adam_beta2, params.max_length) == (0.9, 0.999, 2048)


TRAIN = """
import sys
from pathlib import Path
from fusion.distill import DistillParams, distill
base, targets, folder = map(Path, sys.argv[1:])
distill(base, targets, folder, DistillParams(learning_rate=1e-3, epochs=1, batch_size=2, warmup_ratio=0,
        dtype="float32", checkpoint_every=1))
"""


@pytest.mark.slow
def test_two_processes_train_as_one_does_with_the_double_batch(base: Path, targets: Path, tmp_path: Path):
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29611", script]
    subprocess.run([*command, base, targets, tmp_path / "two"], check=True, capture_output=True, text=True)
    params = dataclasses.replace(QUICK, batch_size=4, epochs=1)
    one = run(base, targets, tmp_path / "one", params)
    two = read_steps(tmp_path / "two")
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        assert (a.clm, a.fusion, a.loss) == pytest.approx((b.clm, b.fusion, b.loss), rel=1e-4)
        assert a.tokens == b.tokens
    theirs = tensors(tmp_path / "two")
    for name, tensor in tensors(tmp_path / "one").items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4)
