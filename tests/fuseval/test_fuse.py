"""`fuseval fuse` as people call it, with tiny models of two tokenizers: the report before it, and kills in between."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest
import yaml
from typer.testing import CliRunner

from fuseval.cli import app
from fuseval.experiment import Experiment
from fuseval.models import resolve
from tests.fuseval.test_examples import EXAMPLES
from tests.fusion.tiny_models import conversations, model_folder

TRAINING = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 2, "checkpoint_every": 1, "dtype": "float32"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "mine": model_folder(folder / "mine"),
        "other": model_folder(folder / "other", size=450, unigram=True, seed=1),
    }


def write_experiment(folder: Path, models: dict[str, Path]) -> Path:
    """Two fusions, the second of which begins with what the first makes, and their merge."""
    folder.mkdir()
    chats = "".join(json.dumps({"messages": said}) + "\n" for said in conversations(24))
    (folder / "chats.jsonl").write_text(chats, encoding="utf-8")
    told = {"kind": "explicit", "sources": ["other"], "data": "chats.jsonl", "params": {"training": TRAINING}}
    experiment = {
        "models": [{"name": name, "path": str(path)} for name, path in models.items()],
        "fusion": {
            "targets": [{"name": "once", "base": "mine", **told}, {"name": "twice", "base": "once", **told}],
            "merges": [{"name": "both", "method": "linear", "base": "mine", "sources": ["once", "twice"]}],
        },
        "benchmarks": ["starter"],
    }
    (folder / "fuse.yaml").write_text(yaml.safe_dump(experiment))
    return folder


def fuse(folder: Path, *arguments: str) -> tuple[int, str, str]:
    with contextlib.chdir(folder):
        done = CliRunner(env={"FUSEVAL_CACHE": str(folder / "cache")}).invoke(app, ["fuse", "fuse.yaml", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def made(folder: Path) -> set[str]:
    """Return the names of the models that were written whole."""
    return {file.parent.name.rpartition("-")[0] for file in folder.glob("checkpoints/*/recipe.json")}


def test_a_dry_run_reports_how_tokens_align_and_makes_nothing(tmp_path: Path, models: dict[str, Path]):
    folder = write_experiment(tmp_path / "here", models)
    code, page, err = fuse(folder, "--dry-run")
    assert code == 0, err
    assert "# Alignment of `once`" in page and "one to many" in page and "floating-point operations" in page
    code, out, err = fuse(folder, "--dry-run", "--json")
    assert code == 0, err
    once, twice = json.loads(out)
    assert once["target"] == "once" and once["report"]["conversations"] == 24
    assert once["report"]["training"]["steps"] == 12
    assert twice["report"] is None and "once is made" in twice["why"]
    assert not list(folder.glob("**/recipe.json")) and not (folder / "fuseval.duckdb").exists()


def test_a_dry_run_of_an_experiment_without_explicit_fusion_says_what_to_call(tmp_path: Path, models: dict[str, Path]):
    folder = write_experiment(tmp_path / "here", models)
    experiment = yaml.safe_load((folder / "fuse.yaml").read_text())
    (folder / "fuse.yaml").write_text(yaml.safe_dump({**experiment, "fusion": {}}))
    code, _, err = fuse(folder, "--dry-run")
    assert code == 2 and "fuseval run --dry-run" in err


@pytest.mark.slow
def test_a_fusion_that_is_killed_at_every_stage_ends_as_one_that_was_not(tmp_path: Path, models: dict[str, Path]):
    whole, killed = (write_experiment(tmp_path / name, models) for name in ("whole", "killed"))
    assert fuse(whole)[0] == 0
    for sign in ("checkpoints/.fusion/teachers/*/*.parquet", "checkpoints/*/training/checkpoint-4/whole"):
        command = [sys.executable, "-m", "fuseval", "fuse", "fuse.yaml"]
        process = subprocess.Popen(
            command, cwd=killed, env={**os.environ, "FUSEVAL_CACHE": str(killed / "cache")}, stderr=subprocess.DEVNULL
        )
        while not list(killed.glob(f"**/{sign}")):
            assert process.poll() is None, f"it ended before there was {sign}"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not made(killed)
    code, _, err = fuse(killed)
    assert code == 0, err
    assert made(killed) == made(whole) == {"once", "twice", "both"}
    assert not list(killed.glob("checkpoints/*.work"))
    query = "SELECT name, count(*), sum(tokens) FROM training JOIN models ON model = id GROUP BY name ORDER BY name"
    steps = []
    for folder in (whole, killed):
        with duckdb.connect(str(folder / "fuseval.duckdb"), read_only=True) as ledger:
            steps.append(ledger.execute(query).fetchall())
    assert steps[0] == steps[1] and [count for _, count, _ in steps[0]] == [12, 12]


@pytest.mark.slow
def test_two_processes_learn_from_sources_as_one_does(tmp_path: Path, models: dict[str, Path]):
    losses = []
    for processes in (1, 2):
        folder = write_experiment(tmp_path / str(processes), models)
        experiment = yaml.safe_load((folder / "fuse.yaml").read_text())
        once = experiment["fusion"]["targets"][0]
        once["params"] = {"training": {**TRAINING, "batch_size": 4 // processes}}
        launched = {"accelerate": str(EXAMPLES / "accelerate" / "cpu.yaml")} if processes > 1 else {}
        (folder / "fuse.yaml").write_text(yaml.safe_dump({**experiment, "fusion": {"targets": [once]}, **launched}))
        code, _, err = fuse(folder)
        assert code == 0, err
        assert made(folder) == {"once"}
        assert not list(folder.glob("checkpoints/*.work")) and not list(folder.glob("checkpoints/*.launch"))
        with duckdb.connect(str(folder / "fuseval.duckdb"), read_only=True) as ledger:
            losses.append(ledger.execute("SELECT loss FROM training ORDER BY step").fetchnumpy()["loss"])
    assert len(losses[0]) == 6 and losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_fuseval_is_not_launched_itself_but_launches(tmp_path: Path, models: dict[str, Path], monkeypatch):
    folder = write_experiment(tmp_path / "here", models)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    code, _, err = fuse(folder)
    assert code == 2 and "write `accelerate: CONFIG.yaml` into the experiment" in err


def test_a_target_of_several_processes_is_another_than_of_one_for_its_batches_are_larger(tmp_path: Path, models):
    folder = write_experiment(tmp_path / "here", models)
    experiment = yaml.safe_load((folder / "fuse.yaml").read_text())
    ids = set()
    for name in ("cpu", "single-gpu", "fsdp2"):
        file = EXAMPLES / "accelerate" / f"{name}.yaml"
        told = Experiment.model_validate({**experiment, "accelerate": str(file)})
        ids.add(resolve(told, beside=folder, cache=tmp_path)["once"].id)
    alone = resolve(Experiment.model_validate(experiment), beside=folder, cache=tmp_path)["once"].id
    assert len(ids) == 3 and alone in ids
