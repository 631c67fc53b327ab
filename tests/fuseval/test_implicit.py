"""`fuseval fuse` with `kind: implicit`: sources behind a wire, a tiny target, kills in between, nothing asked twice."""

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
from fusion.preference_dataset import read_dataset
from tests.fake_replies import says
from tests.fake_server import FakeServer
from tests.fusion.tiny_models import model_folder

QUICK = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 2, "dtype": "float32"}
PROMPTS = [{"prompt": f"What is {n} + 1?", "answer": n + 1, "set": "sums"} for n in range(20)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models") / "base")


def sums(body, _):
    """Answer rightly two times in three."""
    number = int(body["messages"][-1]["content"].split()[2])
    return says(f"The answer is {number + (1 if body['seed'] % 3 else 2)}, sample {body['seed']}.")


def write(folder: Path, mine: Path, base_url: str, **target: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    wire = {"base_url": base_url, "concurrency": 8}
    endpoints = [
        {"name": name, "evaluate": False, "endpoint": {"model": f"fake-{name}", **wire}} for name in ("gemma", "qwen")
    ]
    told = {
        "name": "fused", "kind": "implicit", "base": "base", "sources": ["gemma", "qwen"], "data": "prompts.jsonl",
        "params": {"sft": QUICK, "preference": {**QUICK, "checkpoint_every": 1}},
    }  # fmt: skip
    experiment = {
        "models": [{"name": "base", "path": str(mine)}, *endpoints],
        "fusion": {"targets": [{**told, **target}]},
        "benchmarks": ["starter"],
    }
    (folder / "fuse.yaml").write_text(yaml.safe_dump(experiment))
    return folder


def fuse(folder: Path, *arguments: str) -> tuple[int, str, str]:
    with contextlib.chdir(folder):
        done = CliRunner(env={"FUSEVAL_CACHE": str(folder / "cache")}).invoke(app, ["fuse", "fuse.yaml", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def table(folder: Path, query: str) -> list[tuple]:
    with duckdb.connect(str(folder / "fuseval.duckdb"), read_only=True) as connection:
        return connection.execute(query).fetchall()


def made(folder: Path) -> Path:
    [recipe] = folder.glob("checkpoints/fused-*/recipe.json")
    return recipe.parent


@pytest.mark.slow
def test_a_target_is_taught_what_its_sources_say_best(tmp_path, base):
    with FakeServer(script=sums) as server:
        folder = write(tmp_path / "here", base, server.base_url)
        code, _, err = fuse(folder)
        assert code == 0, err
        asked = len(server.bodies)
        assert asked == 2 * 5 * len(PROMPTS)
        result = made(folder)
        data = read_dataset(result.with_name(f"{result.name}.data"))
        assert len(data.sft) == 8 and 4 <= len(data.pairs) <= 12  # where one source was right and wrong
        assert all(pair.chosen.correct and not pair.rejected.correct for pair in data.pairs)
        assert not {e.prompt.id for e in data.sft} & {p.prompt.id for p in data.pairs}
        assert json.loads((result / "data.json").read_text())["sets"]["sums"]
        # The other loss begins at the same fine-tuned model, and asks nobody.
        loss = {**QUICK, "kind": "dpo"}
        write(folder, base, server.base_url, name="other", params={"sft": QUICK, "preference": loss})
        code, _, err = fuse(folder)
        assert code == 0, err
        assert "fine-tune other" not in err
        assert len(server.bodies) == asked
    assert table(folder, "SELECT count(*), count(DISTINCT seed) FROM answers") == [(200, 100)]
    assert table(folder, "SELECT avg(value) FROM rewards")[0][0] == pytest.approx(2 / 3, abs=0.1)
    steps = table(
        folder, "SELECT step, len(extra) FROM training t JOIN models m ON m.id = t.model WHERE name = 'fused'"
    )
    assert len(steps) == -(-len(data.pairs) // 2) and all(extra >= 6 for _, extra in steps)
    assert table(folder, "SELECT count(*) FROM leaderboard") == [(0,)]


def test_wrong_names_and_prompts_are_said_before_anything_is_asked(tmp_path, base):
    with FakeServer() as server:
        folder = write(tmp_path / "here", base, server.base_url, reward={"judge": "gtp"})
        code, _, err = fuse(folder)
        assert code == 2 and "no model is called 'gtp' here" in err and "fusion.targets[0].reward.judge" in err
        write(folder, base, server.base_url, params={"preference": {"kind": "wpro"}})
        code, _, err = fuse(folder)
        assert code == 2 and "fusion.targets[0].params" in err and "Did you mean 'wrpo'" in err
        write(folder, base, server.base_url, params={"data": {"sft_shares": 1}})
        code, _, err = fuse(folder)
        assert code == 2 and "sft_shares" in err
        write(folder, base, server.base_url, base="gemma", sources=["qwen"])
        code, _, err = fuse(folder)
        assert code == 2 and "'gemma' is an endpoint" in err
        assert not server.bodies


def test_a_dry_run_counts_what_sources_and_the_judge_are_still_asked(tmp_path, base):
    with FakeServer(script=sums) as server:
        folder = write(tmp_path / "here", base, server.base_url, reward={"judge": "gemma"})
        with contextlib.chdir(folder):
            done = CliRunner().invoke(app, ["run", "fuse.yaml", "--dry-run", "--json"])
        assert done.exit_code == 0, done.stderr
        rows = {(row["stage"], row["model"]): row["missing"] for row in json.loads(done.stdout)}
        assert rows["sample", "gemma"] == rows["sample", "qwen"] == 100 and rows["rate", "gemma"] == 200
        assert not server.bodies


def kill_at(folder: Path, stage: str, *, after: float) -> None:
    """Start the command, and kill it so many seconds after a stage began."""
    command = [sys.executable, "-m", "fuseval", "fuse", "fuse.yaml"]
    environ = {**os.environ, "FUSEVAL_CACHE": str(folder / "cache")}
    with subprocess.Popen(command, cwd=folder, env=environ, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        began = any(line.startswith(f"{stage}: ") for line in process.stderr)
        time.sleep(after)
        assert began and process.poll() is None, f"the command ended before it was killed at {stage!r}"
        process.send_signal(signal.SIGKILL)


@pytest.mark.slow
def test_a_fusion_that_is_killed_at_every_stage_asks_nothing_twice_and_gives_the_same_model(tmp_path, base):
    from fusion.hashes import content_hash

    with FakeServer(script=sums, latency=0.3) as server:
        whole = write(tmp_path / "whole", base, server.base_url)
        code, _, err = fuse(whole)
        assert code == 0, err
        asked = len(server.bodies)
        killed = write(tmp_path / "killed", base, server.base_url)
        for stage, after in (("sample gemma", 1.5), ("sample qwen", 1.5), ("fine-tune fused", 0), ("train fused", 0)):
            kill_at(killed, stage, after=after)
        code, _, err = fuse(killed)
        assert code == 0, err
        # Asked again is at most what was in flight at a kill, and what had come within the second before it.
        assert len(server.bodies) <= 2 * asked + 2 * 8 * (1 + 4)
    answers = "SELECT key, text FROM answers ORDER BY ALL"
    assert table(killed, answers) == table(whole, answers)
    assert content_hash(made(killed)) == content_hash(made(whole))
