"""The examples say what this version understands, with the hyper-parameters that were published."""

from pathlib import Path

import pytest
import yaml

from fuseval.ablation_file import load_ablation
from fuseval.experiment import Experiment
from fuseval.launching import processes_of
from fuseval.searching import all_points
from fuseval.training import target_params

EXAMPLES = Path(__file__).parents[2] / "examples"
# FuseChat-3.0, arXiv:2503.04222: SFT's learning rate; DPO's, its beta, and whether it is length-normalised.
FUSECHAT3 = {
    "llama-3.1-8b": (5e-6, 8e-7, 10.0, "ln_dpo"),
    "qwen2.5-7b": (2e-6, 3e-7, 0.01, "dpo"),
    "gemma-2-9b": (2e-6, 5e-7, 0.01, "dpo"),
    "llama-3.2-3b": (5e-6, 1e-6, 10.0, "ln_dpo"),
    "llama-3.2-1b": (5e-6, 1e-6, 10.0, "ln_dpo"),
}


def experiment(name: str) -> Experiment:
    return Experiment.model_validate(yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "file", sorted(p.name for p in EXAMPLES.glob("*.yaml") if not p.name.startswith(("merge", "ablation")))
)
def test_an_example_is_an_experiment(file):
    read = experiment(file)
    names = [model.name for model in read.models]
    for target in read.fusion.targets:
        target_params(target)
        rewards = [name for name in (target.reward.model, target.reward.judge) if name]
        assert {target.base, *target.sources, *rewards} <= set(names)
        names.append(target.name)
    for merge in read.fusion.merges:
        assert {merge.base, *merge.sources} <= set(names)


def test_the_ablation_is_twelve_merges_three_methods_of_four_values(smollm2_gguf):
    assert smollm2_gguf.exists()
    read = load_ablation(EXAMPLES / "ablation.yaml")
    points = list(all_points(read.space))
    assert len(points) == 12
    assert {point["method"] for point in points} == {"linear", "ties", "sce"}


def test_the_cluster_has_engines_for_the_candidates_and_for_the_judge():
    read = experiment("cluster/experiment.yaml")
    judge = next(model.engine for model in read.models if model.engine)
    gpus = [engine.spread().replicas * engine.settings().tensor_parallel for engine in (read.engine, judge)]
    job = yaml.safe_load((EXAMPLES / "cluster/kuberay.yaml").read_text(encoding="utf-8"))
    [group] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    assert (job["kind"], gpus) == ("RayJob", [8, 8])
    assert group["replicas"] * container["resources"]["limits"]["nvidia.com/gpu"] == sum(gpus)


@pytest.mark.parametrize("target", FUSECHAT3)
def test_fusechat_3_has_its_published_hyper_parameters(target):
    read = experiment(f"fusechat-3.0-{target}.yaml")
    [fused] = read.fusion.targets
    params = target_params(fused)
    found = (params.sft.learning_rate, params.preference.learning_rate, params.preference.beta, params.preference.kind)
    assert found == FUSECHAT3[target]
    assert (params.sft.epochs, params.preference.epochs, params.preference.max_length) == (3, 1, 2048)
    assert (params.pairs.sft_share, params.pairs.min_gap, params.pairs.max_gap) == (0.4, 0.01, 0.1)
    processes = processes_of(read.accelerate, beside=EXAMPLES)
    assert params.preference.batch_size * params.preference.gradient_accumulation * processes == 128
    assert params.sft.batch_size * params.sft.gradient_accumulation * processes == 128
    assert (params.preference.choose, params.preference.checkpoint_every) == ("best", 100)


def test_wrpo_has_its_published_hyper_parameters():
    read = experiment("wrpo.yaml")
    [target] = read.fusion.targets
    params = target_params(target)
    preference = params.preference
    assert (preference.kind, preference.alpha, preference.beta, preference.learning_rate) == ("wrpo", 0.1, 0.01, 3e-7)
    assert params.sft.learning_rate == 7e-6 and params.sft.epochs == 1
    assert params.pairs.sft_share == pytest.approx(1 / 3) and params.pairs.gap_kinds == () and len(target.sources) == 10
    batch = preference.batch_size * preference.gradient_accumulation
    assert batch * processes_of(read.accelerate, beside=EXAMPLES) == 128


@pytest.mark.parametrize("target", FUSECHAT3)
def test_fusechat_3_samples_as_published(target):
    [fused] = experiment(f"fusechat-3.0-{target}.yaml").fusion.targets
    samples = {draw.source: draw.samples for draw in fused.draws}
    assert samples.pop("qwen2.5-72b") == {"code": 8, "language": 1}
    assert list(samples.values()) == [{"code": 8, "language": 0}] * 3
