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
def test_several_processes_make_one_target_and_the_first_keeps_the_ledger(tmp_path: Path, models: dict[str, Path]):
    folder = write_experiment(tmp_path / "here", models)
    # What `accelerate launch` starts on GPUs; on CPUs it starts one process.
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "fuseval", "fuse", "fuse.yaml"],
        cwd=folder, env={**os.environ, "FUSEVAL_CACHE": str(folder / "cache")}, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert made(folder) == {"once", "twice", "both"}
    assert done.stderr.count("train for once: 6/6") == done.stderr.count("\nboth: ") == 1
    with duckdb.connect(str(folder / "fuseval.duckdb"), read_only=True) as ledger:
        assert ledger.execute("SELECT count(*) FROM training").fetchall() == [(12,)]


def test_launched_processes_only_fuse_and_only_what_several_can_train(
    tmp_path: Path, models: dict[str, Path], monkeypatch
):
    folder = write_experiment(tmp_path / "here", models)
    experiment = yaml.safe_load((folder / "fuse.yaml").read_text())
    plain = {"name": "plain", "kind": "sft", "base": "mine", "data": "chats.jsonl"}
    (folder / "fuse.yaml").write_text(yaml.safe_dump({**experiment, "fusion": {"targets": [plain]}}))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    code, _, err = fuse(folder)
    assert code == 2 and "plain: only targets of kind explicit are trained by several processes" in err
    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, ["run", "fuse.yaml"])
    assert done.exit_code == 2 and "make the targets so, then `fuseval run` alone" in done.stderr
