"""The whole way with a real model, a real fine-tuning, a real merge, the real vLLM and a real judge; and `kill -9`."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest
import yaml

pytestmark = pytest.mark.slow

TALK = '{"messages": [{"role": "user", "content": "Say %s."}, {"role": "assistant", "content": "%s!"}]}\n'
WORDS = ("tea", "sun", "rain", "bread", "stone", "leaf", "boat", "road")


@pytest.fixture(scope="module")
def write_experiment(smollm2_gguf):
    def write(folder: Path) -> Path:
        (folder / "talk.jsonl").write_text("".join(TALK % (word, word) for word in WORDS))
        sft = {"learning_rate": 1e-4, "epochs": 1, "batch_size": 4, "max_length": 64}
        experiment = {
            "models": [{"name": "base", "path": str(smollm2_gguf)}],
            "fusion": {
                "targets": [{"name": "sft", "kind": "sft", "base": "base", "data": "talk.jsonl", "params": sft}],
                "merges": [{"name": "soup", "method": "linear", "base": "base", "sources": ["base", "sft"]}],
            },
            "benchmarks": [{"name": "starter", "limit": 12}],
            "judges": [{"model": "base"}],
            "sampling": {"max_tokens": 24},
            "engine": {"max_model_len": 1024, "kv_cache_gib": 0.5, "max_num_seqs": 4},
        }
        (folder / "run.yaml").write_text(yaml.safe_dump(experiment))
        return folder

    return write


def start(folder: Path, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fuseval", "run", "run.yaml"]
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, "FUSEVAL_CACHE": str(cache)}, stderr=subprocess.PIPE, text=True
    )


def finish(folder: Path, cache: Path) -> str:
    process = start(folder, cache)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return err


def kill_in_the_middle(folder: Path, cache: Path, stage: str) -> None:
    process = start(folder, cache)
    for line in process.stderr:
        found = re.match(rf"{stage}.*: (\d+)/(\d+)$", line.strip())
        if found and 0 < int(found[1]) < int(found[2]):
            break
    else:
        pytest.fail(f"the run ended before {stage!r} was half done")
    time.sleep(0.5)  # the first four are stored by now, and the next four take longer
    process.send_signal(signal.SIGKILL)
    process.communicate()


def query(folder: Path, sql: str) -> list[tuple]:
    with duckdb.connect(str(folder / "fuseval.duckdb"), read_only=True) as connection:
        return connection.execute(sql).fetchall()


CONTENTS = {
    "answers": "SELECT key, text FROM answers ORDER BY ALL",
    "judgments": "SELECT key, text FROM judgments ORDER BY ALL",
    "verdicts": "SELECT request, round(value, 4) FROM verdicts ORDER BY ALL",
    "scores": "SELECT model, judge, metric, round(value, 2), n, missing FROM scores ORDER BY ALL",
}


def test_a_run_killed_while_answering_and_while_judging_ends_as_an_uninterrupted_one(
    write_experiment, tmp_path_factory, smollm2, cache
):
    assert smollm2.exists()  # converted once, where the runs look for it
    whole = write_experiment(tmp_path_factory.mktemp("whole"))
    finish(whole, cache)
    expected = {name: query(whole, sql) for name, sql in CONTENTS.items()}
    assert {row[2] for row in expected["scores"]} >= {"accuracy", "win_rate"}
    assert len(query(whole, "SELECT step FROM training")) == 2
    assert "soup" in (whole / "report.html").read_text(encoding="utf-8")

    killed = write_experiment(tmp_path_factory.mktemp("killed"))
    shutil.copytree(whole / "checkpoints", killed / "checkpoints")
    kill_in_the_middle(killed, cache, "answer starter: sft")
    kept = set(query(killed, "SELECT key, text FROM answers"))
    assert 0 < len(kept) < len(expected["answers"])
    assert kept <= set(expected["answers"])
    kill_in_the_middle(killed, cache, "judge starter: by base")
    assert 0 < len(query(killed, "SELECT key FROM judgments")) < len(expected["judgments"])
    finish(killed, cache)
    assert {name: query(killed, sql) for name, sql in CONTENTS.items()} == expected

    err = finish(killed, cache)
    assert "start vLLM" not in err  # everything is in the ledger
